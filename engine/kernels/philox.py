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
"""Bits of one digit of a magnitude: its 2048 counters fit the level-1 cache, and three digits make a fp32 key."""


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
def ascending(bits: Any, largest: Any, orders: Any, counts: Any) -> int:
    """Places of a row by magnitude ascending, of equal ones the higher first: a stable sort by digits.

    Scratch: orders i64 [2, row], counts i64 [2**DIGIT]. Returns which of `orders` holds the result.
    """
    low, now = np.int64(2**DIGIT - 1), 0
    for i in range(bits.size):
        orders[0, i] = bits.size - 1 - i
    shift = 0
    while (np.int64(largest) >> shift) > 0:
        for j in range(counts.size):
            counts[j] = 0
        for i in range(bits.size):
            counts[(np.int64(bits[i] & largest) >> shift) & low] += 1
        if counts[(np.int64(bits[0] & largest) >> shift) & low] < bits.size:
            place: Any = 0
            for j in range(counts.size):
                count = counts[j]
                counts[j] = place
                place += count
            for i in range(bits.size):
                element = orders[now, i]
                digit = (np.int64(bits[element] & largest) >> shift) & low
                orders[1 - now, counts[digit]] = element
                counts[digit] += 1
            now = 1 - now
        shift += DIGIT
    return now


@jit
def draw_upper(key0: Any, key1: Any, first: int, upper: Any, words: Any) -> None:
    """upper[e] = the upper 24 bits of the word of flat index first + e. Scratch: words u64 [4, COUNTERS]."""
    end = first + upper.size
    for start in range(first // 4, (end + 3) // 4, COUNTERS):
        draw(words, start, key0, key1)
        for e in range(max(4 * start, first), min(4 * (start + COUNTERS), end)):
            upper[e - first] = np.uint32((words[e & 3, (e >> 2) - start] & LOW) >> np.uint64(8))


@jit
def mask_ranked(
    bits: Any,
    largest: Any,
    low: Any,
    span: Any,
    mask: Any,
    divided: Any,
    upper: Any,
    probabilities: Any,
    orders: Any,
    counts: Any,
) -> None:
    """`Kernels.mask_ranked` for bits of whole rows; low and span are real, an empty `divided` stands for none.

    upper: u32, the elements' random numbers. Scratch: probabilities real [row], orders i64 [2, row], counts i64
    [2**DIGIT].
    """
    kind, row = probabilities.dtype.type, probabilities.size
    steps = kind(max(row - 1, 1))
    for start in range(0, bits.size, row):
        sorted_in = ascending(bits[start : start + row], largest, orders, counts)
        for rank in range(row):
            probabilities[orders[sorted_in, rank]] = low + kind(rank) / steps * span
        for i in range(row):
            p = probabilities[i]
            keep = np.float64(upper[start + i]) * 2.0**-24 < np.float64(p)
            mask[start + i] = keep
            if keep and divided.size:
                divided[start + i] /= p
