"""One local file that several processes write, each a range of it; visible only when all of it is there."""

from __future__ import annotations

import os

from ..errors import IntegrityError
from .local_files import translated
from .local_folders import open_below, opened_folder, rename_below
from .local_writer import ALIGNMENT, LocalWriter, set_direct
from .protocol import RangeRules

RANGE_GRAIN_BYTES = 64 << 10
"""Ranges begin at multiples of it: no two processes write to one page or one block of a file system."""
RULES = RangeRules(RANGE_GRAIN_BYTES, 4 * RANGE_GRAIN_BYTES)
_EXISTING = os.O_WRONLY | os.O_CLOEXEC


class LocalRange(LocalWriter):
    """Bytes [begin, begin + size) of a temporary file that is there; `commit` makes them durable, nothing visible."""

    def __init__(self, root: str, name: str, temporary: str, begin: int, size: int) -> None:
        super().__init__(root, name, temporary, size, flags=_EXISTING, begin=begin)

    def commit(self) -> None:
        """Sync. What is no multiple of the alignment goes through the page cache: a file never grows beyond its end."""
        descriptor = self._complete()
        with translated(self._path):
            self._settle()
            rest = self._size - self._written
            if rest % ALIGNMENT and self._direct:
                self._direct = set_direct(descriptor, False)
            self._put(self._buffers[0][:rest], self._written)
            os.fsync(descriptor)
            self._close()

    def discard(self) -> None:
        """The file is not this range's to remove."""
        self._close()


def complete_file(root: str, name: str, temporary: str, size: int) -> None:
    """Give the temporary file its name, durably, when every range has been committed.

    Raises:
        FileNotFoundError: a twin finished and somebody removed it; look at what is there.
        IntegrityError: it has another size.
    """
    inner, base = os.path.split(name)
    path = os.path.join(root, name)
    with translated(path), opened_folder(root, inner) as folder:
        descriptor = open_below(folder, temporary, _EXISTING, temporary)
        try:
            found = os.fstat(descriptor).st_size
            if found != size:
                raise IntegrityError(f"{path}: {found} bytes were written, expected {size}")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        rename_below(folder, temporary, base)
