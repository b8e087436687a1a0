"""Passes of a survey: moments and zeros of task vectors, and histograms of whole models."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..kernels import LEVELS_32, host
from ..plan import tiles
from .inputs import WindowData
from .passes import CountingPass
from .sums import MomentSums, check_moments
from .tally import WindowTally, add_into
from .tensor import TensorState
from .workspace import Workspace

EXPONENTS = {"f32": (23, 8, 127), "f64": (52, 11, 1023)}
"""Where a magnitude's bit pattern has its exponent (shift and bits), and what that is larger by."""


class StatisticsPass(CountingPass):
    """Moments and zeros of every task vector of one tensor.

    Args:
        state: the tensor.
        octaves: also count elements by the exponents of their magnitudes.
    """

    def __init__(self, state: TensorState, octaves: bool = False) -> None:
        super().__init__(state)
        self._sums = MomentSums(state)
        self.zeros = [0] * len(state.task.models)
        shift, bits, self._bias = EXPONENTS[state.real]
        self._bits = (shift, bits)
        counted = len(state.task.models) if octaves else 0
        self._octaves = [np.zeros(1 << bits, np.int64) for _ in range(counted)]

    def _look(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        state, zeros = self._state, [0] * len(self.zeros)
        shift, bits = self._bits
        counts = workspace.histograms(len(state.present) if self._octaves else 0)
        for begin, end in tiles(data.window.begin, data.window.end, state.stat_tile):
            state.inputs.load(data, workspace, begin, end, tally.nonfinite)
            self._sums.add(workspace, begin, end)
            for i in state.present:
                zeros[i] += state.kernels.count_equal(workspace.task_vectors[i][: end - begin], None, 0, 0)
            for octaves, i in zip(counts, state.present, strict=False):
                t = workspace.task_vectors[i][: end - begin]
                state.kernels.histogram(t, None, 0, shift, bits, 0, octaves[: 1 << bits])
        with state.lock:
            add_into(self.zeros, zeros)
            for octaves, i in zip(counts, state.present, strict=False):
                self._octaves[i] += host(octaves[: 1 << bits])

    def _conclude(self) -> None:
        self._state.moments = self._sums.total()
        for i in self._state.present:
            self.moments(i)

    def octaves(self, i: int) -> Counter[int]:
        """Elements of model i by octave: n counts 2^n <= |t| < 2^(n + 1); zeros and denormals are left out."""
        counts = self._octaves[i]
        return Counter({place - self._bias: int(counts[place]) for place in np.flatnonzero(counts).tolist() if place})

    def moments(self, i: int) -> NDArray[np.float64]:
        """Sums over the task vector of model i, once the pass is over; InputError where they are beyond fp64."""
        return check_moments(self._state, i)


class HistogramPass(CountingPass):
    """One histogram level over every task vector of one tensor, added to the shard's.

    Args:
        state: the tensor.
        level: which bits of a magnitude.
        prefixes: per model, the bits before them.
        totals: per model, i64 counts of the whole shard.
        lock: guards the totals, which tensors that are folded at the same time share.
    """

    def __init__(
        self,
        state: TensorState,
        level: int,
        prefixes: Sequence[int],
        totals: list[NDArray[np.int64]],
        lock: threading.Lock,
    ) -> None:
        super().__init__(state)
        self._level = level
        self._models = {i: state.task.model_of(i) for i in state.present}
        self._prefixes = prefixes
        self._totals = totals
        self._totals_lock = lock

    def _look(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        state = self._state
        shift, bits = LEVELS_32[self._level]
        histograms = workspace.histograms(len(state.present))
        for begin, end in tiles(data.window.begin, data.window.end, state.stat_tile):
            state.inputs.load(data, workspace, begin, end, tally.nonfinite)
            for counts, i in zip(histograms, state.present, strict=True):
                t, prefix = workspace.task_vectors[i][: end - begin], self._prefixes[self._models[i]]
                state.kernels.histogram(t, None, 0, shift, bits, prefix, counts[: 1 << bits])
        with self._totals_lock:
            for counts, i in zip(histograms, state.present, strict=True):
                self._totals[self._models[i]] += host(counts[: 1 << bits])
