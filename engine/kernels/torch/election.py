"""What EMR-Merging computes, in torch."""

from __future__ import annotations

import torch
from torch import Tensor


def elect(elected: Tensor, signs: Tensor, t: Tensor) -> None:
    """Replace what is smaller by what agrees."""
    better = ((t > 0) == (signs > 0)) & (t.abs() > elected.abs())
    elected.copy_(torch.where(better, t, elected))


def agreeing(t: Tensor, elected: Tensor) -> Tensor:
    """Bool: both above or both below 0."""
    return ((t > 0) & (elected > 0)) | ((t < 0) & (elected < 0))


def packed(mask: Tensor) -> Tensor:
    """u8 [ceil(L / 8)]: padded with zeros, then the sum of eight columns of powers of two."""
    padded = torch.zeros(-(-mask.numel() // 8) * 8, dtype=torch.uint8, device=mask.device)
    padded[: mask.numel()] = mask
    powers = 1 << torch.arange(8, device=mask.device)
    return (padded.view(-1, 8) * powers).sum(1).to(torch.uint8)


def unpacked(bits: Tensor, first: int, count: int) -> Tensor:
    """Bool [count]: bits from number `first` on."""
    at = torch.arange(first, first + count, device=bits.device)
    return (bits[at >> 3] >> (at & 7).to(torch.uint8)) & 1 != 0
