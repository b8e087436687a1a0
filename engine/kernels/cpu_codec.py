"""The six float dtypes on the CPU: bytes to real numbers, and back with one rounding to nearest even."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .compile import jit

WIDE = {"F32": np.float32, "F64": np.float64}
RAW = {"F64": np.float64, "F32": np.float32, "F16": np.uint16, "BF16": np.uint16, "F8_E4M3": np.uint8, "F8_E5M2": np.uint8}


class Narrow(NamedTuple):
    """A float format of at most 16 bits, as `encode` needs it."""

    mantissa_bits: np.uint32
    bias: np.uint32
    largest: np.uint32
    """code of the largest finite value"""
    overflow: np.uint32
    """code of what lies beyond it"""
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
        some |= not (values[i] - values[i] == 0)
    total = 0
    if some:
        for i in range(values.size):
            total += not (values[i] - values[i] == 0)
    return total


@jit
def read_wide(raw: Any, base: Any, subtract: bool, out: Any) -> int:
    """raw F32 or F64 -> out = raw (- base)."""
    if subtract:
        for i in range(out.size):
            out[i] = raw[i] - base[i]
    else:
        for i in range(out.size):
            out[i] = raw[i]
    return count_nonfinite(raw)


@jit
def read_bf16(raw: Any, base: Any, subtract: bool, out: Any) -> int:
    """raw u16 -> out = value (- base)."""
    some = False
    if subtract:
        for i in range(out.size):
            bits = np.uint32(np.uint32(raw[i]) << np.uint32(16))
            some |= (bits & INFINITE) == INFINITE
            out[i] = bits.view(np.float32) - base[i]
    else:
        for i in range(out.size):
            bits = np.uint32(np.uint32(raw[i]) << np.uint32(16))
            some |= (bits & INFINITE) == INFINITE
            out[i] = bits.view(np.float32)
    total = 0
    if some:
        for i in range(out.size):
            total += (raw[i] & 0x7F80) == 0x7F80
    return total


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
    """raw u16 -> out = value (- base)."""
    some = False
    if subtract:
        for i in range(out.size):
            some |= (raw[i] & 0x7C00) == 0x7C00
            out[i] = half_to_float(raw[i]) - base[i]
    else:
        for i in range(out.size):
            some |= (raw[i] & 0x7C00) == 0x7C00
            out[i] = half_to_float(raw[i])
    total = 0
    if some:
        for i in range(out.size):
            total += (raw[i] & 0x7C00) == 0x7C00
    return total


@jit
def read_table(raw: Any, table: Any, base: Any, subtract: bool, out: Any) -> int:
    """raw u8, values of its 256 codes -> out = value (- base)."""
    total = 0
    if subtract:
        for i in range(out.size):
            value = table[raw[i]]
            total += not (value - value == 0)
            out[i] = value - base[i]
    else:
        for i in range(out.size):
            value = table[raw[i]]
            total += not (value - value == 0)
            out[i] = value
    return total


@jit
def to_float32_odd(value: Any) -> Any:
    """float64 -> float32 rounded to odd, so that a second rounding to a narrow format gives the once-rounded result."""
    nearest = np.float32(value)
    back = np.float64(nearest)
    bits = np.float32(nearest).view(np.uint32)
    inexact = back != value and value == value
    if inexact and (bits & ONE) == 0:
        bits = np.uint32(bits + ONE) if abs(back) < abs(value) else np.uint32(bits - ONE)
    return np.uint32(bits).view(np.float32)


@jit
def encode(value: Any, narrow: Any, clamp: bool) -> Any:
    """float32 -> code of a narrow format, rounded to nearest even.

    What lies beyond the largest finite value becomes that value if `clamp`, else the overflow code; NaN becomes the
    positive quiet NaN.
    """
    bits = np.float32(value).view(np.uint32)
    magnitude = np.uint32(bits & MAGNITUDE)
    drop = np.uint32(np.uint32(23) - narrow.mantissa_bits)
    # Adding a power of two whose ulp is the format's smallest subnormal rounds a subnormal result correctly.
    magic = np.uint32(np.uint32(np.uint32(128) - narrow.bias + drop) << np.uint32(23))
    sum_ = np.float32(np.uint32(magnitude).view(np.float32) + np.uint32(magic).view(np.float32))
    tiny = np.uint32(sum_.view(np.uint32) - magic)
    odd = np.uint32(np.uint32(magnitude >> drop) & ONE)
    rebias = np.uint32(np.uint32(np.uint32(127) - narrow.bias) << np.uint32(23))
    half = np.uint32(np.uint32(ONE << np.uint32(drop - ONE)) - ONE)
    normal = np.uint32(np.uint32(magnitude - rebias + half + odd) >> drop)
    smallest_normal = np.uint32(np.uint32(np.uint32(128) - narrow.bias) << np.uint32(23))
    code = tiny if magnitude < smallest_normal else normal
    if code > narrow.largest or magnitude >= INFINITE:
        code = narrow.largest if clamp else narrow.overflow
    signed = np.uint32(code | np.uint32(np.uint32(bits & SIGN) >> narrow.sign_shift))
    return narrow.nan if magnitude > INFINITE or code == narrow.nan else signed


@jit
def write_narrow(own: Any, same: bool, base: Any, acc: Any, active: Any, narrow: Any, saturate: bool, out: Any) -> int:
    """Codes of base + acc where active, else `own` (the base's codes, if `same`) or the base rounded."""
    magnitude = np.uint32(np.uint32(SIGN >> narrow.sign_shift) - ONE)
    some = False
    for i in range(out.size):
        value = base[i] + acc[i] if active[i] != 0 else base[i]
        clamp = saturate and (active[i] != 0 or base[i] - base[i] == 0)
        code = encode(to_float32_odd(value), narrow, clamp)
        code = np.uint32(own[i]) if same and active[i] == 0 else code
        some |= np.uint32(code & magnitude) > narrow.largest
        out[i] = code
    total = 0
    if some:
        for i in range(out.size):
            finite = (out[i] & magnitude) <= narrow.largest
            total += not finite and (active[i] != 0 or base[i] - base[i] == 0)
    return total


@jit
def round_narrow(values: Any, narrow: Any, saturate: bool, out: Any) -> int:
    """Codes of values."""
    magnitude = np.uint32(np.uint32(SIGN >> narrow.sign_shift) - ONE)
    some = False
    for i in range(out.size):
        code = encode(to_float32_odd(values[i]), narrow, saturate)
        some |= np.uint32(code & magnitude) > narrow.largest
        out[i] = code
    total = 0
    if some:
        for i in range(out.size):
            total += (out[i] & magnitude) > narrow.largest
    return total


@jit
def write_wide(
    own: Any, same: bool, base: Any, acc: Any, active: Any, largest: Any, nan: Any, saturate: bool, out: Any
) -> int:
    """The same for F32 and F64; largest and nan are of out's type."""
    total = 0
    for i in range(out.size):
        value = base[i] + acc[i] if active[i] != 0 else base[i]
        out[i] = value
        rounded = out[i]
        if not (rounded - rounded == 0):
            repair = active[i] != 0 or value - value == 0
            if not (rounded == rounded):
                out[i] = nan
            elif saturate and repair:
                out[i] = largest if rounded > 0 else -largest
            total += repair and not (saturate and rounded == rounded)
        if same and active[i] == 0:
            out[i] = own[i]
    return total


@jit
def round_wide(values: Any, largest: Any, nan: Any, saturate: bool, out: Any) -> int:
    """values as F32 or F64."""
    total = 0
    for i in range(out.size):
        out[i] = values[i]
        rounded = out[i]
        if not (rounded - rounded == 0):
            if not (rounded == rounded):
                out[i] = nan
                total += 1
            elif saturate:
                out[i] = largest if rounded > 0 else -largest
            else:
                total += 1
    return total
