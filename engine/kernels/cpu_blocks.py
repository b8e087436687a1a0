"""The n:m selection on the CPU: the n best candidates of each block, without sorting.

Magnitudes are compared as integer keys. A block's cut is found by counting keys above a guess: such a pass over 256
keys takes some ten nanoseconds because it vectorises, and the cut of the block before is a good guess. Every step is
exact, so the result does not depend on the guesses.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compile import jit

RANKED = 16
"""Up to this block size, comparing every pair of keys is quicker than searching."""
GUESSES = 4
"""Claim levels whose last cuts are remembered separately; higher levels share one."""


@jit
def count_from(keys: Any, least: Any) -> Any:
    """Number of keys >= least, counted in the keys' own type so that all lanes of a vector work."""
    kind = keys.dtype.type
    total = kind(0)
    for i in range(keys.size):
        total = kind(total + (kind(1) if keys[i] >= least else kind(0)))
    return np.int64(total)


@jit
def span(keys: Any, low: Any, high: Any) -> Any:
    """The smallest and the largest key in [low, high); there is one."""
    least, most = high, low
    for i in range(keys.size):
        key = keys[i]
        least = min(least, key if key >= low else high)
        most = max(most, key if key < high else low)
    return np.int64(least), np.int64(most)


@jit
def find_cut(keys: Any, want: int, guess: Any, reach: Any, step: Any, largest: Any) -> Any:
    """Where to cut so that the `want` largest positive keys lie above.

    The bracket [low, high) is opened around the guess (by `step` at first, then by `reach`, then by more) until
    count(keys >= low) >= want > count(keys >= high), and then closed by interpolation; every third step shrinks it to
    keys that exist, so that a few distinct magnitudes cannot slow it down.

    Returns:
        cut, count(keys >= cut), count(keys > cut). The first count is `want`, or cut is the want-th largest key, or cut
        is 1 and fewer keys than `want` are positive. The second count is valid in the second case only.
    """
    kind = keys.dtype.type
    low, high = guess, guess
    n_low = n_high = count_from(keys, kind(guess))
    while n_high >= want:
        low, n_low = high, n_high
        if high >= largest - step:
            high, n_high = largest, 0
        else:
            high += step
            n_high = count_from(keys, kind(high))
        step = min(max(4 * step, reach), largest >> 2)
    step = reach
    while n_low < want:
        if low == 1:
            return low, n_low, n_low
        high, n_high = low, n_low
        low = max(low - step, 1)
        n_low = count_from(keys, kind(low))
        step = min(4 * step, largest >> 2)
    turn = 0
    while n_low != want and high - low > 1:
        turn += 1
        if turn % 3 == 0:
            low, high = span(keys, kind(low), kind(high))
            high += 1
            middle = (low + high) >> 1
        else:
            share = np.float64(n_low - want) / np.float64(n_low - n_high)
            middle = low + np.int64(np.float64(high - low) * share)
        middle = max(low + 1, min(middle, high - 1))
        if middle == high:
            break
        n = count_from(keys, kind(middle))
        if n >= want:
            low, n_low = middle, n
        else:
            high, n_high = middle, n
    return low, n_low, n_high


@jit
def after_ones(flags: Any, count: Any) -> int:
    """The index just behind the count-th 1 in bytes of 0 or 1; their number is a multiple of 8."""
    words = flags.view(np.uint64)
    word = 0
    while word < words.size:
        ones = (words[word] * np.uint64(0x0101010101010101)) >> np.uint64(56)  # the sum of eight bytes
        if np.int64(ones) >= count:
            break
        count -= np.int64(ones)
        word += 1
    i = 8 * word
    while i < flags.size and count > 0:
        count -= flags[i]
        i += 1
    return i


@jit
def take_by_search(
    keys: Any, want: int, guess: Any, reach: Any, tied: bool, largest: Any, taken: Any, equal: Any
) -> Any:
    """taken = 1 for the `want` largest positive keys, equal ones by index.

    Returns how many that are, the cut, and whether keys tied at the cut.
    """
    cut, found, above = find_cut(keys, want, guess, reach, 1 if tied else reach, largest)
    least, end = keys.dtype.type(cut), keys.size
    tied = found > want
    if tied:
        for i in range(keys.size):
            equal[i] = keys[i] == least
        end = after_ones(equal, want - above)
    for i in range(keys.size):
        taken[i] = (keys[i] > least) | ((keys[i] == least) & (np.int32(i) < np.int32(end)))
    return min(found, want), cut, tied


@jit
def take_by_rank(keys: Any, want: int, ranks: Any, taken: Any) -> int:
    """The same by counting for each key how many come before it."""
    kind = keys.dtype.type
    for i in range(keys.size):
        ranks[i] = kind(-1)  # every key counts itself below
    for j in range(keys.size):
        key = keys[j]
        for i in range(keys.size):
            other = kind(keys[i] + (kind(1) if np.int32(i) < np.int32(j) else kind(0)))
            ranks[i] = kind(ranks[i] + (kind(1) if key >= other else kind(0)))
    total = 0
    for i in range(keys.size):
        taken[i] = (ranks[i] < want) & (keys[i] > 0)
        total += taken[i]
    return total


@jit
def mask_blocks(
    bits: Any, largest: Any, n: int, m: int, claims: Any, mask: Any, overlap_never: bool, drop_tail: bool
) -> None:
    """`bits`: t's bit patterns as signed integers; `largest`: the largest of that type, which also clears the sign."""
    kind = bits.dtype.type
    padded = (m + 7) // 8 * 8
    scratch, ranks = np.empty(m, bits.dtype), np.empty(m, bits.dtype)
    flags, equals = np.zeros(padded, np.uint8), np.zeros(padded, np.uint8)
    guesses, ties = np.empty(GUESSES, np.int64), np.zeros(GUESSES, np.bool_)
    for i in range(GUESSES):
        guesses[i] = np.int64(largest) >> 1
    reach = np.int64(largest) >> 11  # sixteen 128ths of a power of two in fp32
    for start in range(0, bits.size, m):
        length = min(m, bits.size - start)
        want = n if length == m else 0 if drop_tail else (n * length + m // 2) // m
        block, claim, kept = bits[start : start + length], claims[start : start + length], mask[start : start + length]
        keys, taken = scratch[:length], flags[:length]
        for i in range(length):
            kept[i] = 0
        level = 0
        while want > 0:
            for i in range(length):
                keys[i] = kind(block[i] & largest) if claim[i] == np.uint8(level) else kind(0)
            if m <= RANKED:
                found = take_by_rank(keys, want, ranks, taken)
            else:
                g = min(level, GUESSES - 1)
                for i in range(length, padded):
                    equals[i] = 0
                found, cut, tied = take_by_search(
                    keys, want, guesses[g], reach, ties[g], np.int64(largest), taken, equals
                )
                guesses[g] = cut if tied or start == 0 else guesses[g] + ((cut - guesses[g]) >> 2)
                ties[g] = tied
            for i in range(length):
                kept[i] |= taken[i]
            want -= found
            level += 1
            if want == 0 or overlap_never:
                break
            highest = np.uint8(0)
            for i in range(length):
                highest = max(highest, claim[i])
            if level > highest:
                break
        for i in range(length):
            claim[i] += kept[i]
