"""The n:m selection on the CPU: the n best candidates of each block, without sorting."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compile import jit


@jit
def select(keys: Any, length: int, want: int, taken: Any) -> int:
    """taken[i] = 1 for the `want` largest positive keys, equal ones by index; returns how many there were to take."""
    high = 0
    for i in range(length):
        high = max(high, keys[i])
    positive = 0
    for i in range(length):
        positive += keys[i] > 0
    if positive <= want:
        for i in range(length):
            taken[i] |= keys[i] > 0
        return positive
    low, high = 1, high + 1  # count(keys >= low) > want, count(keys >= high) = 0
    found = positive
    while high - low > 1 and found != want:
        middle = low + ((high - low) >> 1)
        count = 0
        for i in range(length):
            count += keys[i] >= middle
        if count >= want:
            low, found = middle, count
        else:
            high = middle
    excess = found - want
    for i in range(length - 1, -1, -1):
        if keys[i] >= low:
            if excess > 0 and keys[i] == low:
                excess -= 1
            else:
                taken[i] = 1
    return want


@jit
def mask_blocks(
    bits: Any, magnitude: Any, n: int, m: int, claims: Any, mask: Any, overlap_never: bool, drop_tail: bool
) -> None:
    """bits: t's bit patterns as signed integers; magnitude: the mask that clears the sign."""
    keys = np.empty(m, bits.dtype)
    for start in range(0, bits.size, m):
        length = min(m, bits.size - start)
        want = n if length == m else 0 if drop_tail else (n * length + m // 2) // m
        for i in range(length):
            mask[start + i] = 0
        level = 0
        while want > 0:
            highest = 0
            for i in range(length):
                keys[i] = bits[start + i] & magnitude if claims[start + i] == level else 0
                highest = max(highest, claims[start + i])
            want -= select(keys, length, want, mask[start : start + length])
            level += 1
            if overlap_never or level > highest:
                break
        for i in range(length):
            claims[start + i] += mask[start + i]
