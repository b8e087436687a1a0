"""Float dtypes of safetensors in torch: their formats, and numbers rounded to them once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Format(NamedTuple):
    """A float dtype of safetensors in torch's terms."""

    dtype: torch.dtype
    bits: torch.dtype
    """the integer dtype of the same size"""
    largest: float
    nan: int
    """code of the positive quiet NaN"""


FORMATS = {
    "F64": Format(torch.float64, torch.int64, torch.finfo(torch.float64).max, 0x7FF8000000000000),
    "F32": Format(torch.float32, torch.int32, torch.finfo(torch.float32).max, 0x7FC00000),
    "F16": Format(torch.float16, torch.int16, torch.finfo(torch.float16).max, 0x7E00),
    "BF16": Format(torch.bfloat16, torch.int16, torch.finfo(torch.bfloat16).max, 0x7FC0),
    "F8_E4M3": Format(torch.float8_e4m3fn, torch.int8, torch.finfo(torch.float8_e4m3fn).max, 0x7F),
    "F8_E5M2": Format(torch.float8_e5m2, torch.int8, torch.finfo(torch.float8_e5m2).max, 0x7F),
}
LARGEST_TO_E4M3 = 464.0
"""The tie that still rounds to 448. Torch releases differ in what they make of larger values, so we decide it here."""


def to_float32_odd(values: Tensor) -> Tensor:
    """float64 -> float32 rounded to odd: rounding that again to a narrow dtype gives the once-rounded result."""
    nearest = values.float()
    back = nearest.double()
    bits = nearest.view(torch.int32)
    other = torch.where(back.abs() < values.abs(), bits + 1, bits - 1)
    move = (back != values) & ~values.isnan() & ((bits & 1) == 0)
    return torch.where(move, other, bits).view(torch.float32)


def round_to(values: Tensor, dtype: str, clamp: Tensor) -> tuple[Tensor, Tensor]:
    """Round once to nearest even; where `clamp`, infinities and overflow become the largest finite value.

    Returns:
        codes as integers of the dtype's size, and where the result is not finite.
    """
    form = FORMATS[dtype]
    narrow = dtype not in ("F32", "F64")
    single = to_float32_odd(values) if narrow and values.dtype == torch.float64 else values
    rounded = single.to(form.dtype)
    nan = values.isnan()
    if dtype == "F8_E4M3":
        beyond = single.abs() > LARGEST_TO_E4M3
        unclamped = torch.full_like(rounded.view(form.bits), form.nan)
        unclamped = torch.where(values < 0, unclamped - 128, unclamped)  # the sign bit
    else:
        beyond = rounded.double().isinf()
        unclamped = rounded.view(form.bits)
    limit = torch.full_like(values, form.largest, dtype=torch.float64).copysign(values).to(form.dtype).view(form.bits)
    codes = torch.where(beyond, torch.where(clamp, limit, unclamped), rounded.view(form.bits))
    codes = torch.where(nan, torch.full_like(codes, form.nan), codes)
    return codes, nan | (beyond & ~clamp)
