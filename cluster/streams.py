"""Standard output and error of runs that nobody watches: closed, full, abandoned or stalled, they stop no merge."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys

import click

from ..engine.errors import AnabranchError, ResourceError

PIECE_BYTES = 512
"""Written at once: a terminal or pipe that says it is ready takes as much without waiting."""
PATIENCE_SECONDS = 1.0
"""For a reader of messages to go on; one that has kept us waiting is not waited for again until it reads."""


class ReaderLeft(ResourceError):
    """A pipe was closed by whoever read it (`| head`), which is no failure to explain."""


class StandardOutput(io.TextIOBase):
    """Text to a descriptor, without a buffer whose rest could be lost at exit.

    Args:
        descriptor: where it goes; None: the stream was closed when the process began.
        encoding: of the text; what it cannot say is written with backslashes.
    """

    errors = "backslashreplace"

    def __init__(self, descriptor: int | None, encoding: str) -> None:
        self._descriptor = descriptor
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return super().fileno() if self._descriptor is None else self._descriptor

    def isatty(self) -> bool:
        return self._descriptor is not None and os.isatty(self._descriptor)

    def write(self, text: str | bytes) -> int:
        """Write all of it; what click has encoded itself as it is.

        Raises:
            ReaderLeft: nobody reads it.
            ResourceError: it cannot be written.
        """
        try:
            self._put(self._encoded(text))
        except BrokenPipeError as error:
            raise ReaderLeft("nobody reads standard output any more") from error
        except OSError as error:
            raise ResourceError(
                f"standard output cannot be written: {error.strerror}",
                "Send it to a file with room, or let whatever reads it read on.",
            ) from error
        return len(text)

    def _encoded(self, text: str | bytes) -> bytes:
        return text.encode(self._encoding, self.errors) if isinstance(text, str) else text

    def _put(self, data: bytes) -> None:
        if self._descriptor is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        done = 0
        while done < len(data) and self._wait(self._descriptor):
            with contextlib.suppress(BlockingIOError):  # whoever shares the pipe may have made it so
                done += os.write(self._descriptor, data[done : done + PIECE_BYTES])

    def _wait(self, descriptor: int) -> bool:
        """Whether to go on writing, after waiting for the reader."""
        return bool(_ready(descriptor, None))


class StandardError(StandardOutput):
    """The same for messages, which are lost rather than waited for or failed over."""

    _stalled = False

    def write(self, text: str | bytes) -> int:
        with contextlib.suppress(OSError):
            self._put(self._encoded(text))
        return len(text)

    def _wait(self, descriptor: int) -> bool:
        self._stalled = not _ready(descriptor, 0 if self._stalled else PATIENCE_SECONDS)
        return not self._stalled


def _ready(descriptor: int, seconds: float | None) -> bool:
    """Whether a write will not wait: there is room, or an error to be told."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def guard_streams() -> None:
    """Take over the standard streams of this process; call it before anything is opened.

    A closed one gets the null device under its number: the next file that is opened would have it otherwise, and what a
    library prints would end up in that file.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, number, kind in (("stdout", 1, StandardOutput), ("stderr", 2, StandardError)):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # not what a program that calls us has put there
            encoding = "utf-8" if stream is None else stream.encoding
            setattr(sys, name, kind(None if stream is None else number, encoding))


def tell(text: str) -> None:
    """Print what has become of work: where that cannot be printed, the work is done all the same."""
    try:
        click.echo(text)
    except OSError as error:
        note(error)


def note(error: OSError | AnabranchError) -> None:
    """Say on standard error that something besides the work itself could not be written."""
    if not isinstance(error, ReaderLeft):
        click.echo(f"note: {error.message if isinstance(error, AnabranchError) else error}", err=True)
