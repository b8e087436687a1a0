"""A merge on Ray runs in a child process: when Ray's own die, Ray ends the process that it is connected to, silently.

The parent tells what happened, with an exit code that says that the same command goes on, and leaves no process behind:
neither the child's nor those of a Ray that the child has started.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import click

from ..engine.errors import TemporaryError
from .endings import RESUMES

CONNECT_SECONDS = 120.0
"""Until Ray must have started or answered."""
LEAVE_SECONDS = 10.0
"""For processes of a Ray that was shut down to end by themselves."""
_POLL_SECONDS = 0.1
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BY_A_PROCESS = 0  # si_code of kill(); a terminal sends its signals to the child as well
_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36  # of prctl
_CONNECTED, _ENDED = b"c", b"e"

_news: list[int] = []
"""In a child, the pipe on which the parent hears how far it is."""


def connected() -> None:
    """Tell the parent, if there is one, that Ray has answered."""
    for pipe in _news:
        os.write(pipe, _CONNECTED)


def supervise(address: str) -> None:
    """Return in a child process; the parent waits for it and ends as it does.

    Call it while there is one thread.

    Raises:
        TemporaryError: in the parent, when the child or its Ray died, or no Ray answered in time.
        click.exceptions.Exit: in the parent, with the child's exit code.
    """
    hearing, telling = os.pipe()
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    child = os.fork()
    if child == 0:
        prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(TemporaryError.exit_code)
        os.close(hearing)
        _news.append(telling)
        atexit.register(os.write, telling, _ENDED)  # where Ray ends the process nothing of Python runs any more
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return
    prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # processes whose own parent is gone become ours to end
    os.close(telling)
    os.set_blocking(hearing, False)
    raise _outcome(*_wait(child, hearing), address)


def _wait(child: int, hearing: int) -> tuple[int | None, bytes]:
    """The child's exit code (negative: the signal that ended it; None: it has not connected in time) and its news."""
    news, deadline = b"", time.monotonic() + CONNECT_SECONDS
    while True:
        sent = signal.sigtimedwait(_FORWARDED, _POLL_SECONDS)
        if sent is not None and sent.si_code == _BY_A_PROCESS:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, sent.si_signo)
        ended, status = os.waitpid(child, os.WNOHANG)
        with contextlib.suppress(BlockingIOError):
            news += os.read(hearing, 16)
        late = not news and time.monotonic() > deadline
        if ended or late:
            _leave_nothing(0.0 if late or _ENDED not in news else LEAVE_SECONDS)
            return (None if late else os.waitstatus_to_exitcode(status)), news


def _outcome(code: int | None, news: bytes, address: str) -> Exception:
    if code is None:
        return TemporaryError(f"--ray {address}: no Ray answered in {CONNECT_SECONDS:.0f} s", f"Check it; {RESUMES}.")
    if _ENDED in news and code >= 0:
        return click.exceptions.Exit(code)
    how = f"by signal {-code}" if code < 0 else f"with exit {code}"
    return TemporaryError(
        f"--ray {address}: Ray died, and the process that was connected to it ended {how}",
        f"Its raylet or head was killed or lost, perhaps for lack of memory; {RESUMES}.",
    )


def _leave_nothing(patience_seconds: float) -> None:
    """Wait for every process that descends from this one to end, and kill those that do not."""
    deadline = time.monotonic() + patience_seconds
    while left := descendants(os.getpid()):
        if time.monotonic() >= deadline:
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)


def descendants(process: int) -> list[int]:
    """Ids of the processes that a process has started, and of those that these have."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, new = set[int](), {process}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return sorted(found)
