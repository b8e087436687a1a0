"""The command in processes that are cheap to start and real to kill: forked from one that has loaded everything."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anabranch.cluster import cli

END_SECONDS = 300.0
"""For a run to end; none is expected to take a tenth of it."""


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    """Negative: the signal that ended it."""
    words: str
    """Of standard error."""
    seconds: float


class Run:
    """A run of the command in a forked process.

    Args:
        arguments: of the command.
        words: file that gets standard error.
        environment: more variables.
        streams: `whole`, or what is wrong with standard output and error: `closed` or `full`.
        stopped: wait for SIGCONT before anything is done.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        words: Path,
        environment: Mapping[str, str] | None = None,
        streams: str = "whole",
        *,
        stopped: bool = False,
    ) -> None:
        self._words = words
        self._began = time.monotonic()
        sys.stdout.flush()
        self.id = os.fork()
        if self.id:
            return
        code = 1
        try:
            os.environ.update(environment or {})
            _redirect(words, streams)
            if stopped:
                os.kill(os.getpid(), signal.SIGSTOP)
            sys.argv = ["anabranch", *arguments]
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            os._exit(code)

    def send(self, number: int) -> None:
        os.kill(self.id, number)

    def wait_until_stopped(self) -> None:
        os.waitid(os.P_PID, self.id, os.WSTOPPED | os.WNOWAIT)

    def alive(self) -> bool:
        return os.waitid(os.P_PID, self.id, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None

    def end(self) -> Ended:
        """Wait for the end; a run that hangs is killed, which no exit code of ours looks like."""
        deadline = self._began + END_SECONDS
        while self.alive():
            if time.monotonic() > deadline:
                self.send(signal.SIGABRT)
            time.sleep(0.005)
        code = os.waitstatus_to_exitcode(os.waitpid(self.id, 0)[1])
        words = self._words.read_text(errors="replace") if self._words.exists() else ""
        return Ended(code, words, time.monotonic() - self._began)


def _redirect(words: Path, streams: str) -> None:
    for number in (1, 2):
        os.close(number)
        if streams != "closed":
            target = words if number == 2 else os.devnull
            opened = os.open("/dev/full" if streams == "full" else target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(opened, number)
            if opened != number:
                os.close(opened)


def killed_at(run: Run, seconds: float) -> None:
    """SIGKILL after so many seconds, unless it has ended."""
    deadline = time.monotonic() + seconds
    while run.alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    if run.alive():
        run.send(signal.SIGKILL)


def traced(start: Callable[[], Run], inject: str) -> Run:
    """A run whose system calls go wrong as strace's `inject` says, from before its first line on.

    Args:
        start: makes a run that is stopped.
        inject: such as `fsync:error=EIO:when=3`.
    """
    strace = shutil.which("strace")
    assert strace is not None, "the soak needs strace"
    run = start()
    run.wait_until_stopped()
    options = ["-f", "-qq", "-o", os.devnull, "-e", f"trace={inject.partition(':')[0]}", "-e", f"inject={inject}"]
    subprocess.Popen([strace, *options, "-p", str(run.id)], stderr=subprocess.DEVNULL)
    status = Path(f"/proc/{run.id}/status")
    while "\nTracerPid:\t0\n" in status.read_text():
        time.sleep(0.002)
    time.sleep(0.02)  # between attaching and setting its options
    run.send(signal.SIGCONT)
    return run


def random_call(chance: random.Random, calls: Mapping[str, int]) -> tuple[str, int]:
    """One of some system calls, and its number: the later, the rarer it is among those of a thread."""
    call = chance.choice(list(calls))
    return call, chance.randint(1, calls[call])
