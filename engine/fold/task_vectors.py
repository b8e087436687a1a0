"""The family of methods that select, weigh and add task vectors: its passes, from densities to output bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..methods import All, Band, Elect, Selection, TadropDensity, TaskVectorMerge, Top, TopInTurn, Variance, tadrop
from ..plan import TensorRow, tiles
from .brackets import order_passes
from .family import TensorFold, merged_row
from .histograms import OrderPass, edge_orders, quantile_orders
from .inputs import WindowData
from .passes import CountingPass, Pass
from .sums import KeptSquares, MomentsPass, RowSums, check_moments
from .tally import Target, WindowTally, add_into
from .tensor import TensorState
from .tile_work import TileMasks
from .window_work import fold_of, fold_window, masks_of
from .workspace import Workspace

Sums = list[NDArray[np.float64] | None]
"""Per model: f64 [2] = sum |t|, sum t^2; None for a model without the tensor."""


class TaskVectorFold(TensorFold):
    """Looks at a tensor as often as its method asks for, and merges it."""

    def __init__(self, state: TensorState, method: TaskVectorMerge[Selection]) -> None:
        self._rescale = method.rescale
        decided = partial(self._divide_by_density, state)
        passes = [*density_passes(state, method, decided, method.restores_norm), *edge_passes(state)]
        if method.restores_norm:
            passes.append(KeptSumsPass(state, partial(divide_by_norms, state, 0 if method.rescale == "l1" else 1)))
        if method.weighting == "energy":
            passes.append(KeptSumsPass(state, partial(weigh_by_energy, state)))
        if method.counts_owners:
            passes.append(OwnersPass(state))
        known = any(isinstance(each, MomentsPass) for each in passes)
        summed = isinstance(method.selection, All) or any(isinstance(each, KeptSumsPass) for each in passes)
        fold = FoldPass(state, None if known else RowSums(state), None if summed else KeptSquares(state))
        super().__init__(state, [*passes, fold])
        self._divide_by_density(state)

    def _divide_by_density(self, state: TensorState) -> None:
        if self._rescale == "density" and not state.masks.divides:
            state.divisors = [d if d > 0 else 1.0 for d in state.masks.densities]

    def row(self, target: Target) -> TensorRow:
        tally, numel = self.state.tally, self.state.task.numel
        keeps_all = isinstance(self.state.masks.selection, All)
        claims = (0,) * len(self.state.present) + (numel,) if keeps_all else tally.claims(numel)
        return merged_row(self.state, target, tally.kept, tally.overlaps, claims)


def passes_to_kept_sums(state: TensorState, then: Callable[[Sums], None]) -> list[Pass]:
    """The passes of a merge by task vectors up to its masks and, in place of the one that writes, sums over what they
    keep; `then` gets these when divisors are known, too.
    """
    method = state.task.method
    assert isinstance(method, TaskVectorMerge), "no other method has masks whose sums are wanted"
    return [*TaskVectorFold(state, method).passes[:-1], KeptSumsPass(state, then)]


def density_passes(
    state: TensorState, method: TaskVectorMerge[Selection] | Elect, decided: Callable[[], None], moments: bool = False
) -> list[Pass]:
    """Passes that decide densities from the tensor alone (`tadrop` without a target), or take moments for norms.

    Args:
        state: gets the densities.
        method: says which follow from the tensor.
        decided: called whenever some densities are known.
        moments: whether moments are wanted in any case.
    """
    wanted = {i: density for i, density in method.local_densities.items() if i in state.present}
    by_moments = {i: d for i, d in wanted.items() if d.statistic != "quantile"}
    passes: list[Pass] = []
    if by_moments or moments:
        passes.append(MomentsPass(state, partial(_densities_from_moments, state, by_moments, decided)))
    quantiles = [i for i in wanted if i not in by_moments]
    if quantiles:
        found = partial(_density_from_quantiles, state, decided)
        passes += order_passes(state, [order for i in quantiles for order in quantile_orders(state, i, found)])
    return passes


def _densities_from_moments(state: TensorState, models: dict[int, TadropDensity], decided: Callable[[], None]) -> None:
    for i, wanted in models.items():
        statistic = tadrop.kurtosis if wanted.statistic == "kurtosis" else tadrop.participation
        state.masks.densities[i] = tadrop.local_density(statistic(state.task.numel, check_moments(state, i)))
    decided()


def _density_from_quantiles(
    state: TensorState, decided: Callable[[], None], i: int, median: float, high: float, all_zero: bool
) -> None:
    state.masks.densities[i] = tadrop.local_density(tadrop.quantile(median, high, all_zero))
    decided()


def edge_passes(state: TensorState) -> list[Pass]:
    """Passes that find the edges of masks."""
    selection = state.masks.selection
    if isinstance(selection, Variance):
        return order_passes(state, edge_orders(state, state.present[0], sequential=False))
    if isinstance(selection, TopInTurn):
        passes: list[Pass] = []
        for place, i in enumerate(state.present):
            in_turn = edge_orders(state, i, sequential=True)
            passes += [OrderPass(state, in_turn, depth, state.present[:place]) for depth in range(len(state.levels))]
        return passes
    if isinstance(selection, Top | Band):
        orders = [order for i in state.present for order in edge_orders(state, i, sequential=False)]
        return order_passes(state, orders)
    return []


class FoldPass(CountingPass):
    """Selects every window once; combines and rounds it for every target.

    Args:
        state: the tensor.
        sums: where sums over task vectors are added; None where a pass before took them.
        kept: where sums over what masks keep of them are added; None where a pass took them, or everything is kept.
    """

    def __init__(self, state: TensorState, sums: RowSums | None, kept: KeptSquares | None) -> None:
        super().__init__(state)
        self._sums = sums
        self._kept = kept

    def _look(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        moments: Literal["none", "changes"] = "none" if self._sums is None else "changes"
        work = fold_of(self._state, data, workspace, moments, kept_squares=self._kept is not None)
        fold_window(self._state, work, data, workspace, self._sums, self._kept, tally)

    def _conclude(self) -> None:
        if self._sums is not None:
            self._state.moments = self._sums.total()
        if self._kept is not None:
            self._state.kept_squares = [None if sums is None else float(sums[0]) for sums in self._kept.total()]
        elif isinstance(self._state.masks.selection, All):
            self._state.kept_squares = squares_of(self._state.moments)

    def _own_share(self, begin: int, end: int) -> Sequence[NDArray[np.float64]]:
        return [sums for each in self._gathered() for sums in each.share(begin, end)]

    def _take_own(self, numbers: Sequence[NDArray[np.float64]]) -> None:
        models = len(self._state.present)
        for place, each in enumerate(self._gathered()):
            each.take(numbers[place * models : (place + 1) * models])

    def _gathered(self) -> list[RowSums]:
        return [sums for sums in (self._sums, self._kept) if sums is not None]


class KeptSumsPass(CountingPass):
    """Sums over what each mask keeps of its task vector; `then` gets them."""

    def __init__(self, state: TensorState, then: Callable[[Sums], None]) -> None:
        super().__init__(state)
        self._then = then
        self._sums = RowSums(state)

    def _look(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        work = fold_of(self._state, data, workspace, "kept")
        fold_window(self._state, work, data, workspace, self._sums, None, tally)

    def _conclude(self) -> None:
        sums = self._sums.total()
        self._state.kept_squares = squares_of(sums)
        self._then(sums)


def squares_of(sums: Sums) -> list[float | None]:
    """Per model, the sum of t^2."""
    return [None if each is None else float(each[1]) for each in sums]


def divide_by_norms(state: TensorState, norm: int, kept: Sums) -> None:
    """Divide by the share of the norm that each mask keeps (mergekit's rescale); the state's moments are known.

    Args:
        state: the tensor.
        norm: 0 for the sum of |t|, 1 for the root of the sum of t^2.
        kept: sums over what the masks keep.
    """
    for i, (before, after) in enumerate(zip(state.moments, kept, strict=True)):
        if before is not None and after is not None:
            share = float(after[norm] / before[norm]) if before[norm] > 0 else 1.0
            share = share if norm == 0 else share**0.5
            state.divisors[i] = share if share > 0 else 1.0


def weigh_by_energy(state: TensorState, kept: Sums) -> None:
    """Weights of SCE: each model's mean of t^2 over the sum of these; equal ones where nothing was kept."""
    squares = [0.0 if sums is None else float(sums[1]) for sums in kept]
    total = 0.0
    for value in squares:
        total += value / state.task.numel
    alike = 1.0 / len(state.present)
    state.energies = [value / state.task.numel / total if total > 0 else alike for value in squares]


class OwnersPass(CountingPass):
    """How many elements each mask keeps alone, and how many with others: the `owners` of the state."""

    def __init__(self, state: TensorState) -> None:
        super().__init__(state)
        models = len(state.task.models)
        self._own, self._kept = [0] * models, [0] * models

    def _look(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        state, kernels = self._state, self._state.kernels
        masks = TileMasks(state, state.present, masks_of(state, data, workspace, state.present))
        own, kept = [0] * len(self._own), [0] * len(self._own)
        for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
            length = end - begin
            state.inputs.load(data, workspace, begin, end, tally.nonfinite)
            claims, alone = masks.make(workspace, begin, end), workspace.spare[:length]
            alone[:] = claims == 1
            for i in state.present:
                own[i] += kernels.pair_overlap(workspace.masks[i][:length], alone)
                kept[i] += kernels.count(workspace.masks[i][:length])
        with state.lock:
            add_into(self._own, own)
            add_into(self._kept, kept)

    def _conclude(self) -> None:
        owners = zip(self._own, self._kept, strict=True)
        self._state.owners = [(own, kept - own) for own, kept in owners]
