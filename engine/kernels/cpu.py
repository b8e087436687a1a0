"""The fast kernels: numba on numpy arrays, one thread each, without the interpreter lock."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from . import ROW, Kind, cpu_blocks, cpu_codec, philox
from .compile import jit
from .cpu_codec import NARROW, RAW, TABLES, WIDE

KINDS = {"f32": np.float32, "f64": np.float64, "u8": np.uint8, "u16": np.uint16, "i64": np.int64}
NO_CLAIMS = np.empty(0, np.uint8)
NO_MASK = np.empty(0, np.uint8)

Numbers = npt.NDArray[Any]


@jit
def _zero_nonfinite(t: Any, base: Any) -> None:
    for i in range(t.size):
        if not (t[i] - t[i] == 0 and base[i] - base[i] == 0):
            t[i] = 0


@jit
def _fold(sums: Any, half: int) -> float:
    while half:
        for j in range(half):
            sums[j] += sums[j + half]
        half >>= 1
    return sums[0]  # type: ignore[no-any-return]


@jit
def _moments(t: Any, rows: Any) -> None:
    half = ROW // 2
    s1, s2, s4 = np.empty(half, np.float64), np.empty(half, np.float64), np.empty(half, np.float64)
    padded = np.zeros(ROW, t.dtype)
    for row in range(rows.shape[0]):
        x = t[row * ROW : (row + 1) * ROW]
        if x.size < ROW:
            padded[: x.size] = x
            x = padded
        for j in range(half):
            a, b = np.float64(x[j]), np.float64(x[j + half])
            a2, b2 = a * a, b * b
            s1[j] = abs(a) + abs(b)
            s2[j] = a2 + b2
            s4[j] = a2 * a2 + b2 * b2
        rows[row, 0] = _fold(s1, half // 2)
        rows[row, 1] = _fold(s2, half // 2)
        rows[row, 2] = _fold(s4, half // 2)


@jit
def _histogram(
    bits: Any, magnitude: Any, claims: Any, level: int, shift: int, width: int, prefix: int, counts: Any
) -> None:
    low = (1 << width) - 1
    for i in range(bits.size):
        key = bits[i] & magnitude
        if (key >> shift) >> width == prefix and (claims.size == 0 or claims[i] == level):
            counts[(key >> shift) & low] += 1


@jit
def _count_equal(bits: Any, magnitude: Any, claims: Any, level: int, key: int) -> int:
    total = 0
    if claims.size == 0:
        for i in range(bits.size):
            total += (bits[i] & magnitude) == key
    else:
        for i in range(bits.size):
            total += (bits[i] & magnitude) == key and claims[i] == level
    return total


@jit
def _mask_top(
    bits: Any, magnitude: Any, claims: Any, level: int, key: int, keep_equal: int, equal_before: int, mask: Any
) -> int:
    rank = equal_before
    for i in range(bits.size):
        k = bits[i] & magnitude
        c = claims[i] if claims.size else level
        if c < level:
            mask[i] = k != 0
        elif c > level:
            mask[i] = 0
        elif k == key:
            mask[i] = rank < keep_equal
            rank += 1
        else:
            mask[i] = k > key
    return rank - equal_before


@jit
def _accumulate(acc: Any, t: Any, mask: Any, divide: bool, divisor: Any, weight: Any, active: Any) -> None:
    everywhere = mask.size == 0
    for i in range(acc.size):
        if (everywhere or mask[i] != 0) and t[i] != 0:
            x = t[i] / divisor if divide else t[i]
            acc[i] += x * weight
            active[i] = 1


@jit
def _accumulate_agreeing(
    acc: Any, weight_sum: Any, count: Any, signs: Any, t: Any, mask: Any, divisor: Any, weight: Any
) -> None:
    everywhere = mask.size == 0
    for i in range(acc.size):
        x = t[i] / divisor * weight
        if (everywhere or mask[i] != 0) and x != 0 and (x > 0) == (signs[i] >= 0):
            acc[i] += x
            weight_sum[i] += weight
            count[i] += 1


@jit
def _divide(acc: Any, denominator: Any, one: Any) -> None:
    for i in range(acc.size):
        acc[i] /= denominator[i] if denominator[i] != 0 else one


@jit
def _divide_by(acc: Any, denominator: Any) -> None:
    for i in range(acc.size):
        acc[i] /= denominator


@jit
def _scale(acc: Any, factor: Any) -> None:
    for i in range(acc.size):
        acc[i] *= factor


@jit
def _pair_overlap(a: Any, b: Any) -> int:
    total = 0
    for i in range(a.size):
        total += a[i] & b[i]
    return total


def _frozen(array: Numbers) -> Numbers:
    """A read-only view, so that each kernel is compiled for one kind of input buffer only."""
    view = array.view()
    view.flags.writeable = False
    return view


def _bits(t: Numbers) -> tuple[Numbers, Any]:
    """Bit patterns as signed integers, and the mask that clears the sign."""
    if t.dtype == np.float32:
        return t.view(np.int32), np.int32(0x7FFFFFFF)
    return t.view(np.int64), np.int64(0x7FFFFFFFFFFFFFFF)


class CpuKernels:
    """`Kernels` on numpy arrays. Stateless: threads may share one object."""

    def empty(self, count: int, kind: Kind) -> Numbers:
        return np.empty(count, KINDS[kind])

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
        values, base = _frozen(raw.view(RAW[dtype])), _frozen(base)
        assert values.size == base.size == out.size
        if dtype in TABLES:
            return cpu_codec.read_table(values, TABLES[dtype], base, subtract, out)
        if dtype == "BF16":
            return cpu_codec.read_bf16(values, base, subtract, out)
        if dtype == "F16":
            return cpu_codec.read_f16(values, base, subtract, out)
        return cpu_codec.read_wide(values, base, subtract, out)

    def zero_nonfinite(self, t: Numbers, base: Numbers) -> None:
        _zero_nonfinite(t, base)

    def moments(self, t: Numbers, rows: Numbers) -> None:
        assert rows.shape == (-(-t.size // ROW), 3)
        _moments(t, rows)

    def histogram(
        self, t: Numbers, claims: Numbers | None, level: int, shift: int, bits: int, prefix: int, counts: Numbers
    ) -> None:
        patterns, magnitude = _bits(t)
        _histogram(patterns, magnitude, NO_CLAIMS if claims is None else claims, level, shift, bits, prefix, counts)

    def count_equal(self, t: Numbers, claims: Numbers | None, level: int, key: int) -> int:
        patterns, magnitude = _bits(t)
        return _count_equal(patterns, magnitude, NO_CLAIMS if claims is None else claims, level, key)

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
        claims = NO_CLAIMS if claims is None else claims
        return _mask_top(patterns, magnitude, claims, level, key, keep_equal, equal_before, mask)

    def mask_blocks(
        self, t: Numbers, n: int, m: int, claims: Numbers, mask: Numbers, overlap_never: bool, drop_tail: bool
    ) -> None:
        assert 0 <= n <= m and t.size == claims.size == mask.size
        patterns, magnitude = _bits(t)
        cpu_blocks.mask_blocks(patterns, magnitude, n, m, claims, mask, overlap_never, drop_tail)

    def mask_random(self, key0: int, key1: int, first: int, probability: float, mask: Numbers) -> None:
        # (word >> 8) * 2^-24 < p exactly when (word >> 8) < ceil(p * 2^24): the product is exact in fp64
        threshold = math.ceil(min(max(probability, 0.0), 1.0) * 2.0**24)
        philox.mask_random(np.uint64(key0), np.uint64(key1), first, np.uint64(threshold), mask)

    def accumulate(
        self, acc: Numbers, t: Numbers, mask: Numbers | None, divisor: float, weight: float, active: Numbers
    ) -> None:
        real = acc.dtype.type
        mask = NO_MASK if mask is None else mask
        _accumulate(acc, t, mask, divisor != 1.0, real(divisor), real(weight), active)

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
        mask = NO_MASK if mask is None else mask
        _accumulate_agreeing(acc, weight_sum, count, signs, t, mask, real(divisor), real(weight))

    def divide(self, acc: Numbers, denominator: Numbers | float) -> None:
        real = acc.dtype.type
        if isinstance(denominator, np.ndarray):
            _divide(acc, denominator, denominator.dtype.type(1))
        elif real(denominator) != 0:
            _divide_by(acc, real(denominator))

    def scale(self, acc: Numbers, factor: float) -> None:
        _scale(acc, acc.dtype.type(factor))

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
        own = _frozen(base_raw.view(RAW[out_dtype]) if same else out)
        base = _frozen(base)
        assert out.size == base.size == acc.size == active.size
        if out_dtype in NARROW:
            return cpu_codec.write_narrow(own, same, base, acc, active, NARROW[out_dtype], saturate, out)
        largest, nan = np.finfo(WIDE[out_dtype]).max, WIDE[out_dtype](math.nan)
        return cpu_codec.write_wide(own, same, base, acc, active, largest, nan, saturate, out)

    def convert(self, values: Numbers, out_dtype: str, saturate: bool, out_raw: Numbers) -> int:
        out, values = out_raw.view(RAW[out_dtype]), _frozen(values)
        assert out.size == values.size
        if out_dtype in NARROW:
            return cpu_codec.round_narrow(values, NARROW[out_dtype], saturate, out)
        largest, nan = np.finfo(WIDE[out_dtype]).max, WIDE[out_dtype](math.nan)
        return cpu_codec.round_wide(values, largest, nan, saturate, out)

    def pair_overlap(self, a: Numbers, b: Numbers) -> int:
        return _pair_overlap(a, b)

    def count(self, mask: Numbers) -> int:
        return int(np.count_nonzero(mask))
