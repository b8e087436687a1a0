"""Rows and columns of a matrix on the CPU: sums in the defined order, divergences of rows, factors of each."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..elementary import (
    EPSILON,
    EXP_SERIES,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    LOG_SCALE,
    LOG_SERIES,
    LOG_SHIFT,
    LOWEST,
    SQRT_2,
    TO_WHOLE,
    WINDOW,
)
from ..row_sums import ROW
from .compile import jit

E13, E12, E11, E10, E9, E8, E7, E6, E5, E4, E3, E2, E1, E0 = EXP_SERIES
L21, L19, L17, L15, L13, L11, L9, L7, L5, L3, L1 = LOG_SERIES


@jit
def halve(x: Any, first: int, length: int, half: int) -> float:
    """Fold x[first : first + length] in halves, as if +0.0 came behind it up to 2 * half elements."""
    while half:
        for j in range(length - half):
            x[first + j] += x[first + half + j]
        length = min(length, half)
        half >>= 1
    return x[first]  # type: ignore[no-any-return]


@jit
def ordered_sum(terms: Any, chunks: Any) -> float:
    """Sum of f64 terms in the order of a whole tensor; terms are lost. Scratch: chunks f64 [WINDOW_ROWS]."""
    total = 0.0
    for start in range(0, terms.size, WINDOW):
        end = min(start + WINDOW, terms.size)
        count = 0
        for first in range(start, end, ROW):
            chunks[count] = halve(terms, first, min(ROW, end - first), ROW // 2)
            count += 1
        total += halve(chunks, 0, count, chunks.size // 2)
    return total


@jit
def row_dots(a: Any, b: Any, out: Any, terms: Any, chunks: Any) -> None:
    """Sums of a * b of each row. Scratch: terms f64 [width]."""
    width = terms.size
    for row in range(out.size):
        x, y = a[row * width : (row + 1) * width], b[row * width : (row + 1) * width]
        for j in range(width):
            terms[j] = np.float64(x[j]) * np.float64(y[j])
        out[row] = ordered_sum(terms, chunks)


@jit
def halved(value: float, whole: float, halving: float, factor: float) -> tuple[float, float]:
    """value * factor and whole + halving where whole reaches down to -halving; the same otherwise."""
    due = whole <= -halving
    return value * (factor if due else 1.0), whole + (halving if due else 0.0)


@jit
def exp_all(x: Any, high: float, out: Any) -> None:
    """out = exp(x - high), where high is the largest x; 0 below LOWEST and for NaN.

    Written out in one loop, so that the compiler works on several numbers at once.
    """
    for j in range(out.size):
        below = np.float64(x[j]) - high
        inside = below if below > LOWEST else LOWEST  # noqa: FURB136 (NaN becomes LOWEST)
        whole = (inside * LOG2_E + TO_WHOLE) - TO_WHOLE
        r = (inside - whole * LN2_HIGH) - whole * LN2_LOW
        value = ((E13 * r + E12) * r + E11) * r + E10
        value = (((value * r + E9) * r + E8) * r + E7) * r + E6
        value = (((value * r + E5) * r + E4) * r + E3) * r + E2
        value = (value * r + E1) * r + E0
        value, whole = halved(value, whole, 512.0, 2.0**-512)
        value, whole = halved(value, whole, 256.0, 2.0**-256)
        value, whole = halved(value, whole, 128.0, 2.0**-128)
        value, whole = halved(value, whole, 64.0, 2.0**-64)
        value, whole = halved(value, whole, 32.0, 2.0**-32)
        value, whole = halved(value, whole, 16.0, 2.0**-16)
        value, whole = halved(value, whole, 8.0, 2.0**-8)
        value, whole = halved(value, whole, 4.0, 2.0**-4)
        value, whole = halved(value, whole, 2.0, 2.0**-2)
        value, whole = halved(value, whole, 1.0, 2.0**-1)
        out[j] = value if below > LOWEST else 0.0


@jit
def reduced(mantissa: float, exponent: float, halving: float, factor: float) -> tuple[float, float]:
    """mantissa * factor and exponent + halving where the mantissa stays 1 or more; the same otherwise."""
    scaled = mantissa * factor
    large = scaled >= 1.0
    return scaled if large else mantissa, exponent + (halving if large else 0.0)


@jit
def divergence_terms(p: Any, q: Any, out: Any) -> None:
    """out = p log(p / q), for quotients between 2^-LOG_SHIFT and 2^LOG_SHIFT. Written out like exp_all."""
    for j in range(out.size):
        mantissa, exponent = reduced(p[j] / q[j] * LOG_SCALE, -LOG_SHIFT, 32.0, 2.0**-32)
        mantissa, exponent = reduced(mantissa, exponent, 16.0, 2.0**-16)
        mantissa, exponent = reduced(mantissa, exponent, 8.0, 2.0**-8)
        mantissa, exponent = reduced(mantissa, exponent, 4.0, 2.0**-4)
        mantissa, exponent = reduced(mantissa, exponent, 2.0, 2.0**-2)
        mantissa, exponent = reduced(mantissa, exponent, 1.0, 2.0**-1)
        large = mantissa > SQRT_2
        mantissa *= 0.5 if large else 1.0
        exponent += 1.0 if large else 0.0
        s = (mantissa - 1.0) / (mantissa + 1.0)
        z = s * s
        value = (((L21 * z + L19) * z + L17) * z + L15) * z + L13
        value = ((((value * z + L11) * z + L9) * z + L7) * z + L5) * z + L3
        value = value * z + L1
        out[j] = p[j] * (exponent * LN2_HIGH + (2.0 * (s * value) + exponent * LN2_LOW))


@jit
def softmax(x: Any, out: Any, terms: Any, chunks: Any) -> None:
    """out f64 [width] = exp(x - max x) / sum + EPSILON. Scratch: terms f64 [width]."""
    largest = x[0]
    for j in range(x.size):
        largest = x[j] if x[j] > largest else largest  # noqa: FURB136 (skips NaN)
    high = np.float64(largest)
    exp_all(x, high, out)
    for j in range(x.size):
        terms[j] = out[j]
    total = ordered_sum(terms, chunks)
    for j in range(x.size):
        out[j] = out[j] / total + EPSILON


@jit
def row_divergence(w: Any, base: Any, out: Any, scratch: Any, chunks: Any) -> None:
    """sum p log(p / q) of each row, not below 0; p and q are the softmax of w and base. Scratch f64 [3, width]."""
    p, q, terms = scratch[0], scratch[1], scratch[2]
    width = terms.size
    for row in range(out.size):
        softmax(w[row * width : (row + 1) * width], p, terms, chunks)
        softmax(base[row * width : (row + 1) * width], q, terms, chunks)
        divergence_terms(p, q, terms)
        total = ordered_sum(terms, chunks)
        out[row] = max(total, 0.0)


@jit
def scale_rows(t: Any, factors: Any, width: int, out: Any) -> None:
    """out = |t| * factor of its row, rounded to t's type first."""
    kind = t.dtype.type
    for row in range(factors.size):
        factor = kind(factors[row])
        values, scaled = t[row * width : (row + 1) * width], out[row * width : (row + 1) * width]
        for j in range(width):
            scaled[j] = abs(values[j]) * factor


@jit
def accumulate_rows(acc: Any, t: Any, factors: Any, width: int, active: Any) -> None:
    """acc += t * factor of its row, rounded to t's type first, where t != 0."""
    kind, nothing = t.dtype.type, t.dtype.type(-0.0)
    for row in range(factors.size):
        factor = kind(factors[row])
        begin, end = row * width, (row + 1) * width
        values, total, on = t[begin:end], acc[begin:end], active[begin:end]
        for j in range(width):
            value = values[j]
            total[j] += value * factor if value != 0 else nothing
            on[j] |= np.uint8(value != 0)


@jit
def column_dots(a: Any, b: Any, rows: int, out: Any) -> None:
    """Sums of a * b of each column over groups of rows."""
    groups, width = out.shape
    for group in range(groups):
        sums = out[group]
        for j in range(width):
            sums[j] = 0.0
        for row in range(group * rows, min((group + 1) * rows, a.size // width)):
            x, y = a[row * width : (row + 1) * width], b[row * width : (row + 1) * width]
            for j in range(width):
                sums[j] += np.float64(x[j]) * np.float64(y[j])


@jit
def accumulate_columns(acc: Any, t: Any, factors: Any, active: Any) -> None:
    """acc += t * factor of its column, rounded to t's type first, where t != 0."""
    kind, nothing, width = t.dtype.type, t.dtype.type(-0.0), factors.size
    for row in range(t.size // width):
        begin, end = row * width, (row + 1) * width
        values, total, on = t[begin:end], acc[begin:end], active[begin:end]
        for j in range(width):
            value = values[j]
            total[j] += value * kind(factors[j]) if value != 0 else nothing
            on[j] |= np.uint8(value != 0)
