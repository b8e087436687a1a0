"""Random drops on the CPU: Philox4x32-10 (Salmon et al., SC 2011), a generator that is a pure function of the index."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compile import jit

LOW = np.uint64(0xFFFFFFFF)
MULTIPLIER_0, MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
STEP_0, STEP_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@jit
def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """Four counter words and two key words (each a uint64 below 2^32) -> four random words."""
    for _ in range(10):
        p0 = c0 * MULTIPLIER_0
        p1 = c2 * MULTIPLIER_1
        c0, c1, c2, c3 = (p1 >> np.uint64(32)) ^ c1 ^ k0, p1 & LOW, (p0 >> np.uint64(32)) ^ c3 ^ k1, p0 & LOW
        k0 = (k0 + STEP_0) & LOW
        k1 = (k1 + STEP_1) & LOW
    return c0, c1, c2, c3


@jit
def mask_random(key0: Any, key1: Any, first: int, threshold: Any, mask: Any) -> None:
    """mask = 1 where the upper 24 bits of the element's word are below threshold."""
    zero = np.uint64(0)
    counter = first // 4
    for position in range(counter * 4 - first, mask.size, 4):
        low, high = np.uint64(counter) & LOW, np.uint64(counter) >> np.uint64(32)
        words = philox(low, high, zero, zero, key0, key1)
        for j in range(4):
            if 0 <= position + j < mask.size:
                mask[position + j] = (words[j] >> np.uint64(8)) < threshold
        counter += 1
