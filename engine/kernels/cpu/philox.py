"""Random drops on the CPU: Philox4x32-10 (Salmon et al., SC 2011), a pure function of key and element index.

Drops whose probability depends on an element's rank in its row sort by digits: linear in the length of a row.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .compile import jit

LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
MULTIPLIER_0, MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
STEP_0, STEP_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
COUNTERS = 256
"""How many counters are worked on at once: their state fits the level-1 cache."""
DIGIT = 11
"""Bits of one digit of a magnitude at the most: its 2048 counters fit the level-1 cache."""
PART_BITS = 31
"""Bits of a magnitude that are sorted by at once: all of fp32."""
PART, PLACE = np.int64(0x7FFFFFFF), np.int64(0xFFFFFFFF)


@jit
def philox(words: Any, key0: Any, key1: Any) -> None:
    """Counters u64 [4, n] -> random words in their place; only the lower 32 bits of each word count.

    Five passes of two rounds each. 64-bit lanes hold 32-bit words because products need them.
    """
    w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
    for _ in range(5):
        a0, a1, b0, b1 = key0 & LOW, key1 & LOW, (key0 + STEP_0) & LOW, (key1 + STEP_1) & LOW
        for j in range(w0.size):
            p0, p1 = (w0[j] & LOW) * MULTIPLIER_0, (w2[j] & LOW) * MULTIPLIER_1
            x0, x2 = (p1 >> HALF) ^ w1[j] ^ a0, (p0 >> HALF) ^ w3[j] ^ a1
            q0, q1 = (x0 & LOW) * MULTIPLIER_0, (x2 & LOW) * MULTIPLIER_1
            w0[j], w1[j], w2[j], w3[j] = (q1 >> HALF) ^ p1 ^ b0, q1, (q0 >> HALF) ^ p0 ^ b1, q0
        key0, key1 = b0 + STEP_0, b1 + STEP_1


@jit
def draw(words: Any, start: int, key0: Any, key1: Any) -> None:
    """The random words of COUNTERS counters from `start` on."""
    w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
    for j in range(COUNTERS):
        counter = np.uint64(start) + np.uint64(j)
        w0[j], w1[j], w2[j], w3[j] = counter & LOW, counter >> HALF, np.uint64(0), np.uint64(0)
    philox(words, key0, key1)


@jit
def below(word: Any, threshold: Any) -> Any:
    """1 where the upper 24 of 32 bits are below threshold; signed, as processors compare signed numbers faster."""
    return np.uint32(np.int64((word & LOW) >> np.uint64(8)) < threshold)


def threshold(probability: float) -> int:
    """What `mask_random` compares with: (word >> 8) * 2^-24 < p exactly when (word >> 8) < ceil(p * 2^24)."""
    return math.ceil(min(max(probability, 0.0), 1.0) * 2.0**24)


@jit
def mask_random(key0: Any, key1: Any, first: int, threshold: Any, mask: Any, words: Any, packed: Any) -> None:
    """mask[e] = 1 where the upper 24 bits of the word of flat index first + e are below threshold (an int64).

    Scratch: words u64 [4, COUNTERS], packed u32 [COUNTERS].
    """
    flags = packed.view(np.uint8)
    end = first + mask.size
    for start in range(first // 4, (end + 3) // 4, COUNTERS):
        draw(words, start, key0, key1)
        w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
        for j in range(COUNTERS):  # four flags to a word: little-endian, so word 0 is the lowest byte
            pair = below(w0[j], threshold) | np.uint32(below(w1[j], threshold) << np.uint32(8))
            other = below(w2[j], threshold) | np.uint32(below(w3[j], threshold) << np.uint32(8))
            packed[j] = pair | np.uint32(other << np.uint32(16))
        begin, stop = max(4 * start, first), min(4 * (start + COUNTERS), end)
        part, chosen = mask[begin - first : stop - first], flags[begin - 4 * start : stop - 4 * start]
        for j in range(part.size):
            part[j] = chosen[j]


@jit
def draw_upper(key0: Any, key1: Any, first: int, upper: Any, words: Any, block: Any) -> None:
    """upper[e] = the upper 24 bits of the word of flat index first + e.

    Scratch: words u64 [4, COUNTERS], block u32 [4 * COUNTERS].
    """
    end = first + upper.size
    for start in range(first // 4, (end + 3) // 4, COUNTERS):
        draw(words, start, key0, key1)
        w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
        for j in range(COUNTERS):
            block[4 * j] = np.uint32((w0[j] & LOW) >> np.uint64(8))
            block[4 * j + 1] = np.uint32((w1[j] & LOW) >> np.uint64(8))
            block[4 * j + 2] = np.uint32((w2[j] & LOW) >> np.uint64(8))
            block[4 * j + 3] = np.uint32((w3[j] & LOW) >> np.uint64(8))
        begin, stop = max(4 * start, first), min(4 * (start + COUNTERS), end)
        part, drawn = upper[begin - first : stop - first], block[begin - 4 * start : stop - 4 * start]
        for j in range(part.size):
            part[j] = drawn[j]


@jit
def list_changes(bits: Any, largest: Any, by_rank: Any, probabilities: Any, places: Any) -> int:
    """Zeros have the lowest ranks, the higher place first: they get their probability, and the other places are listed.

    Places go from the highest to the lowest. Returns how many are listed. Without a branch, which would be
    mispredicted too often: a place that is not a zero gets a probability that is overwritten later.
    """
    zeros: Any = 0
    listed: Any = 0
    for j in range(bits.size):
        i = bits.size - 1 - j
        is_zero = np.int64((bits[i] & largest) == 0)
        probabilities[i] = by_rank[zeros]
        places[listed] = i
        zeros += is_zero
        listed += 1 - is_zero
    return int(listed)


@jit
def sort_digit(source: Any, target: Any, shift: int, width: int, counts: Any) -> None:
    """A stable sort by `width` bits from `shift` on."""
    low = np.int64((1 << width) - 1)
    for j in range(low + 1):
        counts[j] = 0
    for j in range(source.size):
        counts[(source[j] >> shift) & low] += 1
    place: Any = 0
    for j in range(low + 1):
        count = counts[j]
        counts[j] = place
        place += count
    for j in range(source.size):
        digit = (source[j] >> shift) & low
        target[counts[digit]] = source[j]
        counts[digit] += 1


@jit
def ascending(bits: Any, largest: Any, listed: int, entries: Any, counts: Any) -> int:
    """Sort the first `listed` places in entries[0] by magnitude, stably; returns which of `entries` then holds them.

    The lower 32 bits of an entry are a place; above them stand 31 bits of its magnitude, so that a sort moves along
    its input without looking elsewhere. Only the bits in which magnitudes differ are sorted by: few of bf16 models.
    Scratch: entries i64 [2, row], counts i64 [2**DIGIT].
    """
    shift, now = 0, 0
    while (np.int64(largest) >> shift) > 0:
        differing, first = np.int64(0), np.int64(0)
        for j in range(listed):
            place = entries[now, j] & PLACE
            part = (np.int64(bits[place] & largest) >> shift) & PART
            first = part if j == 0 else first
            differing |= part ^ first
            entries[now, j] = (part << 32) | place
        lowest, width = 0, 0
        while differing and (differing >> lowest) & 1 == 0:
            lowest += 1
        while (differing >> lowest) >> width:
            width += 1
        digits = (width + DIGIT - 1) // DIGIT
        for digit in range(digits):
            size = (width + digits - 1) // digits
            sort_digit(entries[now, :listed], entries[1 - now, :listed], 32 + lowest + digit * size, size, counts)
            now = 1 - now
        shift += PART_BITS
    return now


@jit
def mask_ranked(
    bits: Any,
    largest: Any,
    low: Any,
    span: Any,
    mask: Any,
    divided: Any,
    upper: Any,
    by_rank: Any,
    probabilities: Any,
    entries: Any,
    counts: Any,
) -> None:
    """`Kernels.mask_ranked` for bits of whole rows; low and span are real, an empty `divided` stands for none.

    upper: u32, the elements' random numbers. Scratch: by_rank and probabilities real [row], entries i64 [2, row],
    counts i64 [2**DIGIT].
    """
    kind, row = probabilities.dtype.type, probabilities.size
    steps = kind(max(row - 1, 1))
    for rank in range(row):
        by_rank[rank] = low + kind(rank) / steps * span
    for start in range(0, bits.size, row):
        own = bits[start : start + row]
        listed = list_changes(own, largest, by_rank, probabilities, entries[0])
        order = entries[ascending(own, largest, listed, entries, counts)]
        for j in range(listed):
            probabilities[order[j] & PLACE] = by_rank[row - listed + j]
        drawn, kept, values = upper[start : start + row], mask[start : start + row], divided[start : start + row]
        for i in range(row):
            kept[i] = np.float64(drawn[i]) * 2.0**-24 < np.float64(probabilities[i])
        for i in range(values.size):
            values[i] /= probabilities[i] if kept[i] else kind(1)
