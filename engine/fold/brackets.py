"""Exact order statistics in one look: a sample says where a key is about, and all that lies elsewhere is only counted.

Bytes do not depend on the sample. It decides how narrow the bracket around the key is and whether the key lies in it;
where it does not, the histograms of `histograms.OrderPass` find the same key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import (
    LARGEST_KEY,
    NEAR_COUNTS,
    NEAR_HIGH,
    NEAR_LOW,
    NEAR_ZERO,
    NO_BRACKET,
    OF_VARIANCE,
    Bracket,
    NearCounts,
    RankSearch,
    WindowNear,
    host,
)
from ..models import DTYPES
from ..plan import FOUND_PER_TENSOR, SAMPLE_ELEMENTS, Window, sample_elements, tiles
from .histograms import FallbackPass, Order, OrderPass, values_of
from .inputs import WindowData
from .passes import CountingPass, Pass
from .tally import WindowTally
from .tensor import TensorState
from .workspace import Workspace

CHUNK = 16
"""Elements that are sampled together: a cache line at the most."""
DEVIATIONS = 5.0
"""Half the width of a bracket in standard deviations of a sampled rank; neighbours in a tensor are somewhat alike."""
ALL_KEYS = Bracket(0, LARGEST_KEY)
FOUND_PER_WINDOW = 1 << 17
"""Keys inside a bracket that one window may have: as many as fit where a histogram would lie."""


def order_passes(state: TensorState, orders: list[Order]) -> list[Pass]:
    """The passes that settle some order statistics, where no claims matter.

    A sample's elements must be ordered like the whole: not by factors of their columns.
    """
    levels = range(len(state.levels))
    if state.real != "f32" or state.masks.scored:
        return [OrderPass(state, orders, depth, []) for depth in levels]
    fallback = [FallbackPass(state, orders, depth, []) for depth in levels]
    return [SamplePass(state, orders), BracketPass(state, orders), *fallback]


def sample_places(window: Window, numel: int) -> NDArray[np.int64]:
    """First elements of the window's chunks, counted from its own first element; ascending.

    Every period of the tensor has one, at a place that differs from period to period so that it follows no columns.
    """
    period = CHUNK * max(1, -(-numel // sample_elements(numel)))
    numbers = np.arange(window.own_begin // period, -(-window.own_end // period), dtype=np.int64)
    scattered = (numbers * 0x9E3779B1 & 0xFFFFFFFF) * (period - CHUNK + 1) >> 32
    places = numbers * period + scattered
    return places[(places >= window.own_begin) & (places + CHUNK <= window.own_end)] - window.own_begin


def sample_of(state: TensorState, data: WindowData) -> WindowData:
    """The sampled elements of a window, side by side as if they were one."""
    window = data.window
    own = window.own_end - window.own_begin
    places = sample_places(window, state.task.numel)
    raws: list[NDArray[np.uint8] | None] = []
    for raw, location in zip(data.raws, state.task.sources, strict=True):
        if raw is None or location is None:
            raws.append(None)
            continue
        size = DTYPES[location.info.dtype].size
        part = raw[(window.own_begin - window.begin) * size :][: own * size]
        chunk, known = CHUNK * size, places[(places + CHUNK) * size <= len(part)]
        if len(known):  # one opaque element of numpy is gathered three times as quickly as a row of bytes
            chunks: NDArray[Any] = np.ndarray(len(part) - chunk + 1, f"V{chunk}", part.data, strides=1)
            part = chunks[known * size].view(np.uint8)
        else:
            part = part[:0]
        raws.append(part)
    elements = CHUNK * len(places)
    return WindowData(Window(window.index, 0, elements, 0, elements), raws, [])


class SamplePass:
    """Brackets the keys of some order statistics by those of a sample.

    A small tensor is not sampled: the pass that counts holds all its keys.
    """

    def __init__(self, state: TensorState, orders: Sequence[Order]) -> None:
        self._state = state
        self._orders = orders
        self._small = state.task.numel <= SAMPLE_ELEMENTS
        self._keys: dict[tuple[int, bool], list[NDArray[np.int32]]] = {(o.model, o.of_order): [] for o in orders}

    def run(self, data: WindowData, workspace: Workspace) -> None:
        if self._small:
            return
        state = self._state
        sample = sample_of(state, data)
        elements = sample.window.own_end
        if not elements:
            return
        found: dict[tuple[int, bool], list[NDArray[np.int32]]] = {}
        for begin, end in tiles(0, elements, state.tile):
            state.inputs.load(sample, workspace, begin, end, [0] * state.inputs.count)
            for model, of_order in self._keys:
                values = values_of(state, workspace, model, of_order, begin, end)
                keys = host(values).view(np.int32) & LARGEST_KEY
                found.setdefault((model, of_order), []).append(keys)
        with state.lock:
            for which, parts in found.items():
                self._keys[which] += parts

    def finish(self) -> None:
        for order in self._orders:
            parts = self._keys[order.model, order.of_order]
            if self._small:
                order.bracket = ALL_KEYS
            elif parts:
                order.bracket = self._bracket(order, np.concatenate(parts))
        self._keys = {}

    def _bracket(self, order: Order, keys: NDArray[np.int32]) -> Bracket:
        numel, count = self._state.task.numel, len(keys)
        share = numel / count
        found = order.rank([numel], [int(np.count_nonzero(keys == 0) * share)])
        if found is None:  # nothing is searched, or all changes are kept
            return NO_BRACKET
        rank = min(max(math.ceil(found[1] / share), 1), count)
        part = rank / count
        margin = math.ceil(DEVIATIONS * math.sqrt(count * part * (1 - part))) + 1
        upper, lower = rank - margin, rank + margin
        places = count - min(max(upper, 1), count), count - min(lower, count)
        keys.partition(sorted(set(places)))
        high, low = (int(keys[place]) for place in places)
        return Bracket(low if lower <= count else 0, high if upper >= 1 else LARGEST_KEY)


@dataclass(slots=True)
class _Near:
    """What all windows counted near one bracket."""

    counts: NDArray[np.int64]
    """[windows, NEAR_COUNTS]"""
    inside: list[NDArray[np.int32]]
    """Per window, the keys strictly inside."""
    held: int = 0
    overflowed: bool = False

    def put(self, window: int, counts: NDArray[np.int64], inside: NDArray[np.int32], number: int) -> None:
        self.counts[window] = counts
        self.held += number
        if number > len(inside) or self.held > FOUND_PER_TENSOR:
            self.overflowed, self.inside = True, []
        if not self.overflowed:
            self.inside[window] = inside[:number].copy()

    def find(self, rank: int, bracket: Bracket) -> tuple[int, int, NDArray[np.int64]] | None:
        """(key, how many are larger, how many are equal in each window) of that rank; None outside the bracket."""
        above, at_high, at_low, _ = (int(count) for count in self.counts.sum(axis=0))
        if above < rank <= above + at_high:
            return bracket.high, above, self.counts[:, NEAR_HIGH]
        above += at_high
        if self.overflowed or bracket.low == bracket.high:
            return None
        if above < rank <= above + self.held:
            keys = np.concatenate(self.inside)
            place = len(keys) - (rank - above)
            keys.partition(place)
            key = int(keys[place])
            equal = np.array([np.count_nonzero(part == key) for part in self.inside], np.int64)
            return key, above + int(np.count_nonzero(keys > key)), equal
        above += self.held
        return (bracket.low, above, self.counts[:, NEAR_LOW]) if above < rank <= above + at_low else None


class BracketPass(CountingPass):
    """Counts what lies above, at the ends of and inside each bracket; settles the statistics whose key is found."""

    def __init__(self, state: TensorState, orders: Sequence[Order]) -> None:
        super().__init__(state)
        self._orders = orders
        windows = len(state.windows)
        nothing = np.empty(0, np.int32)
        self._near = [_Near(np.zeros((windows, NEAR_COUNTS), np.int64), [nothing] * windows) for _ in orders]

    def _look(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        found = count_near(self._state, self._orders, data, workspace, tally)
        with self._state.lock:
            for near, counts, inside, number in zip(self._near, found.counts, found.inside, found.numbers, strict=True):
                near.put(data.window.index, counts, inside, int(number))

    def _conclude(self) -> None:
        for order, near in zip(self._orders, self._near, strict=True):
            self._settle(order, near)
        self._near = []

    def _settle(self, order: Order, near: _Near) -> None:
        state = self._state
        zeros = [int(near.counts[:, NEAR_ZERO].sum())]
        place = order.rank([state.task.numel], zeros)
        if place is None:
            order.settled = True
            return
        found = near.find(place[1], order.bracket)
        if found is None:
            return
        order.zeros, (key, above, equal) = zeros, found
        order.settle(RankSearch.found(place[1], state.levels, key, above, int(equal.sum())), 0, equal.tolist())


def count_near(
    state: TensorState, orders: Sequence[Order], data: WindowData, workspace: Workspace, tally: WindowTally
) -> NearCounts:
    """What lies near the brackets of some statistics in a window."""
    return _near_whole(state, orders, data, tally) or _near_tiles(state, orders, data, workspace, tally)


def _near_whole(state: TensorState, orders: Sequence[Order], data: WindowData, tally: WindowTally) -> NearCounts | None:
    """With one call, where the tensor is of the usual kind."""
    inputs, of_variance = state.inputs.whole(data), state.masks.of_variance
    if inputs is None:
        return None
    of = [OF_VARIANCE if each.of_order and of_variance else state.present.index(each.model) for each in orders]
    near = [(which, *order.bracket) for which, order in zip(of, orders, strict=True)]
    found = state.kernels.near_window(WindowNear(near, FOUND_PER_WINDOW), inputs)
    if found is not None:
        tally.add_nonfinite(state.inputs.sources, found.nonfinite.tolist())
    return found


def _near_tiles(
    state: TensorState, orders: Sequence[Order], data: WindowData, workspace: Workspace, tally: WindowTally
) -> NearCounts:
    found = NearCounts.empty(0, len(orders), FOUND_PER_WINDOW)
    for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
        state.inputs.load(data, workspace, begin, end, tally.nonfinite)
        for place, order in enumerate(orders):
            values = values_of(state, workspace, order.model, order.of_order, begin, end)
            free = found.inside[place, found.numbers[place] :]
            found.numbers[place] += state.kernels.count_near(values, *order.bracket, found.counts[place], free)
    return found
