"""What EMR-Merging computes on the CPU: the value that an elected sign leaves, who agrees with it, and packed masks."""

from __future__ import annotations

from typing import Any

from .compile import jit


@jit
def elect(elected: Any, signs: Any, t: Any) -> None:
    """elected = t where t has the elected sign and is larger; without a branch, so that it vectorises."""
    for i in range(t.size):
        x, best = t[i], elected[i]
        agrees = (x > 0) == (signs[i] > 0)
        elected[i] = x if agrees & (abs(x) > abs(best)) else best


@jit
def mask_agreeing(t: Any, elected: Any, mask: Any) -> None:
    """Signs are compared, not a product, which may underflow."""
    for i in range(t.size):
        mask[i] = ((t[i] > 0) & (elected[i] > 0)) | ((t[i] < 0) & (elected[i] < 0))


@jit
def pack_bits(mask: Any, out: Any) -> None:
    """Whole bytes, then what is left over."""
    whole = mask.size // 8
    for j in range(whole):
        m = mask[8 * j : 8 * j + 8]
        low = m[0] | m[1] << 1 | m[2] << 2 | m[3] << 3
        out[j] = low | m[4] << 4 | m[5] << 5 | m[6] << 6 | m[7] << 7
    if mask.size % 8:
        rest = 0
        for i in range(8 * whole, mask.size):
            rest |= mask[i] << (i - 8 * whole)
        out[whole] = rest


@jit
def add_where(values: Any, change: Any, bits: Any, skip: int, factor: Any) -> None:
    """values += change * factor where the bit is set."""
    for i in range(values.size):
        at = skip + i
        total = values[i] + change[i] * factor
        values[i] = total if (bits[at >> 3] >> (at & 7)) & 1 else values[i]
