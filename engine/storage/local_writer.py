"""Writing one large local file: past the page cache, behind whoever makes the bytes, visible only when complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ..errors import AnabranchError, IntegrityError
from .local_files import MAX_CALL_BYTES, translated
from .local_folders import NEW_FILE, open_below, opened_folder, rename_below, unlink_below

BUFFER_BYTES = 4 << 20
"""One buffer is filled while the other is written: large enough that a disk does not wait for the next request."""
ALIGNMENT = 4096
"""Bytes that direct writes are multiples of: the largest sector in use."""


class LocalWriter:
    """A temporary file that `commit` syncs and renames.

    Where the file system can, bytes go past the page cache (O_DIRECT): an output is read again much later, if at all,
    so a copy of it in memory would only cost processor time and push the inputs out.

    Args:
        root: the store's folder.
        name: of the file, relative to it; no link below the root is followed.
        temporary: the temporary file's name, in the folder of the file.
        size: bytes that will be written.
        flags: how the temporary file is opened.
        begin: where in it the bytes go; a multiple of ALIGNMENT.
    """

    def __init__(
        self, root: str, name: str, temporary: str, size: int, *, flags: int = NEW_FILE, begin: int = 0
    ) -> None:
        self._path = os.path.join(root, name)
        self._root = root
        self._inner, self._base = os.path.split(name)
        self._temporary = temporary
        self._size = size
        self._begin = begin
        self._taken = 0
        """Bytes handed over so far."""
        self._written = 0
        """Bytes in the file or on the way there; a multiple of BUFFER_BYTES until the end."""
        self._descriptor: int | None = None
        self._behind = ThreadPoolExecutor(1, "write")
        self._pending: Future[None] | None = None
        try:
            with opened_folder(root, self._inner, make=True) as folder:
                self._descriptor = open_below(folder, temporary, flags, temporary)
            self._direct = set_direct(self._descriptor, True)
            room = min(BUFFER_BYTES, -(-size // ALIGNMENT) * ALIGNMENT)
            self._buffers = [_aligned(room)] if size <= room else [_aligned(room), _aligned(room)]
        except BaseException:  # an interrupt, too: nobody else knows of the file yet
            with contextlib.suppress(AnabranchError, OSError):
                self.discard()
            raise

    def write(self, data: memoryview | bytes) -> None:
        """See `Writer.write`."""
        self._opened()
        source = np.frombuffer(data, np.uint8)
        self._taken += len(source)
        with translated(self._path):
            while len(source):
                buffer, filled = self._buffers[0], self._taken - len(source) - self._written
                count = min(len(source), len(buffer) - filled)
                buffer[filled : filled + count] = source[:count]
                source = source[count:]
                if filled + count == len(buffer):
                    self._hand_over(len(buffer))

    def _hand_over(self, count: int) -> None:
        """Let the thread write the first `count` bytes of the buffer while the other one is filled."""
        self._settle()
        self._pending = self._behind.submit(self._put, self._buffers[0][:count], self._written)
        self._written += count
        self._buffers.reverse()
        if len(self._buffers) == 1:
            self._settle()

    def _settle(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _put(self, data: NDArray[np.uint8], offset: int) -> None:
        descriptor, done = self._opened(), 0
        offset += self._begin
        while done < len(data):
            try:
                done += os.pwrite(descriptor, data[done : done + MAX_CALL_BYTES].data, offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._direct = set_direct(descriptor, False)  # promised at opening, refused now

    def commit(self) -> None:
        """See `Writer.commit`: sync, rename, sync the folder."""
        descriptor = self._complete()
        with translated(self._path):
            self._settle()
            rest = self._size - self._written
            padded = -(-rest // ALIGNMENT) * ALIGNMENT if self._direct else rest
            self._buffers[0][rest:padded] = 0
            self._put(self._buffers[0][:padded], self._written)
            if padded > rest:
                os.ftruncate(descriptor, self._size)
            os.fsync(descriptor)
            self._close()
            with opened_folder(self._root, self._inner) as folder:
                rename_below(folder, self._temporary, self._base)

    def discard(self) -> None:
        """See `Writer.discard`."""
        self._close()
        with (
            translated(self._path),
            contextlib.suppress(FileNotFoundError),
            opened_folder(self._root, self._inner) as folder,
        ):
            unlink_below(folder, self._temporary)

    def _opened(self) -> int:
        """The descriptor; ValueError after commit or discard."""
        if self._descriptor is None:
            raise ValueError(f"{self._path}: written after commit or discard")
        return self._descriptor

    def _complete(self) -> int:
        """The descriptor, when all bytes have been handed over."""
        descriptor = self._opened()
        if self._taken != self._size:
            raise IntegrityError(f"{self._path}: {self._taken} bytes were written, expected {self._size}")
        return descriptor

    def _close(self) -> None:
        self._behind.shutdown()  # nothing may be on the way when the descriptor goes
        self._buffers = []
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _aligned(count: int) -> NDArray[np.uint8]:
    """A buffer that starts at a page, as direct writes ask for."""
    return np.frombuffer(mmap.mmap(-1, max(count, 1)), np.uint8)[:count]


def set_direct(descriptor: int, direct: bool) -> bool:
    """Switch direct writes; returns whether they are on, which some file systems (of memory, some networks) refuse."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)
    except OSError:
        return False
    return direct
