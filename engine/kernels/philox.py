"""Random drops on the CPU: Philox4x32-10 (Salmon et al., SC 2011), a pure function of key and element index."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compile import jit

LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
MULTIPLIER_0, MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
STEP_0, STEP_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
COUNTERS = 256
"""How many counters are worked on at once: their state fits the level-1 cache."""


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
def below(word: Any, threshold: Any) -> Any:
    """1 where the upper 24 of 32 bits are below threshold; signed, as processors compare signed numbers faster."""
    return np.uint32(np.int64((word & LOW) >> np.uint64(8)) < threshold)


@jit
def mask_random(key0: Any, key1: Any, first: int, threshold: Any, mask: Any, words: Any, packed: Any) -> None:
    """mask[e] = 1 where the upper 24 bits of the word of flat index first + e are below threshold (an int64).

    Scratch: words u64 [4, COUNTERS], packed u32 [COUNTERS].
    """
    flags = packed.view(np.uint8)
    end = first + mask.size
    for start in range(first // 4, (end + 3) // 4, COUNTERS):
        w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
        for j in range(COUNTERS):
            counter = np.uint64(start) + np.uint64(j)
            w0[j], w1[j], w2[j], w3[j] = counter & LOW, counter >> HALF, np.uint64(0), np.uint64(0)
        philox(words, key0, key1)
        for j in range(COUNTERS):  # four flags to a word: little-endian, so word 0 is the lowest byte
            pair = below(w0[j], threshold) | np.uint32(below(w1[j], threshold) << np.uint32(8))
            other = below(w2[j], threshold) | np.uint32(below(w3[j], threshold) << np.uint32(8))
            packed[j] = pair | np.uint32(other << np.uint32(16))
        begin, stop = max(4 * start, first), min(4 * (start + COUNTERS), end)
        part, chosen = mask[begin - first : stop - first], flags[begin - 4 * start : stop - 4 * start]
        for j in range(part.size):
            part[j] = chosen[j]
