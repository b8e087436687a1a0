"""The bytes of a recipe: of a file, or of a pipe that somebody writes to in time."""

from __future__ import annotations

import errno
import os
import select
import time


def read_at_most(path: str, size_bytes: int, seconds: float) -> bytes:
    """The first bytes of a file, or of a pipe or device as far as they come within that time.

    Raises:
        OSError: it cannot be read; TimeoutError (ETIMEDOUT) when whoever should write to the pipe has not finished.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return _read_before(descriptor, size_bytes, time.monotonic() + seconds)
    finally:
        os.close(descriptor)


def _read_before(descriptor: int, size_bytes: int, deadline: float) -> bytes:
    data, poll = bytearray(), select.poll()
    poll.register(descriptor, select.POLLIN)
    while len(data) < size_bytes:
        # A pipe that nobody has opened for writing yet looks ended, but is not ready.
        if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "nothing comes out of this pipe or device")
        piece = os.read(descriptor, size_bytes - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)
