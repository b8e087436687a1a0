"""Arithmetic on one tile of a tensor: decode, select, accumulate, encode.

Two implementations, equal bit for bit: `cpu.CpuKernels` (numba, numpy arrays) is the fast one and
`reference.TorchKernels` (torch, any device) the readable one. Nothing here imports numba or torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from .window_calls import LookCounts, NearCounts, WindowCounts, WindowFold, WindowInputs, WindowLook, WindowNear

Array: TypeAlias = Any
"""numpy.ndarray for `CpuKernels`, torch.Tensor for `TorchKernels`."""

Kind: TypeAlias = Literal["f32", "f64", "u8", "u16", "i64"]

LEAST_CHANGE = 1e-6
"""Changes below it count as this large where a bound is divided by them (mergekit's nearswap)."""


class Kernels(Protocol):
    """Operations on a tile: L consecutive elements of one tensor, as 1-D contiguous arrays; L >= 1.

    `real` is float32, or float64 when any input of the tensor is F64. Task vectors t, accumulators and decoded
    bases are `real`; masks, claims and `active` are uint8 (masks and `active` hold 0 or 1). Results are written in
    place. A key is the bit pattern of |t| read as an unsigned integer (31 bits, or 63 for float64): it orders
    magnitudes. Every product, quotient and sum is one IEEE operation, never fused; denormals are kept. A computed
    NaN is written as the positive quiet NaN of the output dtype, so that bytes do not depend on the machine; which
    elements a mask chooses among NaN is not defined, only that they are counted when they are decoded.
    """

    def empty(self, count: int, kind: Kind) -> Array:
        """An uninitialised array of `count` elements."""

    def buffer(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Host memory for inputs and outputs (with CUDA: pinned, so that copies run at the bus's full speed)."""

    def load(self, raw: npt.NDArray[np.uint8]) -> Array:
        """Bytes in host memory as bytes that the other functions accept (CPU: the same object)."""

    def store(self, values: Array, raw: npt.NDArray[np.uint8]) -> None:
        """The bytes of an array back into host memory (CPU: nothing to do when both are the same memory)."""

    def decode(self, raw: Array, dtype: str, out: Array) -> int:
        """Bytes of L elements of a float dtype -> real, exactly. Returns the number of non-finite elements."""

    def task_vector(self, raw: Array, dtype: str, base: Array, out: Array) -> int:
        """out = real(W) - base. Returns the number of non-finite elements of W."""

    def zero_nonfinite(self, t: Array, base: Array) -> None:
        """t = +0.0 where t or base is not finite."""

    def moments(self, t: Array, rows: Array) -> None:
        """Sums of |t|, t^2 and t^4 (fp64) of each row of 4096 elements, folded in halves.

        rows is f64 [ceil(L / 4096), 3], or 2 where sums of t^4 are not wanted. t starts at a multiple of 4096 elements
        of its tensor; the last row is padded with +0.0. `fold_rows` adds the rows of a whole tensor.
        """

    def squares(self, t: Array, rows: Array) -> None:
        """Sums of t^2 of each row of 4096 elements, folded in halves as by `moments`; rows is f64 [ceil(L / 4096)].

        Squares and the first three foldings are real, the others fp64: quicker, and true to some seven digits where
        squares are neither below nor beyond real numbers. t is as for `moments`.
        """

    def dots(self, a: Array, b: Array, rows: Array) -> None:
        """Sums of a * b (fp64) of each row of 4096 elements, folded in halves; rows is f64 [ceil(L / 4096)].

        a and b start at a multiple of 4096 elements of their tensors; the last row is padded with +0.0.
        """

    def variance(self, vectors: Sequence[Array], mean: Array, out: Array) -> None:
        """out = the population variance of each element over k vectors, all real; `mean` is overwritten.

        mean = (sum of the values, in the order of the vectors) / k; out = (sum of (value - mean)^2, likewise) / k.
        """

    def row_dots(self, a: Array, b: Array, width: int, out: Array) -> None:
        """Sums of a * b (fp64) of each row of `width` elements, in the order of a whole tensor; out is f64 [rows].

        a and b hold whole rows.
        """

    def row_divergence(self, w: Array, base: Array, width: int, out: Array) -> None:
        """sum p log(p / q) (fp64) of each row of `width` elements, at least 0; out is f64 [rows].

        p and q are exp(x - max x) / sum + 1e-8 of the rows of w and base: the Kullback-Leibler divergence of their
        softmax. exp and log are made of IEEE operations, so the result is the same everywhere.
        """

    def scale_rows(self, t: Array, factors: Array, width: int, out: Array) -> None:
        """out = |t| * factor of its row; factors is f64 [rows], rounded to real first."""

    def accumulate_rows(self, acc: Array, t: Array, factors: Array, width: int, active: Array) -> None:
        """Where t != 0: acc += t * factor of its row, active = 1; factors is f64 [rows], rounded to real first."""

    def column_dots(self, a: Array, b: Array, width: int, rows: int, out: Array) -> None:
        """Sums of a * b (fp64) of each column over groups of rows, row after row from 0; out is f64 [groups, width].

        a and b hold whole rows of `width` elements; a group has `rows` rows, the last one maybe fewer.
        """

    def accumulate_columns(self, acc: Array, t: Array, factors: Array, active: Array) -> None:
        """Where t != 0: acc += t * factor of its column, active = 1; factors is f64 [width], rounded to real first."""

    def score(self, t: Array, factors: Array, first: int, out: Array) -> None:
        """out[e] = |t[e]| * factors[(first + e) mod len(factors)]; all real. `first` is the flat index of t[0]."""

    def histogram(
        self, t: Array, claims: Array | None, level: int, shift: int, bits: int, prefix: int, counts: Array
    ) -> None:
        """counts[(key >> shift) & (2^bits - 1)] += 1 for elements with key >> (shift + bits) == prefix.

        With claims, only elements with claims == level count. counts is i64 [2^bits].
        """

    def count_equal(self, t: Array, claims: Array | None, level: int, key: int) -> int:
        """Number of elements with that key (and, with claims, claims == level)."""

    def count_near(
        self, t: Array, low: int, high: int, counts: npt.NDArray[np.int64], inside: npt.NDArray[np.int32]
    ) -> int:
        """counts += the numbers of keys above `high`, equal to it, equal to `low`, and of zeros; t is float32.

        Returns how many keys lie strictly between; as many of them as there is room for are written to `inside`, in
        the order of elements. Both arrays are in host memory.
        """

    def mask_top(
        self,
        t: Array,
        claims: Array | None,
        level: int,
        key: int,
        keep_equal: int,
        equal_before: int,
        mask: Array,
    ) -> int:
        """A cut through the whole tensor's order of magnitudes; claims None means all 0 (and level 0).

        mask = 1 where claims < level and t != 0, or where claims == level and either the element's key is larger
        than `key`, or equal to it and fewer than `keep_equal` equal elements come before it in the tensor
        (`equal_before` of them before this tile). Every element of mask is written. Returns how many equal elements
        this tile holds.
        """

    def mask_blocks(
        self, t: Array, n: int, m: int, claims: Array, mask: Array, overlap_never: bool, drop_tail: bool
    ) -> None:
        """The n:m selection of CABS (arXiv 2503.01874): in each block of m elements keep n.

        The first n elements in the order claims ascending, |t| descending, index ascending are taken, with
        `overlap_never` only those with claims == 0. Of these, t != 0 are kept: zeros take places, so that what is
        claimed is not taken before the block is full. t starts at a block boundary. A last block of length L < m
        (only the tensor's end may have one) takes (n * L + m // 2) // m, or nothing with `drop_tail`. Every element
        of mask is written; claims += mask (fewer than 256 models).
        """

    def mask_random(self, key0: int, key1: int, first: int, probability: float, mask: Array) -> None:
        """mask = 1 where u < probability; u from Philox4x32-10 at the flat indices first, first + 1, ..."""

    def mask_ranked(
        self,
        order: Array,
        row: int,
        key0: int,
        key1: int,
        first: int,
        low: float,
        span: float,
        mask: Array,
        divided: Array | None,
    ) -> None:
        """A random mask whose probabilities grow with magnitude (MAGPRUNE of DELLA, arXiv 2406.11617).

        order is real [L], whole rows of `row` elements. In its row an element has the rank r, ascending in |order|;
        of equal ones the higher index has the lower rank. p = low + (r - 1) / (row - 1) * span in real arithmetic,
        p = low where row is 1. mask = 1 where u < p; u as in `mask_random`. Where mask: divided /= p. `divided` may be
        `order` itself.
        """

    def accumulate(
        self, acc: Array, t: Array, mask: Array | None, divisor: float, weight: float, active: Array
    ) -> None:
        """Where mask (None: everywhere) and t != 0: acc += t / divisor * weight, active = 1.

        divisor and weight are rounded to real first; a divisor of 1 costs nothing.
        """

    def accumulate_agreeing(
        self,
        acc: Array,
        weight_sum: Array,
        count: Array,
        signs: Array,
        t: Array,
        mask: Array | None,
        divisor: float,
        weight: float,
    ) -> None:
        """With x = t / divisor * weight, where mask, x != 0 and (x > 0) == (signs >= 0): acc += x,
        weight_sum += weight (real) and count += 1 (uint8).
        """

    def accumulate_shared(self, acc: Array, t: Array, mask: Array, claims: Array, weight: float, active: Array) -> None:
        """Where mask and t != 0: acc += t * weight where claims is 1, else t / claims; active = 1.

        claims is u8 and at least 1 where mask is; weight is rounded to real first.
        """

    def shorten(self, t: Array, bound: float) -> None:
        """t *= min(max(bound / max(|t|, 1e-6), 0), 1), with bound and 1e-6 rounded to real."""

    def divide(self, acc: Array, denominator: Array | float) -> None:
        """acc /= denominator; where it is 0, acc stays. An array is real or uint8; a number is rounded to real."""

    def scale(self, acc: Array, factor: float) -> None:
        """acc *= real(factor)."""

    def finish(
        self,
        base_raw: Array,
        base_dtype: str,
        base: Array,
        acc: Array,
        active: Array,
        out_dtype: str,
        saturate: bool,
        out_raw: Array,
    ) -> int:
        """Bytes of base + acc, rounded once to nearest even, where active; elsewhere the base's own bytes, or the
        base rounded once when the dtypes differ.

        With `saturate` results beyond the largest finite value (infinite sums too, but not an infinite base where
        nothing is active) become that value. Returns the number of non-finite results, not counting those that
        are the base's own: not active, and a non-finite base or the base's own bytes. F8_E4M3 has no infinity:
        overflow is NaN. out_raw may be base_raw itself when the dtypes are equal.
        """

    def convert(self, values: Array, out_dtype: str, saturate: bool, out_raw: Array) -> int:
        """Bytes of values rounded once to nearest even; with `saturate` infinities and overflow become the largest
        finite value. Returns the number of non-finite results.
        """

    def scale_blocks(
        self, values: Array, start: int, columns: int, scales: Array, first_row: int, block: tuple[int, int]
    ) -> None:
        """values *= the scale of each element's block; element i of values has flat index start + i in a matrix of
        `columns` columns, which is cut into blocks of `block` rows and columns.

        All arrays are f32; scales is [block rows from first_row on, all block columns].
        """

    def add_low_rank(
        self,
        values: Array,
        start: int,
        columns: int,
        left: Array,
        first_row: int,
        right: Array,
        first_column: int,
        scale: float,
    ) -> None:
        """values += scale * (left @ right) where right has the column; element i of values has flat index start + i in
        a matrix of `columns` columns.

        All arrays are f32; left is [rows from first_row on, rank], right is [rank, columns from first_column on]. The
        products are summed in the order of the rank, starting from 0; scale is rounded to f32 first.
        """

    def add_products(
        self,
        sums: Array,
        start: int,
        columns: int,
        left: Array,
        first_row: int,
        right: Array,
        first_column: int,
        first_rank: int,
    ) -> None:
        """sums += left @ right, product by product in the order of the rank: `add_low_rank` for some ranks at a time.

        left has all ranks, right those from first_rank on; the rest is as there.
        """

    def add_scaled(self, values: Array, sums: Array, factor: float) -> None:
        """values += sums * factor; all f32, factor is rounded to f32 first."""

    def elect(self, elected: Array, signs: Array, t: Array) -> None:
        """elected = t where t != 0, (t > 0) == (signs > 0) and |t| > |elected|: the elected sign of 0 is -.

        All are real. Started from 0 and called for every model, it leaves the largest value that has the elected sign.
        """

    def mask_agreeing(self, t: Array, elected: Array, mask: Array) -> None:
        """mask = 1 where t and elected are both above 0 or both below; every element of mask is written."""

    def pack_bits(self, mask: Array, out_raw: Array) -> None:
        """A mask as bits: element i becomes bit i mod 8 (counted from the least significant one) of byte i // 8.

        out_raw is u8 [ceil(L / 8)]; bits behind the last element are 0.
        """

    def add_where(self, values: Array, change: Array, bits: Array, skip: int, factor: float) -> None:
        """values += change * factor where bit `skip + i` of `bits` is set for element i; elsewhere values stay.

        values and change are f32; bits are as `pack_bits` writes them; factor is rounded to f32 first.
        """

    def observe_window(self, look: WindowLook, inputs: WindowInputs) -> LookCounts | None:
        """`task_vector`, `histogram` and `count_equal` of 0 for a whole window in one call, with the same counts.

        None where this implementation has no such call for such a window.
        """

    def near_window(self, near: WindowNear, inputs: WindowInputs) -> NearCounts | None:
        """`task_vector` and `count_near` for a whole window in one call, with the same counts.

        None where this implementation has no such call for such a window.
        """

    def fold_window(
        self, fold: WindowFold, inputs: WindowInputs, outs: Sequence[npt.NDArray[np.uint8]]
    ) -> WindowCounts | None:
        """All of the above for a whole window in one call, with the same bits; writes the bytes of every output.

        Where sums of rows are wanted, the window begins with a row. None where this implementation has no such call
        for such a window: then nothing was done. The counts are valid until the same thread's next call.
        """

    def pair_overlap(self, a: Array, b: Array) -> int:
        """Number of elements kept by both masks."""

    def count(self, mask: Array) -> int:
        """Number of elements kept by a mask."""


def host(array: Array) -> npt.NDArray[Any]:
    """An array in host memory as numpy sees it: the same memory on the CPU, a copy from a device."""
    return np.asarray(array if isinstance(array, np.ndarray) else array.cpu())


def on_device(kernels: Kernels, values: npt.NDArray[np.float64]) -> Array:
    """f64 numbers in host memory as an array that the kernels take; a copy."""
    device = kernels.empty(len(values), "f64")
    kernels.decode(kernels.load(np.ascontiguousarray(values).view(np.uint8)), "F64", device)
    return device
