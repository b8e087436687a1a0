"""One tile: from task vectors to masks, models in recipe order; exact at any window size and thread schedule."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .kernels import Array, Kernels
from .methods.stages import All, Blocks, ModelThreshold, Random, Selection, Top
from .order import RankSearch

KEEP_ALL_EQUAL = 1 << 62
"""A share of equal values that no tensor reaches."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Which elements a magnitude selection keeps, in the order (claims ascending, |t| descending, index ascending)."""

    level: int
    """Elements claimed fewer times than this are kept if they are not zero; those claimed more often are not."""
    key: int
    """At this claim level: magnitudes with a larger bit pattern are kept ..."""
    keep_equal: int
    """... and of those with this very pattern the first so many by flat index."""

    @property
    def ranks_equals(self) -> bool:
        return 0 < self.keep_equal < KEEP_ALL_EQUAL


def cut_from(search: RankSearch, level: int) -> Cut:
    """The cut that keeps exactly the searched rank; zeros are never kept because adding them changes nothing."""
    if search.prefix == 0:
        return Cut(level, 0, 0)
    share = search.rank - search.above
    return Cut(level, search.prefix, KEEP_ALL_EQUAL if share == search.equal else share)


class EqualLedger:
    """How many elements equal to the cut lie before each window: windows stay independent although ties go by index.

    A window publishes its own count before it asks for the earlier ones. Windows are started in order, so the wait is
    for counts that are already being made and cannot deadlock.
    """

    def __init__(self, windows: int) -> None:
        self._counts: list[int | None] = [None] * windows
        self._before: list[int] = [0]
        self._changed = threading.Condition()
        self._abandoned = False

    def publish(self, window: int, count: int) -> None:
        with self._changed:
            self._counts[window] = count
            while len(self._before) <= len(self._counts):
                latest = self._counts[len(self._before) - 1]
                if latest is None:
                    break
                self._before.append(self._before[-1] + latest)
            self._changed.notify_all()

    def published(self, window: int) -> bool:
        with self._changed:
            return self._counts[window] is not None

    def before(self, window: int) -> int:
        """Equals in all windows before this one; waits until every one of them has published."""
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or len(self._before) > window)
            return self._before[window] if len(self._before) > window else 0

    def abandon(self) -> None:
        """Wake everybody who waits, because the run is being stopped and results no longer count."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()


def random_key(seed: int, position: int, name: str) -> tuple[int, int]:
    """Philox key words of one model and tensor (ALGORITHMS 1.6)."""
    text = json.dumps([seed, position, name], separators=(",", ":"), ensure_ascii=False)
    words: NDArray[np.uint32] = np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], "<u4")
    return int(words[0]), int(words[1])


def block_keep(density: float, m: int) -> int:
    """n of n:m: 0 for no density, else the rounded share, at least 1 and at most m (section 2)."""
    return 0 if density <= 0 else min(max(int(np.floor(density * m + 0.5)), 1), m)


@dataclass(slots=True)
class Selector:
    """Turns the task vectors of one tensor into masks, tile by tile.

    `cuts` and `ledgers` are filled between scans by those selections that need order statistics.
    """

    selection: Selection
    kernels: Kernels
    keys: tuple[tuple[int, int], ...]
    """Philox key words per model; used by Random only."""
    densities: list[float]
    cuts: list[Cut | None]
    ledgers: list[EqualLedger | None]

    @property
    def grain(self) -> int:
        """Elements that must be seen together, counted from the tensor's first element."""
        return self.selection.m if isinstance(self.selection, Blocks) else 1

    @property
    def claims_matter(self) -> bool:
        return isinstance(self.selection, Blocks) or (isinstance(self.selection, Top) and self.selection.sequential)

    @property
    def keeps_all(self) -> bool:
        return isinstance(self.selection, All)

    def unranked(self, window: int, models: list[int]) -> list[int]:
        """Models whose equals in this window were not counted yet."""
        found = []
        for i in models:
            ledger = self.ledgers[i]
            if ledger is not None and not ledger.published(window):
                found.append(i)
        return found

    def count_equal(self, i: int, t: Array, claims: Array | None) -> int:
        cut = self.cuts[i]
        assert cut is not None
        return self.kernels.count_equal(t, claims, cut.level, cut.key)

    def mask(self, i: int, t: Array, first: int, claims: Array, mask: Array, ranks: list[int]) -> None:
        """Write model i's 0/1 mask of one tile and add it to the claims where these matter.

        Args:
            i: position of the model in the recipe.
            t: real [L], the model's task vector.
            first: flat index of the tile's first element.
            claims: u8 [L], how many earlier models kept each element.
            mask: u8 [L], written wholly.
            ranks: equals before this tile per model; advanced by this tile's.
        """
        match self.selection:
            case Blocks(m=m, drop_tail=drop_tail, overlap_never=overlap_never):
                n = block_keep(self.densities[i], m)
                self.kernels.mask_blocks(t, n, m, claims, mask, overlap_never, drop_tail)
            case Top(sequential=sequential):
                self._mask_cut(i, t, claims if sequential else None, mask, ranks)
                if sequential:
                    claims += mask
            case ModelThreshold():
                self._mask_cut(i, t, None, mask, ranks)
            case Random():
                self.kernels.mask_random(*self.keys[i], first, self.densities[i], mask)
            case All():
                raise AssertionError("a selection that keeps everything has no mask")

    def _mask_cut(self, i: int, t: Array, claims: Array | None, mask: Array, ranks: list[int]) -> None:
        cut = self.cuts[i]
        if cut is None:
            mask[:] = 0
            return
        ranks[i] += self.kernels.mask_top(t, claims, cut.level, cut.key, cut.keep_equal, ranks[i], mask)
