"""Files that go with the weights: read whole where their content is needed, else copied in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import InputError
from ..storage import FileInfo, Store

PIECE_BYTES = 4 << 20
"""Of a side file that is copied, at a time: as much as a writer buffers."""
MAX_EDITED_BYTES = 64 << 20
"""Largest side file whose content is changed: configurations, and a tokenizer.json whose tokens change."""


@dataclass(frozen=True)
class SideFile:
    """A file of any size that is copied beside the weights."""

    store: Store
    name: str
    info: FileInfo

    def read(self) -> bytes:
        """Its bytes, as they were when the plan was made.

        Raises:
            InputError: they may be others now, or they are too many to be held.
        """
        if self.info.size > MAX_EDITED_BYTES:
            raise InputError(
                f"{self.store.url}/{self.name}: {self.info.size} bytes, at most {MAX_EDITED_BYTES} are read of a file "
                "whose content must be known",
                "The file may not be what its name says; fetch it again.",
            )
        return b"".join(map(bytes, self.pieces()))  # each piece lies in the same memory

    def pieces(self) -> Iterator[memoryview]:
        """Its bytes, as they were when the plan was made, up to PIECE_BYTES at a time; each is overwritten by the next.

        Raises:
            InputError: they may be others now, also when that shows only after the last piece.
        """
        buffer = memoryview(bytearray(min(self.info.size, PIECE_BYTES)))
        try:
            self._check()
            for begin in range(0, self.info.size, PIECE_BYTES):
                piece = buffer[: self.info.size - begin]
                self.store.read_into(self.name, begin, piece, self.info.version)
                yield piece
            self._check()
        except FileNotFoundError:
            raise self._changed() from None

    def check(self) -> None:
        """Read it once, so that a file which cannot be read stops a merge before its work; InputError as `pieces`."""
        for _ in self.pieces():
            pass

    def _check(self) -> None:
        if self.store.info(self.name) != self.info:
            raise self._changed()

    def _changed(self) -> InputError:
        return InputError(
            f"{self.store.url}/{self.name} changed since the plan was made",
            "restore the file, or start a new output from the changed inputs",
        )
