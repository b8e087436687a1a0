"""The n:m selection on the CPU: the n best elements of each block, without sorting.

Magnitudes are compared as integer keys. A block's cut is found by counting keys above a guess: such a pass over 256
keys takes some ten nanoseconds because it vectorises, and the cut of the block before is a good guess. Every step is
exact, so the result does not depend on the guesses. Loops do one simple thing each: that is what vectorises.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compile import jit

RANKED = 16
"""Up to this block size, comparing every pair of keys is quicker than searching."""
LEVELS = 4
"""Claim levels whose last cuts are remembered separately; higher levels share the last place."""


@jit
def count_from(keys: Any, length: int, least: Any) -> Any:
    """Number of keys >= least, counted in the keys' own type so that all lanes of a vector work."""
    kind = keys.dtype.type
    total = kind(0)
    for i in range(length):
        total = kind(total + (kind(1) if keys[i] >= least else kind(0)))
    return np.int64(total)


@jit
def count_around(keys: Any, length: int, cut: Any) -> Any:
    """Number of keys >= cut, and of keys > cut."""
    kind = keys.dtype.type
    total, above = kind(0), kind(0)
    for i in range(length):
        total = kind(total + (kind(1) if keys[i] >= cut else kind(0)))
        above = kind(above + (kind(1) if keys[i] > cut else kind(0)))
    return np.int64(total), np.int64(above)


@jit
def span(keys: Any, length: int, low: Any, high: Any) -> Any:
    """The smallest and the largest key in [low, high); there is one."""
    least, most = high, low
    for i in range(length):
        key = keys[i]
        least = min(least, key if key >= low else high)
        most = max(most, key if key < high else low)
    return np.int64(least), np.int64(most)


@jit
def find_cut(keys: Any, length: int, want: int, guess: Any, found: Any, spacing: Any, largest: Any) -> Any:
    """Where to cut so that the `want` largest positive keys lie above, from `found` = count(keys >= guess).

    The next place to look at is `spacing` (the usual distance of two keys) away for each element too many or too few;
    if that fails twice, it is further and further away. When the cut lies in [low, high), it is interpolated. Every
    fourth step shrinks the bracket to keys that exist and halves it: neither a few distinct magnitudes nor wild ones
    can slow the search down.

    Returns:
        cut, count(keys >= cut), count(keys > cut), spacing. The first count is `want`, or cut is the want-th largest
        key, or cut is 1 and fewer keys than `want` are positive. The second count holds in the second case only.
    """
    kind = keys.dtype.type
    low, n_low = np.int64(0), np.int64(0)  # until a lower bound is known
    high, n_high = largest, np.int64(0)  # until an upper bound is known
    place, n, turn = guess, found, 0
    while True:
        if n >= want:
            low, n_low = place, n
        else:
            high, n_high = place, n
        if n == want or high - low == 1:
            break
        turn += 1
        if low == 0 or high == largest:
            far = min(abs(n - want), 1024) * spacing + 1 if turn < 3 else largest >> max(14 - 2 * turn, 2)
            place += min(far, high - 1 - place) if n > want else -min(far, place - low - 1)
        elif turn % 4 == 0:
            low, high = span(keys, length, kind(low), kind(high))
            high += 1
            if high - low == 1:
                break
            place = low + ((high - low) >> 1)  # the sum might not fit
        else:
            share = np.float64(n_low - want) / np.float64(n_low - n_high)
            place = low + np.int64(np.float64(high - low) * share)
            place = max(low + 1, min(place, high - 1))
        n = count_from(keys, length, kind(place))
        if turn == 1 and n != found:
            spacing += (abs(place - guess) // abs(n - found) - spacing) >> 3
            spacing = max(1, min(spacing, largest >> 12))
    if low == 0:
        return np.int64(1), n_high, n_high, spacing
    return low, n_low, n_high, spacing


@jit
def clear_ones(flags: Any, count: Any) -> None:
    """Clear the first `count` ones among bytes of 0 or 1; their number is a multiple of 8."""
    words = flags.view(np.uint64)
    word = 0
    while word < words.size:
        ones = np.int64((words[word] * np.uint64(0x0101010101010101)) >> np.uint64(56))  # the sum of eight bytes
        if ones > count:
            break
        count -= ones
        words[word] = 0
        word += 1
    i = 8 * word
    while i < flags.size and count > 0:
        count -= np.int64(flags[i])
        flags[i] = 0
        i += 1


@jit
def take_by_search(
    keys: Any, length: int, want: int, memory: Any, row: int, largest: Any, taken: Any, equal: Any
) -> Any:
    """taken = 1 for the `want` largest positive keys, equal ones by index; returns how many that are.

    A row of `memory` holds the last cut, the usual spacing of keys, and whether keys were equal at the cut: then the
    very same cut is likely, as in differences of 16-bit checkpoints.
    """
    kind = keys.dtype.type
    guess, spacing = memory[row, 0], memory[row, 1]
    if memory[row, 2]:
        found, above = count_around(keys, length, kind(guess))
        if above >= want:
            guess, found = guess + 1, above
    else:
        found, above = count_from(keys, length, kind(guess)), np.int64(want)
    cut = guess
    if found < want or above >= want:
        cut, found, above, spacing = find_cut(keys, length, want, guess, found, spacing, largest)
    tied = found > want
    memory[row, 0] = cut if tied else max(guess + ((cut - guess) >> 2), 1)
    memory[row, 1], memory[row, 2] = spacing, np.int64(tied)
    least = kind(cut)
    if not tied:
        for i in range(length):
            taken[i] = keys[i] >= least
        return found
    for i in range(length):
        taken[i], equal[i] = keys[i] >= least, keys[i] == least
    for i in range(length, equal.size):
        equal[i] = 0
    clear_ones(equal, want - above)
    for i in range(length):
        taken[i] ^= equal[i]
    return np.int64(want)


@jit
def take_by_rank(keys: Any, length: int, want: int, ranks: Any, taken: Any) -> Any:
    """The same by counting for each key how many come before it."""
    kind = keys.dtype.type
    for i in range(length):
        ranks[i] = kind(-1)  # every key counts itself below
    for j in range(length):
        key = keys[j]
        for i in range(length):
            other = kind(keys[i] + (kind(1) if np.int32(i) < np.int32(j) else kind(0)))
            ranks[i] = kind(ranks[i] + (kind(1) if key >= other else kind(0)))
    total = np.int64(0)
    for i in range(length):
        taken[i] = (ranks[i] < want) & (keys[i] > 0)
        total += np.int64(taken[i])
    return total


@jit
def candidates(bits: Any, largest: Any, claims: Any, level: int, first: Any, length: int, keys: Any) -> None:
    """Keys of one block; 0 for what is claimed more or less often than `level` times."""
    kind = bits.dtype.type
    for i in range(length):
        e = first + np.uint64(i)
        keys[i] = bits[e] & largest & kind(-kind(claims[e] == np.uint8(level)))


@jit
def places_at(claims: Any, level: int, first: Any, length: int) -> Any:
    """How many elements of one block are claimed `level` times."""
    total = np.uint32(0)
    for i in range(length):
        total = np.uint32(total + np.uint32(claims[first + np.uint64(i)] == np.uint8(level)))
    return np.int64(total)


@jit
def start_search(memory: Any, largest: Any) -> None:
    """Guesses before the first block; memory i64 [LEVELS, 3]."""
    for level in range(LEVELS):
        memory[level, 0], memory[level, 1], memory[level, 2] = np.int64(largest) >> 1, np.int64(largest) >> 15, 0


@jit
def mask_blocks(
    bits: Any,
    largest: Any,
    n: int,
    m: int,
    claims: Any,
    mask: Any,
    overlap_never: bool,
    drop_tail: bool,
    scratch: Any,
    flags: Any,
    memory: Any,
) -> None:
    """`Kernels.mask_blocks`; arguments as those of `mask_next_blocks`."""
    start_search(memory, largest)
    mask_next_blocks(bits, largest, n, m, claims, mask, overlap_never, drop_tail, scratch, flags, memory)


@jit
def mask_next_blocks(
    bits: Any,
    largest: Any,
    n: int,
    m: int,
    claims: Any,
    mask: Any,
    overlap_never: bool,
    drop_tail: bool,
    scratch: Any,
    flags: Any,
    memory: Any,
) -> None:
    """`bits`: t's bit patterns as signed integers; `largest`: the largest of that type, which also clears the sign.

    Scratch: two rows of m keys, two rows of flags u8 whose length is the next multiple of 8, memory i64 [LEVELS, 3].

    Elements of a block are addressed by unsigned indices, which cannot be negative and so are not checked for it;
    slices instead would cost a counted reference in every block.
    """
    keys, ranks, taken, equal = scratch[0], scratch[1], flags[0], flags[1]
    for start in range(0, bits.size, m):
        first, length = np.uint64(start), min(m, bits.size - start)
        want = n if length == m else 0 if drop_tail else (n * length + m // 2) // m
        level = 0
        if want == 0:
            for i in range(length):
                mask[first + np.uint64(i)] = 0
        while want > 0:
            candidates(bits, largest, claims, level, first, length, keys)
            if m <= RANKED:
                found = take_by_rank(keys, length, want, ranks, taken)
            else:
                row = min(level, LEVELS - 1)
                found = take_by_search(keys, length, want, memory, row, np.int64(largest), taken, equal)
            for i in range(length):
                mask[first + np.uint64(i)] = taken[i] | (mask[first + np.uint64(i)] if level > 0 else np.uint8(0))
            enough = found == want or overlap_never
            want = 0 if enough else want - places_at(claims, level, first, length)  # zeros take places, too
            level += 1
        for i in range(length):
            claims[first + np.uint64(i)] += mask[first + np.uint64(i)]
