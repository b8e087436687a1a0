"""Exact order statistics of magnitudes from integer histograms: no sort, mergeable, any window order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVELS_32 = ((15, 16), (0, 15))
"""(shift, bits) of each histogram over the 31-bit magnitude pattern of fp32, most significant first."""
LEVELS_64 = ((47, 16), (31, 16), (15, 16), (0, 15))
"""The same for the 63-bit pattern of fp64."""

LARGEST_KEY = 0x7FFFFFFF
"""Of fp32."""


class Bracket(NamedTuple):
    """Keys of fp32 between which an order statistic lies if the guess was good, both inclusive.

    bf16 models have many equal keys: often both are the same, and more often many elements are equal to either.
    """

    low: int
    high: int


NO_BRACKET = Bracket(0, 0)
"""Of zeros alone."""


class RankSearch:
    """Finds the key of the k-th largest magnitude, one histogram level per scan of the data.

    Args:
        rank: k, 1-based from the largest; 1 <= k <= number of elements counted.
        levels: LEVELS_32 or LEVELS_64.

    After every level was fed to `narrow`, `prefix` is the key, `above` the number of larger keys and `equal`
    the number of equal ones (ALGORITHMS 1.5: two-level integer histogram).
    """

    def __init__(self, rank: int, levels: tuple[tuple[int, int], ...]) -> None:
        assert rank >= 1
        self.rank = rank
        self.levels = levels
        self.level = 0
        self.prefix = 0
        self.above = 0
        self.equal = 0

    @classmethod
    def found(cls, rank: int, levels: tuple[tuple[int, int], ...], key: int, above: int, equal: int) -> RankSearch:
        """A search that is over, because the key was found in another way."""
        search = cls(rank, levels)
        search.level, search.prefix, search.above, search.equal = len(levels), key, above, equal
        return search

    @property
    def shift(self) -> int:
        return self.levels[self.level][0]

    @property
    def bits(self) -> int:
        return self.levels[self.level][1]

    def narrow(self, counts: NDArray[np.int64]) -> None:
        """Choose the bin that holds the wanted rank.

        Args:
            counts: i64 [2**bits], elements per bin among those whose higher bits equal `prefix`.
        """
        from_top = np.cumsum(counts[::-1])
        wanted = self.rank - self.above
        assert 1 <= wanted <= from_top[-1], "the rank lies outside the elements that were counted"
        position = int(np.searchsorted(from_top, wanted))
        chosen = len(counts) - 1 - position
        self.equal = int(counts[chosen])
        self.above += int(from_top[position]) - self.equal
        self.prefix = (self.prefix << self.bits) | chosen
        self.level += 1


def quantile_rank(q: float, count: int) -> int:
    """The 1-based rank from the largest of quantile q: the value at 0-based ascending rank floor(q * (count - 1))."""
    return count - int(np.floor(q * (count - 1)))


def value_key(value: float, real: str) -> int:
    """The bit pattern, sign cleared, of a magnitude that is rounded to real first; real is "f32" or "f64"."""
    number = np.array(abs(value), np.float32 if real == "f32" else np.float64)
    return int(number.view(np.uint32 if real == "f32" else np.uint64))


def key_value(key: int, real: str) -> float:
    """The magnitude whose bit pattern, sign cleared, is `key`; real is "f32" or "f64"."""
    if real == "f32":
        return float(np.array(key, np.uint32).view(np.float32))
    return float(np.array(key, np.uint64).view(np.float64))
