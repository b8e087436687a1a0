"""An embedding whose rows are gathered in the order of another vocabulary while it is read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .derived import PIECE_ELEMENTS, fill_pieces
from .header import DTYPES
from .location import Bytes, Reads, TensorLocation


@dataclass(frozen=True)
class RowGather:
    """A matrix whose rows are rows of other matrices, or means of several.

    Args:
        parts: tensors [?, ...] of float dtypes of at most 32 bits, whose rows have the same shape.
        origins: per part the URL of the checkpoint that it lies in.
        offsets: i32 [R + 1]; row i is made from entries [offsets[i], offsets[i + 1]) of the next two: no entry is a row
            of zeros, one entry that row itself, several their mean.
        part: i32 [entries], which of `parts`.
        row: i32 [entries], which of its rows.
        padding: rows that follow; each is the mean of all rows before, which are added up in fp64 from the first to the
            last, divided by their number, and rounded to fp32.
        dtype: of the result: the parts' own where they agree and no mean is taken, else F32.
        out_dtype: what the output stores when the recipe does not say.
    """

    parts: tuple[TensorLocation, ...]
    origins: tuple[str, ...]
    offsets: NDArray[np.int32] = field(compare=False)
    part: NDArray[np.int32] = field(compare=False)
    row: NDArray[np.int32] = field(compare=False)
    padding: int
    dtype: str
    out_dtype: str
    rows_sha256: str = field(init=False)
    """Stands for the arrays when two are compared."""

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for array in (self.offsets, self.part, self.row):
            digest.update(array.astype("<i8").tobytes())
        object.__setattr__(self, "rows_sha256", digest.hexdigest())
        stored = {source.info.dtype for source in self.parts}
        assert self.dtype == "F32" or not self.padding
        assert self.dtype == "F32" or (stored <= {self.dtype} and int(np.diff(self.offsets).max(initial=0)) <= 1)
        assert len(self.part) == len(self.row) == self.offsets[-1]

    @property
    def columns(self) -> int:
        return math.prod(self.parts[0].info.shape[1:])

    @property
    def rows(self) -> int:
        """Rows that are no padding."""
        return len(self.offsets) - 1

    @property
    def read_bytes(self) -> int:
        rows = np.bincount(self.part, minlength=len(self.parts))
        total = 0
        for source, count in zip(self.parts, rows, strict=True):
            total += -(-source.read_bytes * int(count) // max(1, source.info.shape[0]))
        return total * 2 if self.padding else total

    @property
    def stretches(self) -> int:
        return len(self.row) * max((source.stretches for source in self.parts), default=0)

    def held_bytes(self, most_bytes: int) -> int:
        inner = sum(source.derived.held_bytes(most_bytes) for source in self.parts if source.derived)
        return inner + (4 * self.columns if self.padding else 0)

    def scratch_bytes(self, most_bytes: int) -> int:
        inner = max((source.derived.scratch_bytes(most_bytes) for source in self.parts if source.derived), default=0)
        sums = 4 * (PIECE_ELEMENTS + self.columns) + 8 * self.columns if self.padding else 0
        return inner + 4 * PIECE_ELEMENTS + 12 * self.columns + sums

    def fill(self, begin: int, end: int, into: Bytes, reads: Reads) -> None:
        """Elements [begin, end) in `dtype`; rows that follow each other in a part are read together."""
        size, columns = DTYPES[self.dtype].size, self.columns
        named = min(end, self.rows * columns)
        if end > named:
            self._pad(max(begin, named), end, into[(max(begin, named) - begin) * size :], reads)
        for low, high, entry in self._runs(begin // columns, -(-named // columns)) if begin < named else ():
            start, stop = max(begin, low * columns), min(named, high * columns)
            place = into[(start - begin) * size : (stop - begin) * size]
            if entry < 0:
                self._mean(low, start - low * columns, stop - low * columns, place, reads)
                continue
            source, shift = self.parts[self.part[entry]], (int(self.row[entry]) - low) * columns
            there = reads.of(self.origins[self.part[entry]]).by_rows()
            if source.info.dtype == self.dtype:
                source.fill(start + shift, stop + shift, place, there)
            else:
                fill_pieces(source, start + shift, stop + shift, place, there, lambda _values, _first: None)

    def _runs(self, low: int, high: int) -> Iterator[tuple[int, int, int]]:
        """(first row, end, entry) of rows that one read fills; entry -1 for a row that is no row of a part."""
        offsets = self.offsets[low : high + 1]
        single = np.diff(offsets) == 1
        entries = np.where(single, offsets[:-1], 0)
        part = np.where(single, self.part[entries], -1) if len(self.part) else np.full(high - low, -1)
        row = np.where(single, self.row[entries], -1) if len(self.part) else np.full(high - low, -1)
        follows = (part[1:] == part[:-1]) & (row[1:] == row[:-1] + 1) & single[1:] & single[:-1]
        starts = np.flatnonzero(np.concatenate([[True], ~follows]))
        for first, stop in zip(starts, [*starts[1:], high - low], strict=True):
            yield low + int(first), low + int(stop), int(entries[first]) if single[first] else -1

    def _mean(self, row: int, first: int, stop: int, into: Bytes, reads: Reads) -> None:
        """Columns [first, stop) of the mean of a row's entries; zeros where there is none."""
        entries = range(int(self.offsets[row]), int(self.offsets[row + 1]))
        if not entries:
            into[:] = 0
            return
        total = np.zeros(stop - first, np.float32)
        line = np.empty(4 * (stop - first), np.uint8)
        for entry in entries:
            source, start = self.parts[self.part[entry]], int(self.row[entry]) * self.columns
            there = reads.of(self.origins[self.part[entry]]).by_rows()
            fill_pieces(source, start + first, start + stop, line, there, lambda _values, _first: None)
            with _counted_later():
                total += line.view(np.float32)
        total /= np.float32(len(entries))
        into[:] = total.view(np.uint8)

    def _pad(self, begin: int, end: int, into: Bytes, reads: Reads) -> None:
        """Elements [begin, end), all of them padding."""
        mean = reads.held(self, 4 * self.columns, lambda: reads.kernels.load(self._mean_row(reads)))
        row = np.empty(4 * self.columns, np.uint8)
        reads.kernels.store(mean, row)
        into.view(np.float32)[:] = row.view(np.float32)[np.arange(begin, end) % self.columns]

    def _mean_row(self, reads: Reads) -> Bytes:
        """One more reading of all rows that are no padding."""
        total = np.zeros(self.columns, np.float64)
        step = max(1, PIECE_ELEMENTS // self.columns)
        for first in range(0, self.rows, step):
            last = min(first + step, self.rows)
            piece = np.empty(4 * (last - first) * self.columns, np.uint8)
            self.fill(first * self.columns, last * self.columns, piece, reads)
            with _counted_later():
                for values in piece.view(np.float32).reshape(-1, self.columns):
                    total += values
        return (total / self.rows).astype(np.float32).view(np.uint8)


def _counted_later() -> np.errstate:
    """Sums beyond fp32 are infinite without a warning: whoever merges or copies the rows counts them."""
    return np.errstate(over="ignore", invalid="ignore")
