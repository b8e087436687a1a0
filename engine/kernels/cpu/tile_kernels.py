"""The fast kernels: numba on numpy arrays, one thread each, without the interpreter lock."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..protocol import LEAST_CHANGE, Kind
from ..row_sums import ROW, SUM_ROWS
from ..window_calls import LookCounts, NearCounts, WindowCounts, WindowFold, WindowInputs, WindowLook, WindowNear
from . import blocks, codec, cuts, election, philox, rowwise, sources, sums, window
from .codec import NARROW, RAW, TABLES, WIDE

KINDS = {"f32": np.float32, "f64": np.float64, "u8": np.uint8, "u16": np.uint16, "i64": np.int64}
NOTHING = np.empty(0, np.uint8)
"""Stands for absent claims or an absent mask."""
Numbers = npt.NDArray[Any]


def _bits(t: Numbers) -> tuple[Numbers, Any]:
    """Bit patterns as signed integers, and the mask that clears the sign."""
    if t.dtype == np.float32:
        return t.view(np.int32), np.int32(0x7FFFFFFF)
    return t.view(np.int64), np.int64(0x7FFFFFFFFFFFFFFF)


class CpuKernels:
    """`Kernels` on numpy arrays. Threads may share one object: each has scratch of its own."""

    def __init__(self) -> None:
        self._local = threading.local()

    def empty(self, count: int, kind: Kind) -> Numbers:
        return np.empty(count, KINDS[kind])

    def buffer(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        return np.empty(size_bytes, np.uint8)

    def load(self, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return raw

    def store(self, values: Numbers, raw: npt.NDArray[np.uint8]) -> None:
        source = values.view(np.uint8)
        if source.size and source.ctypes.data != raw.ctypes.data:
            raw[: source.size] = source

    def decode(self, raw: Numbers, dtype: str, out: Numbers) -> int:
        return self._read(raw, dtype, out, False, out)

    def task_vector(self, raw: Numbers, dtype: str, base: Numbers, out: Numbers) -> int:
        return self._read(raw, dtype, base, True, out)

    def _read(self, raw: Numbers, dtype: str, base: Numbers, subtract: bool, out: Numbers) -> int:
        values = raw.view(RAW[dtype])
        assert values.size == base.size == out.size
        if dtype in TABLES:
            return int(codec.read_table(values, TABLES[dtype], base, subtract, out))
        if dtype == "BF16":
            return int(codec.read_bf16(values, base, subtract, out))
        if dtype == "F16":
            return int(codec.read_f16(values, base, subtract, out))
        return int(codec.read_wide(values, base, subtract, out))

    def zero_nonfinite(self, t: Numbers, base: Numbers) -> None:
        sums.zero_nonfinite(t, base)

    def moments(self, t: Numbers, rows: Numbers) -> None:
        assert rows.shape in ((-(-t.size // ROW), 2), (-(-t.size // ROW), 3))
        sums.moments(t, rows, np.empty((2, sums.EIGHTH)), np.empty(ROW, t.dtype))

    def squares(self, t: Numbers, rows: Numbers) -> None:
        assert rows.shape == (-(-t.size // ROW),)
        sums.squares(t, rows, np.empty(ROW, t.dtype), np.empty(sums.EIGHTH, t.dtype), np.empty(sums.EIGHTH))

    def dots(self, a: Numbers, b: Numbers, rows: Numbers) -> None:
        assert a.size == b.size and rows.shape == (-(-a.size // ROW),)
        sums.dots(a, b, rows, np.empty(sums.EIGHTH), np.empty((2, ROW), a.dtype))

    def variance(self, vectors: Sequence[Numbers], mean: Numbers, out: Numbers) -> None:
        count = out.dtype.type(len(vectors))
        mean[:] = 0
        out[:] = 0
        for vector in vectors:
            sums.add(mean, vector)
        sums.divide_by(mean, count)
        for vector in vectors:
            sums.add_square_of_difference(out, vector, mean)
        sums.divide_by(out, count)

    def row_dots(self, a: Numbers, b: Numbers, width: int, out: Numbers) -> None:
        assert a.size == b.size == out.size * width
        rowwise.row_dots(a, b, out, np.empty(width), np.empty(SUM_ROWS))

    def row_divergence(self, w: Numbers, base: Numbers, width: int, out: Numbers) -> None:
        assert w.size == base.size == out.size * width
        rowwise.row_divergence(w, base, out, np.empty((3, width)), np.empty(SUM_ROWS))

    def scale_rows(self, t: Numbers, factors: Numbers, width: int, out: Numbers) -> None:
        assert t.size == out.size == factors.size * width
        rowwise.scale_rows(t, factors, width, out)

    def accumulate_rows(self, acc: Numbers, t: Numbers, factors: Numbers, width: int, active: Numbers) -> None:
        assert t.size == acc.size == factors.size * width
        rowwise.accumulate_rows(acc, t, factors, width, active)

    def column_dots(self, a: Numbers, b: Numbers, width: int, rows: int, out: Numbers) -> None:
        assert a.size == b.size and a.size % width == 0 and out.shape == (-(-a.size // (rows * width)), width)
        rowwise.column_dots(a, b, rows, out)

    def accumulate_columns(self, acc: Numbers, t: Numbers, factors: Numbers, active: Numbers) -> None:
        assert t.size == acc.size and t.size % factors.size == 0
        rowwise.accumulate_columns(acc, t, factors, active)

    def score(self, t: Numbers, factors: Numbers, first: int, out: Numbers) -> None:
        sums.score(t, factors, first % factors.size, out)

    def histogram(
        self, t: Numbers, claims: Numbers | None, level: int, shift: int, bits: int, prefix: int, counts: Numbers
    ) -> None:
        patterns, magnitude = _bits(t)
        if claims is None and prefix == 0 and shift + bits == 8 * patterns.itemsize - 1:
            cuts.count_all(patterns, magnitude, shift, bits, counts)
        else:
            claims = NOTHING if claims is None else claims
            bins = np.empty(cuts.CHUNK, np.uint16)
            cuts.count_some(patterns, magnitude, claims, level, shift, bits, prefix, counts, bins)

    def count_near(
        self, t: Numbers, low: int, high: int, counts: npt.NDArray[np.int64], inside: npt.NDArray[np.int32]
    ) -> int:
        patterns, magnitude = _bits(t)
        return int(cuts.count_near(patterns, magnitude, np.int32(low), np.int32(high), counts, inside, 0))

    def count_equal(self, t: Numbers, claims: Numbers | None, level: int, key: int) -> int:
        patterns, magnitude = _bits(t)
        claims = NOTHING if claims is None else claims
        return int(cuts.count_equal(patterns, magnitude, claims, np.uint8(level), patterns.dtype.type(key)))

    def mask_top(
        self,
        t: Numbers,
        claims: Numbers | None,
        level: int,
        key: int,
        keep_equal: int,
        equal_before: int,
        mask: Numbers,
    ) -> int:
        patterns, magnitude = _bits(t)
        claims = NOTHING if claims is None else claims
        return int(
            cuts.mask_top(
                patterns, magnitude, claims, np.uint8(level), patterns.dtype.type(key), keep_equal, equal_before, mask
            )
        )

    def mask_blocks(
        self, t: Numbers, n: int, m: int, claims: Numbers, mask: Numbers, overlap_never: bool, drop_tail: bool
    ) -> None:
        assert 0 <= n <= m and t.size == claims.size == mask.size
        patterns, magnitude = _bits(t)
        scratch, flags = np.empty((2, m), patterns.dtype), np.empty((2, -(-m // 8) * 8), np.uint8)
        memory = np.empty((blocks.LEVELS, 3), np.int64)
        blocks.mask_blocks(patterns, magnitude, n, m, claims, mask, overlap_never, drop_tail, scratch, flags, memory)

    def mask_random(self, key0: int, key1: int, first: int, probability: float, mask: Numbers) -> None:
        words, packed = np.empty((4, philox.COUNTERS), np.uint64), np.empty(philox.COUNTERS, np.uint32)
        philox.mask_random(
            np.uint64(key0), np.uint64(key1), first, np.int64(philox.threshold(probability)), mask, words, packed
        )

    def mask_ranked(
        self,
        order: Numbers,
        row: int,
        key0: int,
        key1: int,
        first: int,
        low: float,
        span: float,
        mask: Numbers,
        divided: Numbers | None,
    ) -> None:
        assert order.size % row == 0 and order.size == mask.size
        patterns, magnitude = _bits(order)
        real = order.dtype.type
        upper, words = np.empty(order.size, np.uint32), np.empty((4, philox.COUNTERS), np.uint64)
        block = np.empty(4 * philox.COUNTERS, np.uint32)
        philox.draw_upper(np.uint64(key0), np.uint64(key1), first, upper, words, block)
        divided = np.empty(0, order.dtype) if divided is None else divided
        by_rank, probabilities = np.empty(row, order.dtype), np.empty(row, order.dtype)
        entries, counts = np.empty((2, row), np.int64), np.empty(2**philox.DIGIT, np.int64)
        philox.mask_ranked(
            patterns, magnitude, real(low), real(span), mask, divided, upper, by_rank, probabilities, entries, counts
        )

    def accumulate(
        self, acc: Numbers, t: Numbers, mask: Numbers | None, divisor: float, weight: float, active: Numbers
    ) -> None:
        real = acc.dtype.type
        mask = NOTHING if mask is None else mask
        sums.accumulate(acc, t, mask, divisor != 1.0, real(divisor), real(weight), active)

    def accumulate_agreeing(
        self,
        acc: Numbers,
        weight_sum: Numbers,
        count: Numbers,
        signs: Numbers,
        t: Numbers,
        mask: Numbers | None,
        divisor: float,
        weight: float,
    ) -> None:
        real = acc.dtype.type
        mask = np.ones(t.size, np.uint8) if mask is None else mask
        sums.accumulate_agreeing(acc, weight_sum, count, signs, t, mask, real(divisor), real(weight))

    def accumulate_shared(
        self, acc: Numbers, t: Numbers, mask: Numbers, claims: Numbers, weight: float, active: Numbers
    ) -> None:
        sums.accumulate_shared(acc, t, mask, claims, acc.dtype.type(weight), active)

    def shorten(self, t: Numbers, bound: float) -> None:
        real = t.dtype.type
        sums.shorten(t, real(bound), real(LEAST_CHANGE), real(0), real(1))

    def divide(self, acc: Numbers, denominator: Numbers | float) -> None:
        real = acc.dtype.type
        if isinstance(denominator, np.ndarray):
            sums.divide(acc, denominator)
        elif real(denominator) != 0:
            sums.divide_by(acc, real(denominator))

    def scale(self, acc: Numbers, factor: float) -> None:
        sums.scale(acc, acc.dtype.type(factor))

    def finish(
        self,
        base_raw: Numbers,
        base_dtype: str,
        base: Numbers,
        acc: Numbers,
        active: Numbers,
        out_dtype: str,
        saturate: bool,
        out_raw: Numbers,
    ) -> int:
        same = base_dtype == out_dtype
        out = out_raw.view(RAW[out_dtype])
        own = base_raw.view(RAW[out_dtype]) if same else out
        assert out.size == base.size == acc.size == active.size
        if out_dtype in NARROW:
            return int(codec.write_narrow(own, same, base, acc, active, NARROW[out_dtype], saturate, out))
        kind: Any = WIDE[out_dtype]
        largest, nan = kind(np.finfo(kind).max), kind(math.nan)
        return int(codec.write_wide(own, same, base, acc, active, largest, nan, saturate, out))

    def convert(self, values: Numbers, out_dtype: str, saturate: bool, out_raw: Numbers) -> int:
        out = out_raw.view(RAW[out_dtype])
        assert out.size == values.size
        if out_dtype in NARROW:
            return int(codec.round_narrow(values, NARROW[out_dtype], saturate, out))
        kind: Any = WIDE[out_dtype]
        largest, nan = kind(np.finfo(kind).max), kind(math.nan)
        return int(codec.round_wide(values, largest, nan, saturate, out))

    def scale_blocks(
        self, values: Numbers, start: int, columns: int, scales: Numbers, first_row: int, block: tuple[int, int]
    ) -> None:
        sources.scale_blocks(values, start, columns, scales, first_row, block[0], block[1])

    def add_low_rank(
        self,
        values: Numbers,
        start: int,
        columns: int,
        left: Numbers,
        first_row: int,
        right: Numbers,
        first_column: int,
        scale: float,
    ) -> None:
        place = start, columns, left, first_row, right, first_column, 0
        sources.add_low_rank(values, *place, np.float32(scale), True, *sources.scratch())

    def add_products(
        self,
        sums: Numbers,
        start: int,
        columns: int,
        left: Numbers,
        first_row: int,
        right: Numbers,
        first_column: int,
        first_rank: int,
    ) -> None:
        place = start, columns, left, first_row, right, first_column, first_rank
        sources.add_low_rank(sums, *place, np.float32(1), False, *sources.scratch())

    def add_scaled(self, values: Numbers, sums: Numbers, factor: float) -> None:
        assert values.size == sums.size
        sources.add_scaled(values, sums, np.float32(factor))

    def elect(self, elected: Numbers, signs: Numbers, t: Numbers) -> None:
        election.elect(elected, signs, t)

    def mask_agreeing(self, t: Numbers, elected: Numbers, mask: Numbers) -> None:
        election.mask_agreeing(t, elected, mask)

    def pack_bits(self, mask: Numbers, out_raw: Numbers) -> None:
        assert out_raw.size == -(-mask.size // 8)
        election.pack_bits(mask, out_raw)

    def add_where(self, values: Numbers, change: Numbers, bits: Numbers, skip: int, factor: float) -> None:
        assert values.size == change.size and bits.size * 8 >= skip + values.size
        election.add_where(values, change, bits, skip, np.float32(factor))

    def observe_window(self, look: WindowLook, inputs: WindowInputs) -> LookCounts | None:
        return window.observe_window(look, inputs, self._local)

    def near_window(self, near: WindowNear, inputs: WindowInputs) -> NearCounts | None:
        return window.near_window(near, inputs, self._local)

    def fold_window(
        self, fold: WindowFold, inputs: WindowInputs, outs: Sequence[npt.NDArray[np.uint8]]
    ) -> WindowCounts | None:
        return window.fold_window(fold, inputs, outs, self._local)

    def pair_overlap(self, a: Numbers, b: Numbers) -> int:
        return int(sums.pair_overlap(a, b))

    def count(self, mask: Numbers) -> int:
        return int(np.count_nonzero(mask))
