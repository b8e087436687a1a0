"""Tensors computed while they are read: block-scaled FP8, low-rank adapters, masked task vectors, gathered rows.

The arithmetic is defined element by element, in fp32, each operation rounded by itself:

* BlockScaled: value(code) * scale of its block.
* LowRank: weight + scale * (((0 + l_0 r_0) + l_1 r_1) + ...), the sum over the rank in order.
* MaskedChange: weight + scale * change where the mask has a 1, else the weight.
* RowGather: the row itself; of several rows their sum in order, starting from 0, divided by their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..kernels import Array
from .header import DTYPES
from .location import Bytes, Reads, TensorLocation

PIECE_ELEMENTS = 1 << 18
"""Elements that are computed at once: 1 MiB of fp32."""
HELD_BYTES = 8 << 20
"""A factor of up to this size in fp32 is always read once and kept for the tensor's windows; of a larger one each
window reads what it needs again, where memory is short."""
PART_ELEMENTS = 1 << 18
"""Elements of a factor that is not kept, in memory at once."""
LONG_PIECE_ELEMENTS = 1 << 19
"""Elements for which a factor that is not kept is read once: a window of a local merge."""


def fill_pieces(
    source: TensorLocation,
    begin: int,
    end: int,
    into: Bytes,
    reads: Reads,
    change: Callable[[Array, int], None],
    elements: int | None = None,
) -> None:
    """Read elements [begin, end) of `source` in one request and write them to `into` as F32, changed piece by piece.

    The stored bytes come to the end of the buffer, where their fp32 values never overtake them. `change` gets the f32
    values of a piece (of PIECE_ELEMENTS, or as many as given) and the flat index of its first element.
    """
    at_once = elements or PIECE_ELEMENTS
    size = DTYPES[source.info.dtype].size
    stored = into[len(into) - (end - begin) * size :]
    source.fill(begin, end, stored, reads)
    values = reads.scratch("values", min(at_once, end - begin))
    for first in range(begin, end, at_once):
        count = min(at_once, end - first)
        at = first - begin
        piece = values[:count]
        with reads.computing():
            reads.kernels.decode(reads.kernels.load(stored[at * size : (at + count) * size]), source.info.dtype, piece)
            change(piece, first)
            reads.kernels.store(piece, into[4 * at : 4 * (at + count)])


@dataclass(frozen=True, slots=True)
class FactorSlice:
    """Some rows or columns of a factor, f32."""

    values: Array
    """[n, k] or [k, n], contiguous."""
    first: int
    """Which row or column of the factor comes first."""


@dataclass(frozen=True, slots=True)
class Factor:
    """A small stored matrix of which a window needs a part, as fp32.

    Args:
        source: the stored matrix, of a float dtype of at most 32 bits, or of exponents (F8_E8M0).
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

    def is_held(self, most_bytes: int) -> bool:
        """Whether the whole matrix is kept, where matrices of up to so many bytes are."""
        return 4 * self.source.info.numel <= most_bytes

    def at_once(self, most_bytes: int) -> int:
        """How long a part may be."""
        return max(1, self.length if self.is_held(most_bytes) else PART_ELEMENTS // self.width)

    def held_bytes(self, most_bytes: int) -> int:
        """Memory of the whole matrix, or of what is kept of a stored one until its blocks can be hashed."""
        return 4 * self.source.info.numel if self.is_held(most_bytes) else self.source.info.nbytes

    def scratch_bytes(self, most_bytes: int) -> int:
        """Stored bytes while they are converted, their transpose, and the values of a part that is not kept."""
        elements = self.at_once(most_bytes) * self.width
        stored = elements * DTYPES[self.source.info.dtype].size
        if self.source.info.dtype == "F8_E8M0":
            stored *= 1 + 2 * 4  # as U32 while they are made, and as F32
        return stored * (1 + self.transposed) + (0 if self.is_held(most_bytes) else 4 * elements)

    def part(self, begin: int, end: int, reads: Reads, slot: str, most_bytes: int) -> FactorSlice:
        """What holds [begin, end) of the axis; valid until this thread asks for the slot again."""
        if self.is_held(most_bytes):
            key = (self.source.file, self.source.info.offset, self.transposed)
            size = self.held_bytes(most_bytes)
            return FactorSlice(reads.held(key, size, lambda: self._load(0, self.length, reads, None)), 0)
        room = reads.scratch(slot, self.at_once(most_bytes) * self.width)
        return FactorSlice(self._load(begin, end, reads, room), begin)

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
        codes, dtype = (powers_of_two(stored), "F32") if info.dtype == "F8_E8M0" else (stored, info.dtype)
        reads.kernels.decode(reads.kernels.load(codes), dtype, values)
        return values.reshape(shape)


def powers_of_two(exponents: Bytes) -> Bytes:
    """Codes of F8_E8M0 as F32 bytes: 2 ** (code - 127), exact; 255 is NaN (OCP Microscaling Formats, 5.4.1)."""
    bits = exponents.astype(np.uint32)
    bits <<= 23
    bits[exponents == 0] = 1 << 22  # 2 ** -127 is subnormal
    bits[exponents == 255] |= 1 << 22
    return bits.view(np.uint8)


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
    def stretches(self) -> int:
        return self.weight.stretches + self.scales.source.stretches

    def held_bytes(self, most_bytes: int) -> int:
        return self.scales.held_bytes(most_bytes)

    def scratch_bytes(self, most_bytes: int) -> int:
        return 4 * PIECE_ELEMENTS + self.scales.scratch_bytes(most_bytes)

    def fill(self, begin: int, end: int, into: Bytes, reads: Reads) -> None:
        """Elements [begin, end) as F32."""
        columns, most = self.weight.info.shape[1], reads.held_most_bytes

        def change(values: Array, first: int) -> None:
            for start, stop in _cut(first, first + len(values), columns * self.block[0] * self.scales.at_once(most)):
                low, high = start // columns // self.block[0], (stop - 1) // columns // self.block[0] + 1
                scales = self.scales.part(low, high, reads, "scales", most)
                piece = values[start - first : stop - first]
                reads.kernels.scale_blocks(piece, start, columns, scales.values, scales.first, self.block)

        fill_pieces(self.weight, begin, end, into, reads, change)


def _cut(begin: int, end: int, unit: int) -> Iterator[tuple[int, int]]:
    """Cut flat elements [begin, end) at the multiples of `unit`."""
    while begin < end:
        stop = min(end, (begin // unit + 1) * unit)
        yield begin, stop
        begin = stop


def _as_fp32(scale: float) -> float:
    """A scale rounded to fp32; one beyond it is infinite, and what it makes of values is counted as not finite."""
    with np.errstate(over="ignore"):
        return float(np.float32(scale))


@dataclass(frozen=True, slots=True)
class LowRank:
    """A matrix and a product of two narrow ones: weight + scale * left @ right (LoRA, arXiv 2106.09685).

    Args:
        weight: [R, C], F32, F16, BF16 or FP8, or derived and F32.
        left: its parts are rows, [n, rank].
        right: stored and cut along axis 0: its parts are ranks, [n, C], or of a transposed one columns, [rank, n].
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
    def stretches(self) -> int:
        return self.weight.stretches + self.left.source.stretches + self.right.source.stretches

    @property
    def out_dtype(self) -> str:
        return self.weight.out_dtype

    def held_bytes(self, most_bytes: int) -> int:
        inner = self.weight.derived.held_bytes(most_bytes) if self.weight.derived else 0
        return inner + self.left.held_bytes(self._left_most(most_bytes)) + self.right.held_bytes(most_bytes)

    def scratch_bytes(self, most_bytes: int) -> int:
        inner = self.weight.derived.scratch_bytes(most_bytes) if self.weight.derived else 0
        factors = self.left.scratch_bytes(self._left_most(most_bytes)) + self.right.scratch_bytes(most_bytes)
        sums = 4 * LONG_PIECE_ELEMENTS if self._rank_by_rank(most_bytes) else 0
        return inner + 4 * self._piece_elements(most_bytes) + factors + sums

    def _left_most(self, most_bytes: int) -> int:
        """Rows that follow each other in a file come window by window anyway: only a small matrix is kept."""
        return most_bytes if self.left.transposed else min(most_bytes, HELD_BYTES)

    def _rank_by_rank(self, most_bytes: int) -> bool:
        """Whether only some ranks of the right factor are there at a time."""
        return not self.right.is_held(most_bytes) and not self.right.transposed

    def _piece_elements(self, most_bytes: int) -> int:
        return PIECE_ELEMENTS if self.right.is_held(most_bytes) else LONG_PIECE_ELEMENTS

    def fill(self, begin: int, end: int, into: Bytes, reads: Reads) -> None:
        """Elements [begin, end) as F32."""
        columns, most = self.weight.info.shape[1], reads.held_most_bytes
        left_most = self._left_most(most)
        add = self._add_ranks if self._rank_by_rank(most) else self._add_columns

        def change(values: Array, first: int) -> None:
            for start, stop in _cut(first, first + len(values), columns * self.left.at_once(left_most)):
                left = self.left.part(start // columns, (stop - 1) // columns + 1, reads, "left", left_most)
                add(values[start - first : stop - first], start, left, reads)

        fill_pieces(self.weight, begin, end, into, reads, change, self._piece_elements(most))

    def _add_columns(self, values: Array, start: int, left: FactorSlice, reads: Reads) -> None:
        """All ranks of the columns that are there."""
        columns, most, scale = self.weight.info.shape[1], reads.held_most_bytes, _as_fp32(self.scale)
        low, high = 0, columns
        if start // columns == (start + len(values) - 1) // columns:
            low, high = start % columns, (start + len(values) - 1) % columns + 1
        step = columns if self.right.is_held(most) else self.right.at_once(most)
        for first in range(low, high, step):
            right = self.right.part(first, min(high, first + step), reads, "right", most)
            place = start, columns, left.values, left.first, right.values, right.first
            reads.kernels.add_low_rank(values, *place, scale)

    def _add_ranks(self, values: Array, start: int, left: FactorSlice, reads: Reads) -> None:
        """All columns of the ranks that are there, which follow each other in the file."""
        sums, most = reads.scratch("sums", len(values)), reads.held_most_bytes
        sums[:] = 0
        columns, ranks, step = self.right.width, self.right.length, self.right.at_once(most)
        for first in range(0, ranks, step):
            right = self.right.part(first, min(ranks, first + step), reads, "right", most)
            reads.kernels.add_products(sums, start, columns, left.values, left.first, right.values, 0, first)
        reads.kernels.add_scaled(values, sums, _as_fp32(self.scale))


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
    def stretches(self) -> int:
        return self.weight.stretches + self.change.stretches + self.bits.stretches

    @property
    def out_dtype(self) -> str:
        return self.weight.out_dtype

    def held_bytes(self, most_bytes: int) -> int:
        return self.weight.derived.held_bytes(most_bytes) if self.weight.derived else 0

    def scratch_bytes(self, most_bytes: int) -> int:
        inner = self.weight.derived.scratch_bytes(most_bytes) if self.weight.derived else 0
        stored = DTYPES[self.change.info.dtype].size * PIECE_ELEMENTS + PIECE_ELEMENTS // 8 + 1
        return inner + 2 * 4 * PIECE_ELEMENTS + stored

    def fill(self, begin: int, end: int, into: Bytes, reads: Reads) -> None:
        """Elements [begin, end) as F32."""
        change = reads.scratch("change", min(PIECE_ELEMENTS, end - begin))
        size, scale = DTYPES[self.change.info.dtype].size, _as_fp32(self.scale)

        def add(values: Array, first: int) -> None:
            stop = first + len(values)
            stored, bits = np.empty(len(values) * size, np.uint8), np.empty((stop + 7) // 8 - first // 8, np.uint8)
            self.change.fill(first, stop, stored, reads)
            self.bits.fill(first // 8, (stop + 7) // 8, bits, reads)
            piece = change[: len(values)]
            reads.kernels.decode(reads.kernels.load(stored), self.change.info.dtype, piece)
            reads.kernels.add_where(values, piece, reads.kernels.load(bits), first % 8, scale)

        fill_pieces(self.weight, begin, end, into, reads, add)
