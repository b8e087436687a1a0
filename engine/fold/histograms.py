"""Passes that look for exact order statistics of magnitudes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kernels import NO_BRACKET, Array, Bracket, LookCounts, RankSearch, WindowLook, host, key_value, quantile_rank
from ..plan import tiles
from .masks import Cut, cut_from
from .passes import OptionalPass, WindowData, add_into
from .tensor import TensorState
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


class _Look(NamedTuple):
    """A histogram of what is ordered of one model: at one claim level, below one prefix."""

    model: int
    of_order: bool
    level: int
    prefix: int


class OrderPass:
    """One histogram level of several order statistics.

    Args:
        state: the tensor.
        orders: the statistics, all at the same level.
        depth: 0 for the most significant bits.
        earlier: models whose masks must be made first, because their claims matter.
    """

    def __init__(self, state: TensorState, orders: list[Order], depth: int, earlier: list[int]) -> None:
        self._state = state
        self._orders = orders
        self._depth = depth
        self._earlier = earlier
        self._nonfinite = [0] * (len(state.task.models) + 1)

    def run(self, data: WindowData, workspace: Workspace) -> None:
        state = self._state
        wanted = [(order, self._looks(order)) for order in self._orders if not order.settled]
        looks = list(dict.fromkeys(look for _, own in wanted for look in own))  # searches may share them
        nonfinite = [0] * len(self._nonfinite)
        whole = self._look_whole(data, looks)
        if whole is not None:
            histograms, zeros = self._take(whole, nonfinite)
        else:
            histograms, zeros = workspace.histograms(len(looks)), [0] * len(looks)
            ranks = state.start_ranks(data, workspace, self._earlier)
            for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
                state.load(data, workspace, begin, end, nonfinite)
                claims = state.mask_tile(workspace, begin, end, self._earlier, ranks) if self._earlier else None
                for place, look in enumerate(looks):
                    zeros[place] += self._observe(workspace, begin, end, look, claims, histograms[place])
        with state.lock:
            add_into(self._nonfinite, nonfinite)
            for order, own in wanted:
                places = [looks.index(look) for look in own]
                self._add(order, [histograms[place] for place in places], [zeros[place] for place in places])

    def _looks(self, order: Order) -> list[_Look]:
        """The histograms that one search needs."""
        if self._depth == 0:
            return [_Look(order.model, order.of_order, level, 0) for level in range(order.claim_levels)]
        assert order.search is not None
        return [_Look(order.model, order.of_order, order.level, order.search.prefix)]

    def _look_whole(self, data: WindowData, looks: list[_Look]) -> LookCounts | None:
        """All histograms of a window with one call, where claims do not matter and the tensor is of the usual kind."""
        state = self._state
        others = any(look.of_order for look in looks) and not state.orders_by_change
        if self._earlier or not looks or others or any(look.level for look in looks):
            return None
        inputs = state.whole_inputs(data)
        if inputs is None:
            return None
        shift, bits = state.levels[self._depth]
        places = {i: place for place, i in enumerate(state.present)}
        models, prefixes = [places[look.model] for look in looks], [look.prefix for look in looks]
        return state.kernels.observe_window(WindowLook(inputs, models, prefixes, shift, bits, self._depth == 0))

    def _take(self, counts: LookCounts, nonfinite: list[int]) -> tuple[list[Array], list[int]]:
        """Histograms and zeros of a call for a whole window."""
        self._state.add_nonfinite(nonfinite, counts.nonfinite)
        return list(counts.histograms), [int(count) for count in counts.zeros]

    def _observe(
        self, workspace: Workspace, begin: int, end: int, look: _Look, claims: Array | None, counts: Array
    ) -> int:
        """Add a tile to one histogram; returns how many zeros it holds at the claim level, while that matters."""
        kernels = self._state.kernels
        shift, bits = self._state.levels[self._depth]
        if look.of_order:
            values = self._state.order_values(workspace, look.model, begin, end)
        else:
            values = workspace.task_vectors[look.model][: end - begin]
        kernels.histogram(values, claims, look.level, shift, bits, look.prefix, counts[: 1 << bits])
        return kernels.count_equal(values, claims, look.level, 0) if self._depth == 0 else 0

    def _add(self, order: Order, histograms: list[Array], zeros: list[int]) -> None:
        bits = self._state.levels[self._depth][1]
        if not order.counts:
            order.counts = [np.zeros(1 << bits, np.int64) for _ in histograms]
            order.zeros = order.zeros or [0] * order.claim_levels
        for counts, more in zip(order.counts, histograms, strict=True):
            counts += host(more[: 1 << bits])
        if self._depth == 0:
            add_into(order.zeros, zeros)

    def finish(self) -> None:
        self._state.settle_nonfinite(self._nonfinite)
        for order in self._orders:
            if not order.settled:
                self._narrow(order)

    def _narrow(self, order: Order) -> None:
        chosen = 0
        if self._depth == 0:
            place = order.rank([int(c.sum()) for c in order.counts], order.zeros)
            if place is None:
                order.counts, order.settled = [], True
                return
            order.level, rank = place
            order.search = RankSearch(rank, self._state.levels)
            chosen = order.level
        assert order.search is not None
        order.search.narrow(order.counts[chosen])
        order.counts = []
        if order.search.level == len(self._state.levels):
            order.settle(order.search, order.level)


class FallbackPass(OrderPass, OptionalPass):
    """The same for statistics that no pass before has settled."""

    @property
    def needed(self) -> bool:
        """Whether there are any."""
        return not all(order.settled for order in self._orders)


def edge_orders(state: TensorState, i: int, sequential: bool) -> list[Order]:
    """The searches for the edges of model i's mask.

    With `sequential`, least-claimed elements come first and zeros are no candidates (ALGORITHMS 2, CA). Zeros never
    count as kept, since keeping them changes nothing.
    """
    assert state.selector is not None
    return [_edge_order(state, i, place, sequential) for place in range(len(state.selector.edges[i]))]


def _edge_order(state: TensorState, i: int, edge: int, sequential: bool) -> Order:
    selector = state.selector
    assert selector is not None

    def rank(totals: list[int], zeros: list[int]) -> tuple[int, int] | None:
        wanted = selector.top_counts(i, state.task.numel, sum(totals) - sum(zeros))[edge]
        if wanted <= 0:
            return None
        for level, (total, zero) in enumerate(zip(totals, zeros, strict=True)):
            if wanted <= total - zero:
                return level, wanted
            wanted -= total - zero
        selector.edges[i][edge] = state.new_edge(Cut(len(totals), 0, 0))
        return None

    def then(search: RankSearch, level: int) -> None:
        selector.edges[i][edge] = state.new_edge(cut_from(search, level))

    def equals(counts: list[int]) -> None:
        found = selector.edges[i][edge]
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
