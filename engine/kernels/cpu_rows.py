"""Rows of a matrix on the CPU: sums of each row in the defined order, divergences of rows, factors per row."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import ROW
from .compile import jit
from .rowwise import (
    EPSILON,
    EXP_SERIES,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    LOG_SERIES,
    LOG_SHIFT,
    LOWEST,
    TO_WHOLE,
    WINDOW,
)


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
def exp(x: float, powers: Any) -> float:
    """exp x for x <= 0; 0 below LOWEST and for NaN."""
    inside = x if x > LOWEST else LOWEST  # noqa: FURB136 (NaN becomes LOWEST)
    whole = (inside * LOG2_E + TO_WHOLE) - TO_WHOLE
    rest = (inside - whole * LN2_HIGH) - whole * LN2_LOW
    value = 0.0
    for i in range(len(EXP_SERIES)):
        value = value * rest + EXP_SERIES[i]
    result: float = value * powers[int(-whole)] if x > LOWEST else 0.0
    return result


@jit
def log(x: float, powers: Any) -> float:
    """log x for x between 2^-LOG_SHIFT and 2^LOG_SHIFT."""
    mantissa, exponent = x / powers[LOG_SHIFT], -float(LOG_SHIFT)
    step = 32
    while step:
        scaled = mantissa * powers[step]
        if scaled >= 1.0:
            mantissa = scaled
            exponent += step
        step >>= 1
    if mantissa > 1.4142135623730951:
        mantissa *= 0.5
        exponent += 1.0
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square, value = s * s, 0.0
    for i in range(len(LOG_SERIES)):
        value = value * square + LOG_SERIES[i]
    result: float = exponent * LN2_HIGH + (2.0 * (s * value) + exponent * LN2_LOW)
    return result


@jit
def softmax(x: Any, out: Any, powers: Any, terms: Any, chunks: Any) -> None:
    """out f64 [width] = exp(x - max x) / sum + EPSILON. Scratch: terms f64 [width]."""
    largest = x[0]
    for j in range(x.size):
        largest = x[j] if x[j] > largest else largest  # noqa: FURB136 (skips NaN)
    high = np.float64(largest)
    for j in range(x.size):
        out[j] = exp(np.float64(x[j]) - high, powers)
        terms[j] = out[j]
    total = ordered_sum(terms, chunks)
    for j in range(x.size):
        out[j] = out[j] / total + EPSILON


@jit
def row_divergence(w: Any, base: Any, out: Any, powers: Any, scratch: Any, chunks: Any) -> None:
    """sum p log(p / q) of each row, not below 0; p and q are the softmax of w and base. Scratch f64 [3, width]."""
    p, q, terms = scratch[0], scratch[1], scratch[2]
    width = terms.size
    for row in range(out.size):
        softmax(w[row * width : (row + 1) * width], p, powers, terms, chunks)
        softmax(base[row * width : (row + 1) * width], q, powers, terms, chunks)
        for j in range(width):
            terms[j] = p[j] * log(p[j] / q[j], powers)
        total = ordered_sum(terms, chunks)
        out[row] = max(total, 0.0)


@jit
def scale_rows(t: Any, factors: Any, width: int, out: Any) -> None:
    """out = |t| * factor of its row, rounded to t's type first."""
    kind = t.dtype.type
    for row in range(factors.size):
        factor = kind(factors[row])
        for j in range(row * width, (row + 1) * width):
            out[j] = abs(t[j]) * factor


@jit
def accumulate_rows(acc: Any, t: Any, factors: Any, width: int, active: Any) -> None:
    """acc += t * factor of its row, rounded to t's type first, where t != 0."""
    kind, nothing = t.dtype.type, t.dtype.type(-0.0)
    for row in range(factors.size):
        factor = kind(factors[row])
        for j in range(row * width, (row + 1) * width):
            value = t[j]
            acc[j] += value * factor if value != 0 else nothing
            active[j] |= np.uint8(value != 0)
