"""Rows of a matrix as torch operations: what `cpu.rowwise` does, on whole tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..elementary import (
    EPSILON,
    EXP_SERIES,
    FACTORS,
    HALVINGS,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    LOG_SCALE,
    LOG_SERIES,
    LOG_SHIFT,
    LOG_STEP,
    LOWEST,
    SQRT_2,
    TO_WHOLE,
    WINDOW,
)
from ..row_sums import ROW


def fold(term: Tensor) -> Tensor:
    """Sums over the last dimension, a power of two, in halves."""
    half = term.shape[-1] // 2
    while half:
        term = term[..., :half] + term[..., half : 2 * half]
        half //= 2
    return term[..., 0]


def ordered_sums(terms: Tensor) -> Tensor:
    """float64 [rows, width] -> [rows]: each row in the order of a whole tensor."""
    total = torch.zeros(terms.shape[0], dtype=torch.float64, device=terms.device)
    for start in range(0, terms.shape[1], WINDOW):
        part = terms[:, start : start + WINDOW]
        row = min(ROW, _power_of_two(part.shape[1]))
        count = -(-part.shape[1] // row)
        sums = fold(_padded(part, count * row).view(-1, count, row))
        total = total + fold(_padded(sums, _power_of_two(count)))
    return total


def _power_of_two(count: int) -> int:
    """The least that is no less: halves that are all padding would change no bit of a sum that begins with +0.0."""
    return 1 << (count - 1).bit_length()


def _padded(terms: Tensor, width: int) -> Tensor:
    """Rows of so many terms, with +0.0 behind."""
    return terms if terms.shape[1] == width else torch.nn.functional.pad(terms, (0, width - terms.shape[1]))


def add_groups(terms: Tensor, rows: int, out: Tensor) -> None:
    """out [groups, width] = sums of each column of terms over groups of `rows` rows, row after row from 0.

    The same row of all groups is added at once; the last group apart where it is shorter.
    """
    whole = terms.shape[0] // rows
    out.zero_()
    for row in range(rows if whole else 0):
        out[:whole] += terms[: whole * rows].view(whole, rows, -1)[:, row]
    for term in terms[whole * rows :]:
        out[whole] += term


def exp(x: Tensor) -> Tensor:
    """exp x for x <= 0; 0 below LOWEST and for NaN."""
    low = ~(x > LOWEST)
    inside = x.masked_fill(low, LOWEST)
    whole = (inside * LOG2_E + TO_WHOLE) - TO_WHOLE
    rest = (inside - whole * LN2_HIGH) - whole * LN2_LOW
    value = torch.zeros_like(rest)
    for c in EXP_SERIES:
        value = value * rest + c
    for halving, factor in zip(HALVINGS, FACTORS, strict=True):
        due = whole <= -halving
        value, whole = torch.where(due, value * factor, value), torch.where(due, whole + halving, whole)
    return value.masked_fill(low, 0.0)


def log(x: Tensor) -> Tensor:
    """log x for x between 2^-LOG_SHIFT and 2^LOG_SHIFT."""
    mantissa, exponent = x * LOG_SCALE, torch.full_like(x, -LOG_SHIFT)
    for halving, factor in zip(HALVINGS[LOG_STEP:], FACTORS[LOG_STEP:], strict=True):
        scaled = mantissa * factor
        large = scaled >= 1.0
        mantissa, exponent = torch.where(large, scaled, mantissa), torch.where(large, exponent + halving, exponent)
    large = mantissa > SQRT_2
    mantissa, exponent = torch.where(large, mantissa * 0.5, mantissa), torch.where(large, exponent + 1.0, exponent)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square, value = s * s, torch.zeros_like(s)
    for c in LOG_SERIES:
        value = value * square + c
    return exponent * LN2_HIGH + (2.0 * (s * value) + exponent * LN2_LOW)


def softmax(x: Tensor) -> Tensor:
    """float64 [rows, width]: exp(x - max x) / sum + EPSILON of each row."""
    x = x.double()
    values = exp(x - x.amax(dim=1, keepdim=True))
    return values / ordered_sums(values)[:, None] + EPSILON


def divergence(w: Tensor, base: Tensor) -> Tensor:
    """[rows]: sum p log(p / q), not below 0."""
    p, q = softmax(w), softmax(base)
    return ordered_sums(p * log(p / q)).clamp(min=0.0)
