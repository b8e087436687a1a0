"""Tensors computed while they are read: block-scaled FP8, low-rank adapters, masked task vectors, gathered rows.

The arithmetic is defined element by element, in fp32, each operation rounded by itself:

* BlockScaled: value(code) * scale of its block.
* LowRank: weight + scale * (((0 + l_0 r_0) + l_1 r_1) + ...), the sum over the rank in order.
* MaskedChange: weight + scale * change where the mask has a 1, else the weight.
* RowGather: the row itself; of several rows their sum in order, starting from 0, divided by their number.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..kernels.protocol import Array
from .header import DTYPES
from .location import Bytes, Reads, TensorLocation

PIECE_ELEMENTS = 1 << 18
"""Elements that are computed at once: 1 MiB of fp32."""
HELD_BYTES = 8 << 20
"""A factor of up to this size in fp32 is read once and kept for the tensor's windows; of a larger one each window reads
what it needs again."""
PART_ELEMENTS = 1 << 18
"""Elements of a factor that is not kept, in memory at once."""


def _fill_pieces(
    source: TensorLocation, begin: int, end: int, into: Bytes, reads: Reads, change: Callable[[Array, int], None]
) -> None:
    """Read elements [begin, end) of `source` in one request and write them to `into` as F32, changed piece by piece.

    The stored bytes come to the end of the buffer, where their fp32 values never overtake them. `change` gets the f32
    values of a piece and the flat index of its first element.
    """
    size = DTYPES[source.info.dtype].size
    stored = into[len(into) - (end - begin) * size :]
    source.fill(begin, end, stored, reads)
    values = reads.scratch("values", min(PIECE_ELEMENTS, end - begin))
    for first in range(begin, end, PIECE_ELEMENTS):
        count = min(PIECE_ELEMENTS, end - first)
        at = first - begin
        piece = values[:count]
        with reads.computing():
            reads.kernels.decode(reads.kernels.load(stored[at * size : (at + count) * size]), source.info.dtype, piece)
            change(piece, first)
            reads.kernels.store(piece, into[4 * at : 4 * (at + count)])


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows or columns of a factor, f32."""

    values: Array
    """[n, k] or [k, n], contiguous."""
    first: int
    """Which row or column of the factor comes first."""


@dataclass(frozen=True, slots=True)
class Factor:
    """A small stored matrix of which a window needs a part, as fp32.

    Args:
        source: the stored matrix, of a float dtype of at most 32 bits.
        axis: the stored axis, 0 or 1, along which windows take their parts.
        transposed: whether parts are handed out transposed.
    """

    source: TensorLocation
    axis: int
    transposed: bool = False

    @property
    def length(self) -> int:
        """Size of the axis along which parts are taken."""
        return self.source.info.shape[self.axis]

    @property
    def width(self) -> int:
        """Size of the other axis."""
        return self.source.info.shape[1 - self.axis]

    @property
    def is_held(self) -> bool:
        """Whether the whole matrix is kept."""
        return 4 * self.source.info.numel <= HELD_BYTES

    @property
    def at_once(self) -> int:
        """How long a part may be."""
        return max(1, self.length if self.is_held else PART_ELEMENTS // self.width)

    @property
    def held_bytes(self) -> int:
        """Memory of the whole matrix, when it is kept."""
        return 4 * self.source.info.numel if self.is_held else 0

    @property
    def scratch_bytes(self) -> int:
        """Stored bytes while they are converted, their transpose, and the values of a part that is not kept."""
        stored = self.at_once * self.width * DTYPES[self.source.info.dtype].size
        return stored * (1 + self.transposed) + (0 if self.is_held else 4 * self.at_once * self.width)

    def part(self, begin: int, end: int, reads: Reads, slot: str) -> Part:
        """What holds [begin, end) of the axis; valid until this thread asks for the slot again."""
        if self.is_held:
            key = (self.source.file, self.source.info.offset, self.transposed)
            return Part(reads.held(key, self.held_bytes, lambda: self._load(0, self.length, reads, None)), 0)
        return Part(self._load(begin, end, reads, reads.scratch(slot, self.at_once * self.width)), begin)

    def _load(self, begin: int, end: int, reads: Reads, out: Array | None) -> Array:
        """Read and convert [begin, end) of the axis; into a new array without `out`."""
        info, length = self.source.info, end - begin
        size, count = DTYPES[info.dtype].size, length * self.width
        stored = np.empty(count * size, np.uint8)
        if self.axis == 0 or length == self.length:
            first = begin * self.width if self.axis == 0 else 0
            self.source.fill(first, first + count, stored, reads)
        else:
            for j, line in enumerate(stored.reshape(self.width, length * size)):
                self.source.fill(j * self.length + begin, j * self.length + end, line, reads)
        shape = (length, self.width) if self.axis == 0 else (self.width, length)
        if self.transposed:
            codes = stored.view(f"V{size}").reshape(shape)
            stored, shape = np.ascontiguousarray(codes.T).reshape(-1).view(np.uint8), shape[::-1]
        values = reads.kernels.empty(count, "f32") if out is None else out[:count]
        reads.kernels.decode(reads.kernels.load(stored), info.dtype, values)
        return values.reshape(shape)


@dataclass(frozen=True, slots=True)
class BlockScaled:
    """FP8 codes with one scale per block of the matrix, as DeepSeek-V3 ships its weights; a block may be all of it.

    Args:
        weight: F8 codes [R, C].
        scales: [ceil(R / rows), ceil(C / columns)].
        block: rows and columns of a block.
        out_dtype: what the output stores when the recipe does not say.
    """

    weight: TensorLocation
    scales: Factor
    block: tuple[int, int]
    out_dtype: str

    @property
    def read_bytes(self) -> int:
        return self.weight.read_bytes + self.scales.source.read_bytes

    @property
    def held_bytes(self) -> int:
        return self.scales.held_bytes

    @property
    def scratch_bytes(self) -> int:
        return 4 * PIECE_ELEMENTS + self.scales.scratch_bytes

    def fill(self, begin: int, end: int, into: Bytes, reads: Reads) -> None:
        """Elements [begin, end) as F32."""
        columns = self.weight.info.shape[1]

        def change(values: Array, first: int) -> None:
            for start, stop in _cut(first, first + len(values), columns * self.block[0] * self.scales.at_once):
                low, high = start // columns // self.block[0], (stop - 1) // columns // self.block[0] + 1
                scales = self.scales.part(low, high, reads, "scales")
                piece = values[start - first : stop - first]
                reads.kernels.scale_blocks(piece, start, columns, scales.values, scales.first, self.block)

        _fill_pieces(self.weight, begin, end, into, reads, change)


def _cut(begin: int, end: int, unit: int) -> Iterator[tuple[int, int]]:
    """Cut flat elements [begin, end) at the multiples of `unit`."""
    while begin < end:
        stop = min(end, (begin // unit + 1) * unit)
        yield begin, stop
        begin = stop


@dataclass(frozen=True, slots=True)
class LowRank:
    """A matrix and a product of two narrow ones: weight + scale * left @ right (LoRA, arXiv 2106.09685).

    Args:
        weight: [R, C], F32, F16, BF16 or FP8, or derived and F32.
        left: its parts are rows, [n, rank].
        right: its parts are columns, [rank, n].
        scale: rounded to fp32 when it meets the product.
    """

    weight: TensorLocation
    left: Factor
    right: Factor
    scale: float

    @property
    def read_bytes(self) -> int:
        return self.weight.read_bytes + self.left.source.read_bytes + self.right.source.read_bytes

    @property
    def out_dtype(self) -> str:
        return self.weight.out_dtype

    @property
    def held_bytes(self) -> int:
        inner = self.weight.derived.held_bytes if self.weight.derived else 0
        return inner + self.left.held_bytes + self.right.held_bytes

    @property
    def scratch_bytes(self) -> int:
        inner = self.weight.derived.scratch_bytes if self.weight.derived else 0
        return inner + 4 * PIECE_ELEMENTS + self.left.scratch_bytes + self.right.scratch_bytes

    def fill(self, begin: int, end: int, into: Bytes, reads: Reads) -> None:
        """Elements [begin, end) as F32."""
        columns = self.weight.info.shape[1]

        def change(values: Array, first: int) -> None:
            for start, stop in _cut(first, first + len(values), columns * self.left.at_once):
                left = self.left.part(start // columns, (stop - 1) // columns + 1, reads, "left")
                piece = values[start - first : stop - first]
                for c0, c1 in self._columns(start, stop):
                    right = self.right.part(c0, c1, reads, "right")
                    reads.kernels.add_low_rank(
                        piece, start, columns, left.values, left.first, right.values, right.first, self.scale
                    )

        _fill_pieces(self.weight, begin, end, into, reads, change)

    def _columns(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Columns that flat elements [start, stop) touch, in parts that the right factor gives at once."""
        columns = self.right.length
        if self.right.is_held:
            yield 0, columns
            return
        one_row = start // columns == (stop - 1) // columns
        low, high = (start % columns, (stop - 1) % columns + 1) if one_row else (0, columns)
        for c0 in range(low, high, self.right.at_once):
            yield c0, min(high, c0 + self.right.at_once)


@dataclass(frozen=True, slots=True)
class MaskedChange:
    """A tensor and, where a mask has a 1, a multiple of a change: a task's model in EMR-Merging (arXiv 2405.17461).

    Args:
        weight: F32, F16, BF16 or FP8, or derived and F32.
        change: of the weight's shape and such a dtype.
        bits: U8 [ceil(elements / 8)], as `Kernels.pack_bits` writes them.
        scale: rounded to fp32 when it meets the change.
    """

    weight: TensorLocation
    change: TensorLocation
    bits: TensorLocation
    scale: float

    @property
    def read_bytes(self) -> int:
        return self.weight.read_bytes + self.change.read_bytes + self.bits.read_bytes

    @property
    def out_dtype(self) -> str:
        return self.weight.out_dtype

    @property
    def held_bytes(self) -> int:
        return self.weight.derived.held_bytes if self.weight.derived else 0

    @property
    def scratch_bytes(self) -> int:
        inner = self.weight.derived.scratch_bytes if self.weight.derived else 0
        stored = DTYPES[self.change.info.dtype].size * PIECE_ELEMENTS + PIECE_ELEMENTS // 8 + 1
        return inner + 2 * 4 * PIECE_ELEMENTS + stored

    def fill(self, begin: int, end: int, into: Bytes, reads: Reads) -> None:
        """Elements [begin, end) as F32."""
        change = reads.scratch("change", min(PIECE_ELEMENTS, end - begin))
        size = DTYPES[self.change.info.dtype].size

        def add(values: Array, first: int) -> None:
            stop = first + len(values)
            stored, bits = np.empty(len(values) * size, np.uint8), np.empty((stop + 7) // 8 - first // 8, np.uint8)
            self.change.fill(first, stop, stored, reads)
            self.bits.fill(first // 8, (stop + 7) // 8, bits, reads)
            piece = change[: len(values)]
            reads.kernels.decode(reads.kernels.load(stored), self.change.info.dtype, piece)
            reads.kernels.add_where(values, piece, reads.kernels.load(bits), first % 8, self.scale)

        _fill_pieces(self.weight, begin, end, into, reads, add)


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
    def held_bytes(self) -> int:
        inner = sum(source.derived.held_bytes for source in self.parts if source.derived)
        return inner + (4 * self.columns if self.padding else 0)

    @property
    def scratch_bytes(self) -> int:
        inner = max((source.derived.scratch_bytes for source in self.parts if source.derived), default=0)
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
            there = reads.of(self.origins[self.part[entry]])
            if source.info.dtype == self.dtype:
                source.fill(start + shift, stop + shift, place, there)
            else:
                _fill_pieces(source, start + shift, stop + shift, place, there, lambda _values, _first: None)

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
            there = reads.of(self.origins[self.part[entry]])
            _fill_pieces(source, start + first, start + stop, line, there, lambda _values, _first: None)
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
            for values in piece.view(np.float32).reshape(-1, self.columns):
                total += values
        return (total / self.rows).astype(np.float32).view(np.uint8)
