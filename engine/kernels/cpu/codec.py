"""The six float dtypes on the CPU: bytes to real numbers, and back with one rounding to nearest even."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .compile import jit

WIDE = {"F32": np.float32, "F64": np.float64}
RAW = {**WIDE, "F16": np.uint16, "BF16": np.uint16, "F8_E4M3": np.uint8, "F8_E5M2": np.uint8}
"""What numpy calls the elements of each dtype: numbers, or codes of the formats that it does not know."""


class Narrow(NamedTuple):
    """A float format of at most 16 bits, as `encode` needs it."""

    mantissa_bits: np.uint32
    bias: np.uint32
    largest: np.uint32
    """code of the largest finite value"""
    overflow: np.uint32
    """code of what rounds beyond it; the sign is kept"""
    nan: np.uint32
    sign_shift: np.uint32
    """how far the fp32 sign bit moves to the right"""


def _narrow(*numbers: int) -> Narrow:
    return Narrow(*(np.uint32(number) for number in numbers))


NARROW = {
    "BF16": _narrow(7, 127, 0x7F7F, 0x7F80, 0x7FC0, 16),
    "F16": _narrow(10, 15, 0x7BFF, 0x7C00, 0x7E00, 16),
    "F8_E4M3": _narrow(3, 7, 0x7E, 0x7F, 0x7F, 24),
    "F8_E5M2": _narrow(2, 15, 0x7B, 0x7C, 0x7F, 24),
}


def _table(mantissa_bits: int, bias: int, infinities: bool) -> npt.NDArray[np.float32]:
    """Values of the 256 codes of an 8-bit format."""
    values = []
    for code in range(128):
        exponent, mantissa = code >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
        if exponent:
            values.append(math.ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits))
        else:
            values.append(math.ldexp(mantissa, 1 - bias - mantissa_bits))
    if infinities:
        values[0x7C:] = [math.inf, math.nan, math.nan, math.nan]
    else:
        values[0x7F] = math.nan
    half = np.array(values, np.float32)
    return np.concatenate([half, -half])


TABLES = {"F8_E4M3": _table(3, 7, False), "F8_E5M2": _table(2, 15, True)}

ONE, SIGN, MAGNITUDE = np.uint32(1), np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
INFINITE = np.uint32(0x7F800000)


@jit
def count_nonfinite(values: Any) -> int:
    """Number of NaN and infinite elements; one quick pass when there are none."""
    some = False
    for i in range(values.size):
        some |= values[i] - values[i] != 0
    total = 0
    if some:
        for i in range(values.size):
            total += values[i] - values[i] != 0
    return total


@jit
def count_matching(codes: Any, exponent: Any) -> int:
    """Number of codes whose exponent bits are all ones."""
    total = 0
    for i in range(codes.size):
        total += (codes[i] & exponent) == exponent
    return total


@jit
def read_wide(raw: Any, base: Any, subtract: bool, out: Any) -> Any:
    """F32 or F64 -> out = value, or value - base; returns the number of non-finite values, as all readers do."""
    if subtract:
        for i in range(out.size):
            out[i] = raw[i] - base[i]
    else:
        for i in range(out.size):
            out[i] = raw[i]
    return count_nonfinite(raw)


@jit
def read_bf16(raw: Any, base: Any, subtract: bool, out: Any) -> int:
    """BF16 is the upper half of fp32."""
    worst = np.uint16(0)
    if subtract:
        for i in range(out.size):
            worst = max(worst, np.uint16(raw[i] & np.uint16(0x7FFF)))
            out[i] = np.uint32(np.uint32(raw[i]) << np.uint32(16)).view(np.float32) - base[i]
    else:
        for i in range(out.size):
            worst = max(worst, np.uint16(raw[i] & np.uint16(0x7FFF)))
            out[i] = np.uint32(np.uint32(raw[i]) << np.uint32(16)).view(np.float32)
    return count_matching(raw, np.uint16(0x7F80)) if worst >= np.uint16(0x7F80) else 0


@jit
def half_to_float(code: Any) -> Any:
    """One F16 code -> float32. Subnormals are made by an exact subtraction."""
    shifted = np.uint32(np.uint32(code & np.uint16(0x7FFF)) << np.uint32(13))
    exponent = shifted & np.uint32(0x0F800000)
    normal = np.uint32(shifted + np.uint32(0x38000000))
    if exponent == np.uint32(0x0F800000):
        normal = np.uint32(normal + np.uint32(0x38000000))
    tiny = np.uint32(shifted + np.uint32(0x38800000)).view(np.float32) - np.float32(2.0**-14)
    magnitude = tiny if exponent == 0 else np.uint32(normal).view(np.float32)
    return -magnitude if code >= np.uint16(0x8000) else magnitude


@jit
def read_f16(raw: Any, base: Any, subtract: bool, out: Any) -> int:
    """F16 by integer arithmetic, which vectorises."""
    some = False
    if subtract:
        for i in range(out.size):
            some |= (raw[i] & 0x7C00) == 0x7C00
            out[i] = half_to_float(raw[i]) - base[i]
    else:
        for i in range(out.size):
            some |= (raw[i] & 0x7C00) == 0x7C00
            out[i] = half_to_float(raw[i])
    return count_matching(raw, np.uint16(0x7C00)) if some else 0


@jit
def read_table(raw: Any, table: Any, base: Any, subtract: bool, out: Any) -> int:
    """An 8-bit format by its table of 256 values."""
    some = False
    for i in range(out.size):
        value = table[raw[i]]
        some |= value - value != 0
        out[i] = value - base[i] if subtract else value
    total = 0
    if some:
        for i in range(out.size):
            value = table[raw[i]]
            total += value - value != 0
    return total


@jit
def to_float32_odd(value: Any) -> Any:
    """float64 -> float32 rounded to odd: rounding that again to a narrow format gives the once-rounded result.

    A float32 comes back as it is (the compiler sees it and removes the rest).
    """
    nearest = np.float32(value)
    bits = np.float32(nearest).view(np.uint32)
    inexact = (nearest != value) & (value == value)
    step = ONE if abs(nearest) < abs(value) else np.uint32(0xFFFFFFFF)
    moved = np.uint32(bits + step)
    odd = moved if inexact & ((bits & ONE) == 0) else bits
    return np.uint32(odd).view(np.float32)


@jit
def to_bf16(value: Any) -> Any:
    """float32 -> BF16 code, rounded to nearest even; NaN becomes the positive quiet NaN."""
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & ONE)
    code = np.uint32(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
    return code if value == value else np.uint32(0x7FC0)


@jit
def encode(value: Any, narrow: Any) -> Any:
    """The same for any narrow format; what rounds beyond the largest finite value becomes the overflow code."""
    if narrow.mantissa_bits == np.uint32(7):
        return np.uint32(to_bf16(value))
    bits = np.float32(value).view(np.uint32)
    magnitude = np.uint32(bits & MAGNITUDE)
    drop = np.uint32(np.uint32(23) - narrow.mantissa_bits)
    smallest_normal = np.uint32(np.uint32(np.uint32(128) - narrow.bias) << np.uint32(23))
    # The power of two at or below the value, or the smallest normal one. Adding it 2^drop times as large rounds to the
    # format's last bit; what the sum has more than the addend is the mantissa, with the leading one of a normal number.
    power = max(np.uint32(magnitude & INFINITE), smallest_normal)
    addend = np.uint32(power + np.uint32(drop << np.uint32(23)))
    rounded = np.float32(np.uint32(magnitude).view(np.float32) + np.uint32(addend).view(np.float32))
    mantissa = np.uint32(rounded.view(np.uint32) - addend)
    code = min(np.uint32(mantissa + np.uint32(np.uint32(power - smallest_normal) >> drop)), narrow.overflow)
    code = np.uint32(code | np.uint32(np.uint32(bits & SIGN) >> narrow.sign_shift))
    return np.uint32(narrow.nan) if magnitude > INFINITE else code


@jit
def magnitude_of(narrow: Any) -> Any:
    """The mask that clears the sign of a code."""
    return np.uint32(np.uint32(SIGN >> narrow.sign_shift) - ONE)


@jit
def settle(value: Any, counted: bool, narrow: Any, saturate: bool, out: Any, i: int) -> int:
    """Clamp or count one non-finite code; returns 1 where it stays non-finite and is `counted`."""
    if not counted:
        return 0
    if saturate and value == value:
        sign = np.uint32(SIGN >> narrow.sign_shift) if value < 0 else np.uint32(0)
        out[i] = np.uint32(narrow.largest | sign)
        return 0
    return 1


@jit
def write_narrow(own: Any, same: bool, base: Any, acc: Any, active: Any, narrow: Any, saturate: bool, out: Any) -> int:
    """Codes of base + acc where active, else `own` (the base's codes, if `same`) or the base rounded."""
    magnitude = magnitude_of(narrow)
    worst = np.uint32(0)
    if same and narrow.mantissa_bits == np.uint32(7):
        for i in range(out.size):
            code, kept = np.uint32(to_bf16(to_float32_odd(base[i] + acc[i]))), np.uint32(own[i])
            code = code if active[i] != 0 else kept
            worst = max(worst, np.uint32(code & magnitude))
            out[i] = code
    elif same:
        for i in range(out.size):
            code, kept = np.uint32(encode(to_float32_odd(base[i] + acc[i]), narrow)), np.uint32(own[i])
            code = code if active[i] != 0 else kept
            worst = max(worst, np.uint32(code & magnitude))
            out[i] = code
    else:
        for i in range(out.size):
            before, after = base[i], base[i] + acc[i]
            code = np.uint32(encode(to_float32_odd(after if active[i] != 0 else before), narrow))
            worst = max(worst, np.uint32(code & magnitude))
            out[i] = code
    total = 0
    if worst > narrow.largest:
        for i in range(out.size):
            if (out[i] & magnitude) > narrow.largest:
                value = base[i] + acc[i] if active[i] != 0 else base[i]
                counted = active[i] != 0 or (not same and value - value == 0)
                total += settle(value, counted, narrow, saturate, out, i)
    return total


@jit
def round_narrow(values: Any, narrow: Any, saturate: bool, out: Any) -> int:
    """Codes of values."""
    magnitude = magnitude_of(narrow)
    worst = np.uint32(0)
    for i in range(out.size):
        code = np.uint32(encode(to_float32_odd(values[i]), narrow))
        worst = max(worst, np.uint32(code & magnitude))
        out[i] = code
    total = 0
    if worst > narrow.largest:
        for i in range(out.size):
            if (out[i] & magnitude) > narrow.largest:
                total += settle(values[i], True, narrow, saturate, out, i)
    return total


@jit
def clamp_wide(rounded: Any, value: Any, largest: Any, nan: Any, clamp: bool) -> Any:
    """What F32 or F64 holds for a rounded value."""
    limited = max(min(rounded, largest), -largest) if clamp else rounded
    return limited if value == value else nan


@jit
def write_wide(
    own: Any, same: bool, base: Any, acc: Any, active: Any, largest: Any, nan: Any, saturate: bool, out: Any
) -> int:
    """F32 or F64 of base + acc where active, else `own` or the base; largest and nan are of out's type."""
    kind = out.dtype.type
    some = False
    for i in range(out.size):
        before, after, changed, kept = base[i], base[i] + acc[i], active[i] != 0, own[i]
        value = after if changed else before
        clamp = saturate & (changed | (before - before == 0))
        rounded = clamp_wide(kind(value), value, largest, nan, clamp)
        some |= rounded - rounded != 0
        out[i] = kept if same & (not changed) else rounded
    total = 0
    if some:
        for i in range(out.size):
            changed = (active[i] != 0) | (base[i] - base[i] == 0)
            total += (out[i] - out[i] != 0) & changed
    return total


@jit
def round_wide(values: Any, largest: Any, nan: Any, saturate: bool, out: Any) -> Any:
    """F32 or F64 of values."""
    kind = out.dtype.type
    for i in range(out.size):
        value = values[i]
        out[i] = clamp_wide(kind(value), value, largest, nan, saturate)
    return count_nonfinite(out)
