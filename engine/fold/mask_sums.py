"""The pass that adds up what masks keep of task vectors, and what follows from it: divisors, or weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..kernels import WindowCounts
from ..plan import tiles
from .passes import WindowData, add_into
from .sums import RowSums
from .tensor import TensorState
from .whole_window import fold_whole
from .workspace import Workspace


class KeptSumsPass:
    """Sums over what each mask keeps of its task vector.

    Args:
        state: the tensor.
        then: gets f64 [3] = sum |t|, sum t^2, sum t^4 per model; None for a model without the tensor.
    """

    def __init__(self, state: TensorState, then: Callable[[list[NDArray[np.float64] | None]], None]) -> None:
        self._state = state
        self._then = then
        self._sums = RowSums(state)
        self._nonfinite = [0] * (len(state.task.models) + 1)

    def run(self, data: WindowData, workspace: Workspace) -> None:
        state = self._state
        assert state.selector is not None
        ranks = state.start_ranks(data, workspace, state.present)
        counts = [0] * len(self._nonfinite)
        whole = fold_whole(state, data, ranks, moments=True, kept=True)
        if whole is not None:
            self._take(whole, data, counts)
        for begin, end in () if whole is not None else tiles(data.window.own_begin, data.window.own_end, state.tile):
            state.load(data, workspace, begin, end, counts)
            if not state.selector.keeps_all:
                state.mask_tile(workspace, begin, end, state.present, ranks)
                for i in state.present:
                    t = workspace.task_vectors[i][: end - begin]
                    t *= workspace.masks[i][: end - begin]
            self._sums.add(workspace, begin, end)
        with state.lock:
            add_into(self._nonfinite, counts)

    def _take(self, whole: WindowCounts, data: WindowData, counts: list[int]) -> None:
        """What a call for a whole window added up."""
        self._state.add_nonfinite(counts, whole.nonfinite)
        for place, i in enumerate(self._state.present):
            self._sums.put(i, data.window.own_begin, whole.rows[place])

    def finish(self) -> None:
        self._state.settle_nonfinite(self._nonfinite)
        self._then(self._sums.total())


def divide_by_norms(state: TensorState, norm: int, kept: list[NDArray[np.float64] | None]) -> None:
    """Divide by the share of the norm that each mask keeps (mergekit's rescale); the state's moments are known.

    Args:
        state: the tensor.
        norm: 0 for the sum of |t|, 1 for the root of the sum of t^2.
        kept: sums over what the masks keep.
    """
    for i in state.present:
        before, after = state.moments[i], kept[i]
        assert before is not None and after is not None
        share = float(after[norm] / before[norm]) if before[norm] > 0 else 1.0
        share = share if norm == 0 else share**0.5
        state.divisors[i] = share if share > 0 else 1.0


def weigh_by_energy(state: TensorState, kept: list[NDArray[np.float64] | None]) -> None:
    """Weights of SCE: each model's mean of t^2 over the sum of these; equal ones where nothing was kept."""
    squares = [0.0 if sums is None else float(sums[1]) for sums in kept]
    total = 0.0
    for value in squares:
        total += value / state.task.numel
    alike = 1.0 / len(state.present)
    state.energies = [value / state.task.numel / total if total > 0 else alike for value in squares]


class OwnersPass:
    """How many elements each mask keeps alone, and how many with others: `own` and `shared` of the state."""

    def __init__(self, state: TensorState) -> None:
        self._state = state
        models = len(state.task.models)
        self._own, self._kept = [0] * models, [0] * models
        self._nonfinite = [0] * (models + 1)

    def run(self, data: WindowData, workspace: Workspace) -> None:
        state, kernels, counts = self._state, self._state.kernels, [0] * len(self._nonfinite)
        ranks = state.start_ranks(data, workspace, state.present)
        own, kept = [0] * len(self._own), [0] * len(self._own)
        for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
            length = end - begin
            state.load(data, workspace, begin, end, counts)
            claims, alone = state.mask_tile(workspace, begin, end, state.present, ranks), workspace.spare[:length]
            alone[:] = claims == 1
            for i in state.present:
                own[i] += kernels.pair_overlap(workspace.masks[i][:length], alone)
                kept[i] += kernels.count(workspace.masks[i][:length])
        with state.lock:
            add_into(self._nonfinite, counts)
            add_into(self._own, own)
            add_into(self._kept, kept)

    def finish(self) -> None:
        self._state.settle_nonfinite(self._nonfinite)
        self._state.own = self._own
        self._state.shared = [kept - own for kept, own in zip(self._kept, self._own, strict=True)]
