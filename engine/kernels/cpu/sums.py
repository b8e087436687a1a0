"""Elementwise sums on the CPU: statistics in the defined order, and the folding of task vectors into an accumulator."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..row_sums import ROW
from .compile import jit

EIGHTH = ROW // 8


@jit
def zero_nonfinite(t: Any, base: Any) -> None:
    """t = +0.0 where t or base is not finite."""
    zero = t.dtype.type(0)
    for i in range(t.size):
        value, reference = t[i], base[i]
        t[i] = value if (value - value == 0) & (reference - reference == 0) else zero


@jit
def fold_thrice(values: Any, size: int) -> None:
    """Add the upper half of the first `size` numbers to the lower half, three times: an eighth of them is left."""
    step = size // 8
    for j in range(step):
        even = (values[j] + values[j + 4 * step]) + (values[j + 2 * step] + values[j + 6 * step])
        odd = (values[j + step] + values[j + 5 * step]) + (values[j + 3 * step] + values[j + 7 * step])
        values[j] = even + odd


@jit
def fold(sums: Any) -> float:
    """Fold in halves what the first three foldings of a row leave, f64 [EIGHTH]."""
    fold_thrice(sums, EIGHTH)
    fold_thrice(sums, EIGHTH // 8)
    fold_thrice(sums, EIGHTH // 64)
    return sums[0]  # type: ignore[no-any-return]


@jit
def pad(x: Any, padded: Any) -> None:
    """Copy a short row into scratch, and zeros behind it."""
    for j in range(x.size):
        padded[j] = x[j]
    for j in range(x.size, padded.size):
        padded[j] = 0


@jit
def norms(x: Any, first: Any, second: Any) -> None:
    """Three foldings of |x| and x^2 of a row, in registers; f64 [EIGHTH] each."""
    wide = np.float64
    x0, x1, x2, x3 = x[:EIGHTH], x[EIGHTH:], x[2 * EIGHTH :], x[3 * EIGHTH :]
    x4, x5, x6, x7 = x[4 * EIGHTH :], x[5 * EIGHTH :], x[6 * EIGHTH :], x[7 * EIGHTH :]
    for j in range(EIGHTH):
        a0, a1, a2, a3 = wide(abs(x0[j])), wide(abs(x1[j])), wide(abs(x2[j])), wide(abs(x3[j]))
        a4, a5, a6, a7 = wide(abs(x4[j])), wide(abs(x5[j])), wide(abs(x6[j])), wide(abs(x7[j]))
        first[j] = ((a0 + a4) + (a2 + a6)) + ((a1 + a5) + (a3 + a7))
        b0, b1, b2, b3, b4, b5, b6, b7 = a0 * a0, a1 * a1, a2 * a2, a3 * a3, a4 * a4, a5 * a5, a6 * a6, a7 * a7
        second[j] = ((b0 + b4) + (b2 + b6)) + ((b1 + b5) + (b3 + b7))


@jit
def fourths(x: Any, sums: Any) -> None:
    """The same of x^4."""
    wide = np.float64
    x0, x1, x2, x3 = x[:EIGHTH], x[EIGHTH:], x[2 * EIGHTH :], x[3 * EIGHTH :]
    x4, x5, x6, x7 = x[4 * EIGHTH :], x[5 * EIGHTH :], x[6 * EIGHTH :], x[7 * EIGHTH :]
    for j in range(EIGHTH):
        a0, a1, a2, a3, a4, a5 = wide(x0[j]), wide(x1[j]), wide(x2[j]), wide(x3[j]), wide(x4[j]), wide(x5[j])
        a6, a7 = wide(x6[j]), wide(x7[j])
        b0, b1, b2, b3, b4, b5, b6, b7 = a0 * a0, a1 * a1, a2 * a2, a3 * a3, a4 * a4, a5 * a5, a6 * a6, a7 * a7
        even = (b0 * b0 + b4 * b4) + (b2 * b2 + b6 * b6)
        sums[j] = even + ((b1 * b1 + b5 * b5) + (b3 * b3 + b7 * b7))


@jit
def moments(t: Any, rows: Any, sums: Any, padded: Any) -> None:
    """Sums of |t|, t^2 and, where `rows` has a place for it, t^4 of each row.

    Scratch: sums f64 [2, EIGHTH], padded [ROW] of t's type.
    """
    first, second = sums[0], sums[1]
    for row in range(rows.shape[0]):
        x = t[row * ROW : (row + 1) * ROW]
        if x.size < ROW:
            pad(x, padded)
            x = padded
        norms(x, first, second)
        rows[row, 0], rows[row, 1] = fold(first), fold(second)
        if rows.shape[1] > 2:
            fourths(x, first)
            rows[row, 2] = fold(first)


@jit
def squares(t: Any, rows: Any, padded: Any, narrow: Any, sums: Any) -> None:
    """Sums of t^2 of each row. The first three foldings happen in registers, as numbers of t's type.

    Scratch: padded [ROW] and narrow [EIGHTH] of t's type, sums f64 [EIGHTH].
    """
    for row in range(rows.size):
        x = t[row * ROW : (row + 1) * ROW]
        if x.size < ROW:
            pad(x, padded)
            x = padded
        x0, x1, x2, x3 = x[:EIGHTH], x[EIGHTH:], x[2 * EIGHTH :], x[3 * EIGHTH :]
        x4, x5, x6, x7 = x[4 * EIGHTH :], x[5 * EIGHTH :], x[6 * EIGHTH :], x[7 * EIGHTH :]
        for j in range(EIGHTH):
            b0, b1, b2, b3 = x0[j] * x0[j], x1[j] * x1[j], x2[j] * x2[j], x3[j] * x3[j]
            b4, b5, b6, b7 = x4[j] * x4[j], x5[j] * x5[j], x6[j] * x6[j], x7[j] * x7[j]
            narrow[j] = ((b0 + b4) + (b2 + b6)) + ((b1 + b5) + (b3 + b7))
        for j in range(EIGHTH):
            sums[j] = narrow[j]
        rows[row] = fold(sums)


@jit
def dots(a: Any, b: Any, rows: Any, sums: Any, padded: Any) -> None:
    """Sums of a * b of each row, folded as in `moments`. Scratch: sums f64 [EIGHTH], padded [2, ROW] of a's type."""
    wide = np.float64
    for row in range(rows.size):
        x, y = a[row * ROW : (row + 1) * ROW], b[row * ROW : (row + 1) * ROW]
        if x.size < ROW:
            for j in range(x.size):
                padded[0, j], padded[1, j] = x[j], y[j]
            for j in range(x.size, ROW):
                padded[0, j], padded[1, j] = 0, 0
            x, y = padded[0], padded[1]
        for j in range(EIGHTH):
            p0 = wide(x[j]) * wide(y[j])
            p1 = wide(x[j + EIGHTH]) * wide(y[j + EIGHTH])
            p2 = wide(x[j + 2 * EIGHTH]) * wide(y[j + 2 * EIGHTH])
            p3 = wide(x[j + 3 * EIGHTH]) * wide(y[j + 3 * EIGHTH])
            p4 = wide(x[j + 4 * EIGHTH]) * wide(y[j + 4 * EIGHTH])
            p5 = wide(x[j + 5 * EIGHTH]) * wide(y[j + 5 * EIGHTH])
            p6 = wide(x[j + 6 * EIGHTH]) * wide(y[j + 6 * EIGHTH])
            p7 = wide(x[j + 7 * EIGHTH]) * wide(y[j + 7 * EIGHTH])
            sums[j] = ((p0 + p4) + (p2 + p6)) + ((p1 + p5) + (p3 + p7))
        rows[row] = fold(sums)


@jit
def accumulate(acc: Any, t: Any, mask: Any, divide: bool, divisor: Any, weight: Any, active: Any) -> None:
    """acc += t / divisor * weight where mask (empty: everywhere) and t != 0. Adding -0.0 changes no number."""
    nothing = acc.dtype.type(-0.0)
    if mask.size == 0:
        for i in range(acc.size):
            value = t[i]
            x = (value / divisor if divide else value) * weight
            acc[i] += x if value != 0 else nothing
            active[i] |= np.uint8(value != 0)
    else:
        for i in range(acc.size):
            value = t[i]
            x = (value / divisor if divide else value) * weight
            keep = (mask[i] != 0) & (value != 0)
            acc[i] += x if keep else nothing
            active[i] |= np.uint8(keep)


@jit
def accumulate_agreeing(
    acc: Any, weight_sum: Any, count: Any, signs: Any, t: Any, mask: Any, divisor: Any, weight: Any
) -> None:
    """The same where the sign agrees; mask may not be empty."""
    nothing = acc.dtype.type(-0.0)
    for i in range(acc.size):
        x = t[i] / divisor * weight
        keep = (mask[i] != 0) & (((x > 0) & (signs[i] >= 0)) | ((x < 0) & (signs[i] < 0)))
        acc[i] += x if keep else nothing
        weight_sum[i] += weight if keep else nothing
        count[i] += np.uint8(keep)


@jit
def accumulate_shared(acc: Any, t: Any, mask: Any, claims: Any, weight: Any, active: Any) -> None:
    """acc += t * weight where one claims the element, t / claims where several do; where mask and t != 0."""
    kind, nothing = acc.dtype.type, acc.dtype.type(-0.0)
    for i in range(acc.size):
        value, count = t[i], claims[i]
        x = value * weight if count == 1 else value / kind(max(count, 1))
        keep = (mask[i] != 0) & (value != 0)
        acc[i] += x if keep else nothing
        active[i] |= np.uint8(keep)


@jit
def shorten(t: Any, bound: Any, least: Any, zero: Any, one: Any) -> None:
    """t *= share, the part of t that the bound allows."""
    for i in range(t.size):
        value = t[i]
        size = abs(value)
        share = bound / (max(least, size))
        share = max(zero, share)
        t[i] = value * (min(one, share))


@jit
def divide(acc: Any, denominator: Any) -> None:
    """acc /= denominator, 0 counting as 1."""
    kind = acc.dtype.type
    for i in range(acc.size):
        by = kind(denominator[i])
        acc[i] /= by if by != 0 else kind(1)


@jit
def divide_by(acc: Any, denominator: Any) -> None:
    """acc /= number."""
    for i in range(acc.size):
        acc[i] /= denominator


@jit
def scale(acc: Any, factor: Any) -> None:
    """acc *= number."""
    for i in range(acc.size):
        acc[i] *= factor


@jit
def add(acc: Any, t: Any) -> None:
    """acc += t."""
    for i in range(acc.size):
        acc[i] += t[i]


@jit
def add_square_of_difference(acc: Any, t: Any, other: Any) -> None:
    """acc += (t - other)^2."""
    for i in range(acc.size):
        difference = t[i] - other[i]
        acc[i] += difference * difference


@jit
def score(t: Any, factors: Any, column: int, out: Any) -> None:
    """out = |t| times the factor of each element's column; t starts in `column`."""
    begin = 0
    while begin < t.size:
        length = min(t.size - begin, factors.size - column)
        part, factor, result = t[begin : begin + length], factors[column : column + length], out[begin : begin + length]
        for i in range(length):
            result[i] = abs(part[i]) * factor[i]
        begin += length
        column = 0


@jit
def count_both(a: Any, b: Any, lanes: Any) -> int:
    """Number of elements of both masks, which have at most 255 times as many as `lanes`, u8 scratch."""
    for j in range(lanes.size):
        lanes[j] = 0
    for begin in range(0, a.size, lanes.size):
        x, y = a[begin : begin + lanes.size], b[begin : begin + lanes.size]
        for j in range(x.size):
            lanes[j] += x[j] & y[j]
    total = 0
    for j in range(lanes.size):
        total += lanes[j]
    return total


@jit
def count_number(claims: Any, number: Any, lanes: Any) -> int:
    """Number of claims that are `number`; otherwise as `count_both`."""
    for j in range(lanes.size):
        lanes[j] = 0
    for begin in range(0, claims.size, lanes.size):
        x = claims[begin : begin + lanes.size]
        for j in range(x.size):
            lanes[j] += np.uint8(x[j] == number)
    total = 0
    for j in range(lanes.size):
        total += lanes[j]
    return total


@jit
def pair_overlap(a: Any, b: Any) -> int:
    """Number of ones in both."""
    total = 0
    for i in range(a.size):
        total += a[i] & b[i]
    return total
