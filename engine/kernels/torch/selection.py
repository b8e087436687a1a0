"""How elements are ordered and drawn, in torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def keys_of(t: Tensor) -> Tensor:
    """Bit patterns of |t| as int64: they order magnitudes."""
    if t.dtype == torch.float32:
        return (t.view(torch.int32) & 0x7FFFFFFF).long()
    return t.view(torch.int64) & 0x7FFFFFFFFFFFFFFF


def take_best(keys: Tensor, claims: Tensor, n: int) -> Tensor:
    """Bool [blocks, m]: the first n of each row by claims ascending, key descending, index ascending."""
    order = keys.sort(dim=1, descending=True, stable=True).indices
    order = order.gather(1, claims.gather(1, order).sort(dim=1, stable=True).indices)
    taken = torch.zeros_like(keys, dtype=torch.bool)
    taken.scatter_(1, order[:, :n], True)
    return taken


def philox(counter: Sequence[Tensor], key0: int, key1: int) -> Tensor:
    """Philox4x32-10 of four int64 tensors of 32-bit counter words -> int64 [4, counters] of 32-bit words."""
    low = 0xFFFFFFFF

    def multiply(a: Tensor, factor: int) -> tuple[Tensor, Tensor]:
        product = a * factor  # wraps as unsigned 64-bit arithmetic does
        return (product >> 32) & low, product & low

    c0, c1, c2, c3 = counter
    for _ in range(10):
        high0, low0 = multiply(c0, 0xD2511F53)
        high1, low1 = multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) & low, (key1 + 0xBB67AE85) & low
    return torch.stack([c0, c1, c2, c3])


def uniform(key0: int, key1: int, first: int, count: int, device: torch.device) -> Tensor:
    """All four words of every counter that the tile touches, then the tile's part of them, as fp64 in [0, 1)."""
    start = first // 4
    counter = torch.arange(start, (first + count + 3) // 4, device=device)
    zero = torch.zeros_like(counter)
    words = philox((counter & 0xFFFFFFFF, counter >> 32, zero, zero), key0, key1).T.reshape(-1)
    return (words[first - 4 * start :][:count] >> 8).double() * 2.0**-24


def ascending_ranks(keys: Tensor) -> Tensor:
    """int64 [rows * row]: each key's rank in its row, 0 for the smallest; of equal ones the first ranks highest."""
    row = keys.shape[1]
    places = keys.sort(dim=1, descending=True, stable=True).indices
    from_one = torch.arange(row - 1, -1, -1, device=keys.device).expand_as(places).contiguous()
    return torch.empty_like(places).scatter_(1, places, from_one).view(-1)
