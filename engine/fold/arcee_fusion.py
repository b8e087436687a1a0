"""Arcee fusion: takes from one model what matters most, measured by change and divergence of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..kernels import Array, RankSearch, host, key_value, on_device, quantile_rank
from ..methods import Fusion
from ..plan import TensorRow, tiles
from .edges import KEEP_ALL_EQUAL
from .family import TensorFold, merged_row
from .inputs import WindowData
from .passes import CountingPass
from .rounding import write_merged
from .tally import Target, WindowTally
from .tensor import TensorState
from .workspace import Workspace

QUARTILES = (0.25, 0.5, 0.75)


class FusionFold(TensorFold):
    """One look per level of the histograms, then the merge."""

    def __init__(self, state: TensorState, method: Fusion) -> None:
        del method  # it has no parameters
        importance = Importance(state)
        looks = [ImportancePass(state, importance, depth) for depth in range(len(state.levels))]
        super().__init__(state, [*looks, FusionPass(state, importance)])

    def row(self, target: Target) -> TensorRow:
        return merged_row(self.state, target, self.state.tally.kept, {})


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
        state.inputs.load(data, workspace, begin, end, nonfinite)
        rows = slice(begin // width, end // width)
        if first_look:
            values, raw = workspace.signs[:length], state.inputs.bytes_of(data, 1, begin, length)
            state.kernels.decode(raw, state.inputs.dtype(1), values)
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


class ImportancePass(CountingPass):
    """One histogram level of the three quartiles."""

    def __init__(self, state: TensorState, importance: Importance, depth: int) -> None:
        super().__init__(state)
        self._importance = importance
        self._depth = depth
        self._counts: dict[int, NDArray[np.int64]] = {}
        """By the bits above this level that a search has found."""

    def _look(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        state = self._state
        shift, bits = state.levels[self._depth]
        prefixes = sorted({search.prefix for search in self._importance.searches})
        histograms = workspace.histograms(len(prefixes))
        for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
            values = self._importance.load(data, workspace, begin, end, tally.nonfinite, self._depth == 0)
            for prefix, histogram in zip(prefixes, histograms, strict=True):
                state.kernels.histogram(values, None, 0, shift, bits, prefix, histogram[: 1 << bits])
        with state.lock:
            for prefix, histogram in zip(prefixes, histograms, strict=True):
                counts = self._counts.setdefault(prefix, np.zeros(1 << bits, np.int64))
                counts += host(histogram[: 1 << bits])

    def _conclude(self) -> None:
        for search in self._importance.searches:
            search.narrow(self._counts[search.prefix])
        self._counts = {}


class FusionPass(CountingPass):
    """The base, plus the change where its importance reaches the threshold."""

    def __init__(self, state: TensorState, importance: Importance) -> None:
        super().__init__(state)
        self._importance = importance

    def _look(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        state, kernels, key = self._state, self._state.kernels, self._importance.threshold_key
        for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
            length = end - begin
            values = self._importance.load(data, workspace, begin, end, tally.nonfinite, False)
            total, active, mask = workspace.sum[:length], workspace.active[:length], workspace.masks[0][:length]
            total[:] = 0
            active[:] = 0
            kernels.mask_top(values, None, 0, key, KEEP_ALL_EQUAL, 0, mask)
            kernels.accumulate(total, workspace.task_vectors[0][:length], mask, 1.0, 1.0, active)
            tally.kept[0] += kernels.count(mask)
            tally.overflowed[0] += write_merged(state, data, workspace, begin, end)
