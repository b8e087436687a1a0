"""Arcee fusion: takes from one model what matters most, measured by change and divergence of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..kernels import Array, RankSearch, host, key_value, on_device, quantile_rank
from ..plan import tiles
from .masks import KEEP_ALL_EQUAL
from .passes import Pass, WindowData, add_into
from .rounding import check_overflow, write_merged
from .tensor import TensorState
from .workspace import Workspace

QUARTILES = (0.25, 0.5, 0.75)


def fusion_passes(state: TensorState) -> list[Pass]:
    """One look per level of the histograms, then the merge."""
    importance = Importance(state)
    looks: list[Pass] = [ImportancePass(state, importance, depth) for depth in range(len(state.levels))]
    return [*looks, FusionPass(state, importance)]


class Importance:
    """|W1 - W0| times the divergence of the softmax of W1's row from that of W0's row; and the threshold on it."""

    def __init__(self, state: TensorState) -> None:
        self._state = state
        self._width = state.task.row_elements
        self._divergences = np.zeros(state.task.numel // self._width)
        """Per row; known after the first look."""
        self.searches = [RankSearch(quantile_rank(q, state.task.numel), state.levels) for q in QUARTILES]

    def load(
        self, data: WindowData, workspace: Workspace, begin: int, end: int, nonfinite: list[int], first_look: bool
    ) -> Array:
        """Load elements [begin, end), whole rows, and return their importance, real [end - begin]."""
        state, length, width = self._state, end - begin, self._width
        state.load(data, workspace, begin, end, nonfinite)
        rows = slice(begin // width, end // width)
        if first_look:
            model, values = state.task.models[0], workspace.signs[:length]
            raw = state.bytes_of(data, 1, begin, length)
            assert raw is not None and model is not None
            state.kernels.decode(raw, model.info.dtype, values)
            factors = state.kernels.empty(length // width, "f64")
            state.kernels.row_divergence(values, workspace.base[:length], width, factors)
            self._divergences[rows] = host(factors)
        else:
            factors = on_device(state.kernels, self._divergences[rows])
        importance = workspace.weight_sum[:length]
        state.kernels.scale_rows(workspace.task_vectors[0][:length], factors, width, importance)
        return importance

    @property
    def threshold_key(self) -> int:
        """Bit pattern of median + 1.5 (upper quartile - lower quartile), in fp64 and rounded to real."""
        lower, median, upper = (key_value(search.prefix, self._state.real) for search in self.searches)
        threshold = np.float64(median + 1.5 * (upper - lower))
        with np.errstate(over="ignore"):  # nothing lies above infinity
            return int(
                threshold.astype(np.float32).view(np.uint32) if self._state.real == "f32" else threshold.view(np.uint64)
            )


class ImportancePass:
    """One histogram level of the three quartiles."""

    def __init__(self, state: TensorState, importance: Importance, depth: int) -> None:
        self._state = state
        self._importance = importance
        self._depth = depth
        self._counts: dict[int, NDArray[np.int64]] = {}
        """By the bits above this level that a search has found."""
        self._nonfinite = [0] * (len(state.task.models) + 1)

    def run(self, data: WindowData, workspace: Workspace) -> None:
        state, nonfinite = self._state, [0] * len(self._nonfinite)
        shift, bits = state.levels[self._depth]
        prefixes = sorted({search.prefix for search in self._importance.searches})
        histograms = workspace.histograms(len(prefixes))
        for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
            values = self._importance.load(data, workspace, begin, end, nonfinite, self._depth == 0)
            for prefix, histogram in zip(prefixes, histograms, strict=True):
                state.kernels.histogram(values, None, 0, shift, bits, prefix, histogram[: 1 << bits])
        with state.lock:
            add_into(self._nonfinite, nonfinite)
            for prefix, histogram in zip(prefixes, histograms, strict=True):
                counts = self._counts.setdefault(prefix, np.zeros(1 << bits, np.int64))
                counts += host(histogram[: 1 << bits])

    def finish(self) -> None:
        self._state.settle_nonfinite(self._nonfinite)
        for search in self._importance.searches:
            search.narrow(self._counts[search.prefix])
        self._counts = {}


class FusionPass:
    """The base, plus the change where its importance reaches the threshold."""

    def __init__(self, state: TensorState, importance: Importance) -> None:
        self._state = state
        self._importance = importance

    def run(self, data: WindowData, workspace: Workspace) -> None:
        state, kernels, overflowed, kept = self._state, self._state.kernels, 0, 0
        key, counted = self._importance.threshold_key, [0] * (len(state.task.models) + 1)
        for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
            length = end - begin
            values = self._importance.load(data, workspace, begin, end, counted, False)
            total, active, mask = workspace.sum[:length], workspace.active[:length], workspace.masks[0][:length]
            total[:] = 0
            active[:] = 0
            kernels.mask_top(values, None, 0, key, KEEP_ALL_EQUAL, 0, mask)
            kernels.accumulate(total, workspace.task_vectors[0][:length], mask, 1.0, 1.0, active)
            kept += kernels.count(mask)
            overflowed += write_merged(state, data, workspace, begin, end)
        with state.lock:
            state.tally.kept[0] += kept
            state.targets[0].overflowed += overflowed

    def finish(self) -> None:
        check_overflow(self._state)
