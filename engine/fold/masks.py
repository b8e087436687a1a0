"""One tile: from task vectors to masks, models in recipe order; exact at any window size and thread schedule."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels import Array, Kernels, RankSearch, value_key
from ..methods import (
    All,
    Band,
    Beyond,
    Blocks,
    ModelThreshold,
    Random,
    RankedRandom,
    Rescale,
    Selection,
    Top,
    TopInTurn,
    Variance,
)

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


@dataclass(frozen=True, slots=True)
class Edge:
    """A cut through one model's order of magnitudes, with the ledger of its equals where their order decides."""

    cut: Cut
    ledger: EqualLedger | None = None


Edges = list[Edge | None]
"""What bounds one model's mask: where the kept magnitudes begin and, in a band, where they end (the smaller and the
larger magnitude). Without the first nothing is kept, without the second nothing is left out."""
Ranks = list[list[int]]
"""Per model and edge: equals before a place in the tensor."""


def first_edges(selection: Selection, real: str) -> Edges:
    """The edges of one model before the tensor was looked at; real is "f32" or "f64"."""
    if isinstance(selection, Beyond):
        return [Edge(Cut(0, value_key(selection.epsilon, real), 0))]
    return [None] * (2 if isinstance(selection, Band) else 1)


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

    `edges` are filled between scans by those selections that need order statistics.
    """

    selection: Selection
    rescale: Rescale
    row: int
    """Elements of one row of the tensor; used by RankedRandom only."""
    kernels: Kernels
    keys: tuple[tuple[int, int], ...]
    """Philox key words per model; used by random selections only."""
    densities: list[float]
    edges: list[Edges]
    """Per model."""

    @property
    def claims_matter(self) -> bool:
        return isinstance(self.selection, Blocks | TopInTurn)

    @property
    def divides(self) -> bool:
        """Whether masks come with task vectors divided by probabilities that differ between elements."""
        return isinstance(self.selection, RankedRandom) and self.rescale == "density"

    @property
    def keeps_all(self) -> bool:
        return isinstance(self.selection, All)

    @property
    def shares_mask(self) -> bool:
        """Whether all models have one mask: that of the first which has the tensor."""
        return isinstance(self.selection, Variance)

    def top_counts(self, i: int, numel: int, nonzero: int) -> tuple[int, ...]:
        """How many of model i's largest magnitudes lie above each of its edges (ALGORITHMS 1.5, 4).

        Args:
            i: position of the model in the recipe.
            numel: elements of the tensor.
            nonzero: those with an order value that is not zero.
        """
        keep = int(self.densities[i] * (nonzero if self.shares_mask else numel))
        if not isinstance(self.selection, Band):
            return (keep,)
        left_out = min(int(self.selection.gammas[i] * numel), numel - keep)
        return (left_out + keep, left_out) if keep > 0 else (0, 0)

    def ledgers(self, models: Iterable[int]) -> Iterator[tuple[int, int, Cut, EqualLedger]]:
        """(model, place of the edge, cut, ledger) where the order of equals decides."""
        for i in models:
            for place, edge in enumerate(self.edges[i]):
                if edge is not None and edge.ledger is not None:
                    yield i, place, edge.cut, edge.ledger

    def no_ranks(self) -> Ranks:
        """Ranks before the tensor's first element."""
        return [[0] * len(edges) for edges in self.edges]

    def mask(
        self,
        i: int,
        t: Array,
        values: Array,
        first: int,
        claims: Array,
        mask: Array,
        spare: Array,
        ranks: Ranks,
    ) -> None:
        """Write model i's 0/1 mask of one tile and add it to the claims where these matter.

        Args:
            i: position of the model in the recipe.
            t: real [L], the model's task vector; divided by each kept element's probability where these are ranked and
                the method rescales by them.
            values: real [L], what its elements are ordered by; may be t itself.
            first: flat index of the tile's first element.
            claims: u8 [L], how many earlier models kept each element.
            mask: u8 [L], written wholly.
            spare: u8 [L], overwritten.
            ranks: equals before this tile; advanced by this tile's.
        """
        match self.selection:
            case Blocks(m=m, drop_tail=drop_tail, overlap_never=overlap_never):
                n = block_keep(self.densities[i], m)
                self.kernels.mask_blocks(values, n, m, claims, mask, overlap_never, drop_tail)
            case TopInTurn():
                self._mask_above(i, 0, values, claims, mask, ranks)
                claims += mask
            case Band():
                self._mask_above(i, 0, values, None, mask, ranks)
                self._mask_above(i, 1, values, None, spare, ranks)
                mask ^= spare  # what lies above the second edge lies above the first
            case Top() | ModelThreshold() | Variance():
                self._mask_above(i, 0, values, None, mask, ranks)
            case Beyond():
                self._mask_above(i, 0, values, None, mask, ranks)
                claims += mask
            case Random():
                self.kernels.mask_random(*self.keys[i], first, self.densities[i], mask)
            case RankedRandom(epsilons=epsilons):
                divided, bounds = t if self.divides else None, self._probabilities(i, epsilons[i])
                self.kernels.mask_ranked(values, self.row, *self.keys[i], first, *bounds, mask, divided)
            case All():
                raise AssertionError("a selection that keeps everything has no mask")

    def _probabilities(self, i: int, epsilon: float) -> tuple[float, float]:
        """The least probability of model i and how far the largest lies above it; a row of one element has its density.

        Epsilon is smaller where it would lead out of [0, 1], as densities that follow from the tensor may want.
        """
        density = self.densities[i]
        if self.row == 1:
            return density, 0.0
        epsilon = min(epsilon, density, 1.0 - density)
        return density - epsilon, 2.0 * epsilon

    def _mask_above(self, i: int, place: int, values: Array, claims: Array | None, mask: Array, ranks: Ranks) -> None:
        """What lies above one of model i's edges."""
        edge = self.edges[i][place]
        if edge is None:
            mask[:] = 0
            return
        cut, before = edge.cut, ranks[i][place]
        ranks[i][place] += self.kernels.mask_top(values, claims, cut.level, cut.key, cut.keep_equal, before, mask)
