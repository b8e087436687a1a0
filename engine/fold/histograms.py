"""Passes that look for exact order statistics of magnitudes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kernels import NO_BRACKET, Array, Bracket, RankSearch, WindowLook, host, key_value, quantile_rank
from ..plan import tiles
from .edges import Cut, cut_from
from .inputs import WindowData
from .passes import CountingPass, OptionalPass
from .tally import WindowTally, add_into
from .tensor import TensorState
from .tile_work import TileMasks
from .window_work import masks_of
from .workspace import Workspace

MEDIAN, HIGH = 0.5, 0.99
"""The quantiles whose ratio is a measure of redundancy (ALGORITHMS 3)."""


@dataclass(slots=True)
class Order:
    """One order statistic of one model's magnitudes, refined by one histogram per pass.

    Attributes:
        model: position in the recipe.
        rank: given the number of elements at each claim level and of zeros among them, the claim level to search in and
            the 1-based rank from the largest there; None when nothing needs to be searched.
        then: called once with the finished search.
        claim_levels: how many claim levels are told apart; 1 where claims do not matter.
        of_order: whether it is a statistic of what a mask orders the model's elements by, instead of its task vector.
        bracket: where its key is expected.
        settled: whether nothing is searched any more.
        equals: called after `then` where it is known how many elements of each window have the found key.
    """

    model: int
    rank: Callable[[list[int], list[int]], tuple[int, int] | None]
    then: Callable[[RankSearch, int], None]
    claim_levels: int = 1
    of_order: bool = False
    counts: list[NDArray[np.int64]] = field(default_factory=list)
    zeros: list[int] = field(default_factory=list)
    search: RankSearch | None = None
    level: int = 0
    """Claim level that the search goes on in."""
    bracket: Bracket = NO_BRACKET
    settled: bool = False
    equals: Callable[[list[int]], None] | None = None

    def settle(self, search: RankSearch, level: int, equals: list[int] | None = None) -> None:
        """Hand the finished search on."""
        self.settled = True
        self.then(search, level)
        if equals is not None and self.equals is not None:
            self.equals(equals)


class Look(NamedTuple):
    """A histogram of what is ordered of one model: at one claim level, below one prefix."""

    model: int
    of_order: bool
    level: int
    prefix: int


@dataclass(frozen=True, slots=True)
class WindowLooks:
    """What one pass looks at in a window."""

    looks: Sequence[Look]
    depth: int
    """Which level of histograms: 0 for the most significant bits. At the first, zeros are counted too."""
    earlier: Sequence[int]
    """Models whose masks must be made first, because their claims matter."""


class OrderPass(CountingPass):
    """One histogram level of several order statistics.

    Args:
        state: the tensor.
        orders: the statistics, all at the same level.
        depth: 0 for the most significant bits.
        earlier: models whose masks must be made first, because their claims matter.
    """

    def __init__(self, state: TensorState, orders: list[Order], depth: int, earlier: list[int]) -> None:
        super().__init__(state)
        self._orders = orders
        self._depth = depth
        self._earlier = earlier

    def _look(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        wanted = [(order, self._looks(order)) for order in self._orders if not order.settled]
        looks = list(dict.fromkeys(look for _, own in wanted for look in own))  # searches may share them
        work = WindowLooks(looks, self._depth, self._earlier)
        histograms, zeros = observe(self._state, work, data, workspace, tally)
        with self._state.lock:
            for order, own in wanted:
                places = [looks.index(look) for look in own]
                self._add(order, [histograms[place] for place in places], [zeros[place] for place in places])

    def _looks(self, order: Order) -> list[Look]:
        """The histograms that one search needs."""
        if order.search is None:
            return [Look(order.model, order.of_order, level, 0) for level in range(order.claim_levels)]
        return [Look(order.model, order.of_order, order.level, order.search.prefix)]

    def _add(self, order: Order, histograms: list[Array], zeros: list[int]) -> None:
        bits = self._state.levels[self._depth][1]
        if not order.counts:
            order.counts = [np.zeros(1 << bits, np.int64) for _ in histograms]
            order.zeros = order.zeros or [0] * order.claim_levels
        for counts, more in zip(order.counts, histograms, strict=True):
            counts += host(more[: 1 << bits])
        if self._depth == 0:
            add_into(order.zeros, zeros)

    def _conclude(self) -> None:
        for order in self._orders:
            if not order.settled:
                self._narrow(order)

    def _narrow(self, order: Order) -> None:
        search, chosen = order.search, 0
        if search is None:
            place = order.rank([int(c.sum()) for c in order.counts], order.zeros)
            if place is None:
                order.counts, order.settled = [], True
                return
            order.level, rank = place
            order.search = search = RankSearch(rank, self._state.levels)
            chosen = order.level
        search.narrow(order.counts[chosen])
        order.counts = []
        if search.level == len(self._state.levels):
            order.settle(search, order.level)


class FallbackPass(OrderPass, OptionalPass):
    """The same for statistics that no pass before has settled."""

    @property
    def needed(self) -> bool:
        """Whether there are any."""
        return not all(order.settled for order in self._orders)


Observed = tuple[Sequence[Array], Sequence[int]]
"""A histogram i64 of at least 2^bits for each look, and how many zeros there are at its claim level."""


def observe(
    state: TensorState, work: WindowLooks, data: WindowData, workspace: Workspace, tally: WindowTally
) -> Observed:
    """Histograms of a window; they are the workspace's, valid until it makes others."""
    return _observe_whole(state, work, data, tally) or _observe_tiles(state, work, data, workspace, tally)


def _observe_whole(state: TensorState, work: WindowLooks, data: WindowData, tally: WindowTally) -> Observed | None:
    """With one call, where no claims matter and the tensor is of the usual kind."""
    looks, masks = work.looks, state.masks
    by_others = any(look.of_order for look in looks) and (masks.of_variance or masks.scored)
    inputs = state.inputs.whole(data)
    if work.earlier or not looks or by_others or any(look.level for look in looks) or inputs is None:
        return None
    models = [state.present.index(look.model) for look in looks]
    shift, bits = state.levels[work.depth]
    wanted = WindowLook(models, [look.prefix for look in looks], shift, bits, work.depth == 0)
    counts = state.kernels.observe_window(wanted, inputs)
    if counts is None:
        return None
    tally.add_nonfinite(state.inputs.sources, counts.nonfinite.tolist())
    return list(counts.histograms), counts.zeros.tolist()


def _observe_tiles(
    state: TensorState, work: WindowLooks, data: WindowData, workspace: Workspace, tally: WindowTally
) -> Observed:
    shift, bits = state.levels[work.depth]
    histograms, zeros = workspace.histograms(len(work.looks)), [0] * len(work.looks)
    masks = TileMasks(state, work.earlier, masks_of(state, data, workspace, work.earlier))
    for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
        state.inputs.load(data, workspace, begin, end, tally.nonfinite)
        claims = masks.make(workspace, begin, end) if work.earlier else None
        for place, look in enumerate(work.looks):
            values = values_of(state, workspace, look.model, look.of_order, begin, end)
            counts = histograms[place][: 1 << bits]
            state.kernels.histogram(values, claims, look.level, shift, bits, look.prefix, counts)
            if work.depth == 0:
                zeros[place] += state.kernels.count_equal(values, claims, look.level, 0)
    return histograms, zeros


def values_of(state: TensorState, workspace: Workspace, i: int, of_order: bool, begin: int, end: int) -> Array:
    """Model i's task vector of loaded elements [begin, end), or what a mask orders them by; until the next call."""
    if of_order:
        return state.masks.order_values(workspace, i, begin, end)
    return workspace.task_vectors[i][: end - begin]


def edge_orders(state: TensorState, i: int, sequential: bool) -> list[Order]:
    """The searches for the edges of model i's mask.

    With `sequential`, least-claimed elements come first (ALGORITHMS 2, CA). Zeros take places in the order but never
    count as kept, since keeping them changes nothing.
    """
    return [_edge_order(state, i, place, sequential) for place in range(len(state.masks.edges[i]))]


def _edge_order(state: TensorState, i: int, edge: int, sequential: bool) -> Order:
    masks = state.masks

    def rank(totals: list[int], zeros: list[int]) -> tuple[int, int] | None:
        wanted = masks.top_counts(i, state.task.numel, sum(totals) - sum(zeros))[edge]
        if wanted <= 0:
            return None
        level = 0
        while wanted > totals[level]:
            wanted -= totals[level]
            level += 1
        if wanted <= totals[level] - zeros[level]:
            return level, wanted
        masks.edges[i][edge] = masks.new_edge(Cut(level, 0, 0))  # the places that are left are those of zeros
        return None

    def then(search: RankSearch, level: int) -> None:
        masks.edges[i][edge] = masks.new_edge(cut_from(search, level))

    def equals(counts: list[int]) -> None:
        found = masks.edges[i][edge]
        if found is not None and found.ledger is not None:
            for window, count in enumerate(counts):
                found.ledger.publish(window, count)

    return Order(i, rank, then, claim_levels=i + 1 if sequential else 1, of_order=True, equals=equals)


def quantile_orders(state: TensorState, i: int, then: Callable[[int, float, float, bool], None]) -> list[Order]:
    """Searches for two quantiles of |t| of model i; `then(i, median, high, all_zero)` gets both."""
    found: dict[float, float] = {}
    orders: list[Order] = []

    def search(q: float) -> Order:
        def rank(totals: list[int], _zeros: list[int]) -> tuple[int, int]:
            return 0, quantile_rank(q, totals[0])

        def done(result: RankSearch, _level: int) -> None:
            found[q] = key_value(result.prefix, state.real)
            if len(found) == 2:
                then(i, found[MEDIAN], found[HIGH], orders[0].zeros[0] == state.task.numel)

        return Order(i, rank, done)

    orders += [search(MEDIAN), search(HIGH)]
    return orders
