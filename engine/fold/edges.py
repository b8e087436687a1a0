"""Cuts through the order of magnitudes, and where equal magnitudes lie; exact for any windows and any schedule."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from ..kernels import RankSearch

KEEP_ALL_EQUAL = 1 << 62
"""A share of equal values that no tensor reaches."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Which elements a magnitude selection keeps, in the order (claims ascending, |t| descending, index ascending)."""

    level: int
    """Elements claimed fewer times than this are kept if they are not zero; those claimed more often are not."""
    key: int
    """At this claim level magnitudes with a larger bit pattern are kept."""
    keep_equal: int
    """Of the magnitudes at this level with the key's very pattern, how many are kept: the first by flat index."""

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


@dataclass(frozen=True, slots=True)
class Edge:
    """A cut through one model's order of magnitudes, with the ledger of its equals where their order decides."""

    cut: Cut
    ledger: EqualLedger | None = None
