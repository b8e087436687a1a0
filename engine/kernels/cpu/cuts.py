"""Order statistics and cuts of whole tensors on the CPU: histograms of integer keys, and masks from the key they find.

`bits` are t's bit patterns as signed integers; `largest` is the largest of that type, which also clears the sign.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..window_calls import NEAR_ABOVE, NEAR_HIGH, NEAR_LOW, NEAR_ZERO
from .compile import jit

CHUNK = 2048
GROUP = 32
"""Elements that are looked at together, to see whether any is wanted."""


@jit
def count_all(bits: Any, largest: Any, shift: int, width: int, counts: Any) -> None:
    """A histogram of every key."""
    low = (1 << width) - 1
    for i in range(bits.size):
        counts[((bits[i] & largest) >> shift) & low] += 1


@jit
def count_some(
    bits: Any, largest: Any, claims: Any, level: int, shift: int, width: int, prefix: int, counts: Any, bins: Any
) -> None:
    """A histogram of the keys below one prefix and at one claim level (claims empty: any).

    Chosen bins are first packed into a list (scratch: bins u16 [CHUNK]) without a branch, as a branch would be
    mispredicted too often.
    """
    low = (1 << width) - 1
    for start in range(0, bits.size, CHUNK):
        part, claim = bits[start : start + CHUNK], claims[start : start + CHUNK]
        chosen: Any = 0
        for i in range(part.size):
            key = part[i] & largest
            bins[chosen] = (key >> shift) & low
            at_level = claim[i] == level if claim.size else True
            chosen += np.int64(((key >> shift) >> width == prefix) & at_level)
        for i in range(chosen):
            counts[bins[i]] += 1


@jit
def list_inside(bits: Any, largest: Any, low: Any, high: Any, inside: Any, number: int) -> None:
    """Pack the keys strictly between low and high into a list that holds `number`; most groups of keys hold none."""
    last, place = inside.size - 1, np.int64(number)
    for start in range(0, bits.size, GROUP):
        group = bits[start : start + GROUP]
        some = np.uint32(0)
        for i in range(group.size):
            key = group[i] & largest
            some |= np.uint32((low < key) & (key < high))
        if some:
            for i in range(group.size):
                key = group[i] & largest
                at = min(place, last)
                inside[at] = key if place <= last else inside[at]  # a full list keeps its last key
                place += np.int64((low < key) & (key < high))


@jit
def count_at(bits: Any, largest: Any, key: Any, counts: Any) -> None:
    """`count_near` where both ends are the same key and nothing lies inside, as in most 16-bit checkpoints."""
    for start in range(0, bits.size, CHUNK):
        part = bits[start : start + CHUNK]
        above, from_key, zeros = np.uint32(0), np.uint32(0), np.uint32(0)
        for i in range(part.size):
            magnitude = part[i] & largest
            above = np.uint32(above + np.uint32(magnitude > key))
            from_key = np.uint32(from_key + np.uint32(magnitude >= key))
            zeros = np.uint32(zeros + np.uint32(magnitude == 0))
        counts[NEAR_ABOVE] += np.int64(above)
        counts[NEAR_HIGH] += np.int64(from_key) - np.int64(above)
        counts[NEAR_LOW] += np.int64(from_key) - np.int64(above)
        counts[NEAR_ZERO] += np.int64(zeros)


@jit
def count_near(bits: Any, largest: Any, low: Any, high: Any, counts: Any, inside: Any, number: int) -> int:
    """`Kernels.count_near`, with `number` keys in `inside` already; returns how many there are now.

    Counting vectorises.
    """
    if low == high:
        count_at(bits, largest, high, counts)
        return number
    for start in range(0, bits.size, CHUNK):
        part = bits[start : start + CHUNK]
        above, from_high, above_low = np.uint32(0), np.uint32(0), np.uint32(0)
        from_low, zeros = np.uint32(0), np.uint32(0)
        for i in range(part.size):
            key = part[i] & largest
            above = np.uint32(above + np.uint32(key > high))
            from_high = np.uint32(from_high + np.uint32(key >= high))
            above_low = np.uint32(above_low + np.uint32(key > low))
            from_low = np.uint32(from_low + np.uint32(key >= low))
            zeros = np.uint32(zeros + np.uint32(key == 0))
        counts[NEAR_ABOVE] += np.int64(above)
        counts[NEAR_HIGH] += np.int64(from_high) - np.int64(above)
        counts[NEAR_LOW] += np.int64(from_low) - np.int64(above_low)
        counts[NEAR_ZERO] += np.int64(zeros)
        between = np.int64(above_low) - np.int64(from_high)
        if between > 0 and inside.size:
            list_inside(part, largest, low, high, inside, number)
        number += max(int(between), 0)
    return number


@jit
def count_equal(bits: Any, largest: Any, claims: Any, level: Any, key: Any) -> int:
    """Number of elements with one key, at one claim level (claims empty: any)."""
    total = 0
    if claims.size == 0:
        for i in range(bits.size):
            total += (bits[i] & largest) == key
    else:
        for i in range(bits.size):
            total += ((bits[i] & largest) == key) & (claims[i] == level)
    return total


@jit
def cut_chunk(bits: Any, largest: Any, claims: Any, level: Any, key: Any, keep_equals: bool, mask: Any) -> Any:
    """The mask of a few elements whose equals are all kept or all dropped; returns the number of equals."""
    total = np.uint32(0)
    if claims.size == 0:
        for i in range(bits.size):
            magnitude = bits[i] & largest
            mask[i] = (magnitude > key) | ((magnitude == key) & keep_equals)
            total = np.uint32(total + np.uint32(magnitude == key))
    else:
        for i in range(bits.size):
            magnitude, claim = bits[i] & largest, claims[i]
            above = (magnitude > key) | ((magnitude == key) & keep_equals)
            mask[i] = ((claim == level) & above) | ((claim < level) & (magnitude != 0))
            total = np.uint32(total + np.uint32((magnitude == key) & (claim == level)))
    return np.int64(total)


@jit
def mask_top(
    bits: Any, largest: Any, claims: Any, level: Any, key: Any, keep_equal: int, equal_before: int, mask: Any
) -> int:
    """`Kernels.mask_top`. Only the one chunk in which the share of equals runs out is looked at element by element."""
    rank = equal_before
    for start in range(0, bits.size, CHUNK):
        part, claim, kept = bits[start : start + CHUNK], claims[start : start + CHUNK], mask[start : start + CHUNK]
        equals = cut_chunk(part, largest, claim, level, key, rank < keep_equal, kept)
        if rank < keep_equal < rank + equals:
            share = keep_equal - rank
            for i in range(part.size):
                if (part[i] & largest) == key and (claim.size == 0 or claim[i] == level):
                    kept[i] = share > 0
                    share -= 1
        rank += equals
    return rank - equal_before
