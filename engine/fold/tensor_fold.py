"""One tensor: windows of the inputs -> masks in recipe order -> windows of the output, in a fixed list of passes."""

from __future__ import annotations

import math
from functools import partial
from itertools import combinations

from ..kernels import WindowCounts
from ..methods import (
    Band,
    CombinationMerge,
    Elect,
    Fusion,
    NearSwap,
    Selection,
    TadropDensity,
    TaskVectorMerge,
    Top,
    TopInTurn,
    Variance,
    tadrop,
)
from ..plan import ModelRow, TensorRow, needs_columns, tiles
from .arcee_fusion import fusion_passes
from .brackets import order_passes
from .combination import combination_passes
from .combination_by_column import column_passes
from .copying import CopyPass
from .emr import ElectPass
from .histograms import OrderPass, edge_orders, quantile_orders
from .mask_sums import KeptSumsPass, OwnersPass, divide_by_norms, weigh_by_energy
from .masks import Ranks
from .nearswap import NearSwapPass
from .passes import Pass, WindowData, add_into
from .rounding import check_overflow, write_merged
from .sums import MomentsPass, RowSums, check_moments
from .task_vectors import TaskVectorSum
from .tensor import Target, TensorState
from .whole_window import fold_whole
from .workspace import Workspace


class FoldPass:
    """Selects every window of a tensor merged by task vectors once; combines and rounds it for every target."""

    def __init__(self, state: TensorState, sums: RowSums | None) -> None:
        self._state = state
        self._sums = sums
        self._sums_by_target = [TaskVectorSum(state, target) for target in state.targets]
        self._nonfinite = [0] * (len(state.task.models) + 1)

    def run(self, data: WindowData, workspace: Workspace) -> None:
        state, window = self._state, data.window
        ranks = state.start_ranks(data, workspace, state.present)
        nonfinite = [0] * len(self._nonfinite)
        kept = [0] * len(state.task.models)
        overlaps = dict.fromkeys(combinations(state.present, 2), 0)
        overflowed = [0] * len(self._sums_by_target)
        whole = fold_whole(state, data, ranks, self._sums is not None)
        if whole is not None:
            self._take(whole, data, nonfinite, kept, overlaps, overflowed)
        for begin, end in () if whole is not None else tiles(window.own_begin, window.own_end, state.tile):
            state.load(data, workspace, begin, end, nonfinite)
            if self._sums:
                self._sums.add(workspace, begin, end)
            self._select(workspace, begin, end, ranks, kept, overlaps)
            for place, summed in enumerate(self._sums_by_target):
                summed.run(workspace, end - begin)
                overflowed[place] += write_merged(state, data, workspace, begin, end, place)
        with state.lock:
            add_into(self._nonfinite, nonfinite)
            state.add_counts(kept, overlaps, overflowed)

    def _take(
        self,
        counts: WindowCounts,
        data: WindowData,
        nonfinite: list[int],
        kept: list[int],
        overlaps: dict[tuple[int, int], int],
        overflowed: list[int],
    ) -> None:
        """What a call for a whole window counted."""
        self._state.add_nonfinite(nonfinite, counts.nonfinite)
        add_into(overflowed, counts.overflowed.tolist())
        for place, i in enumerate(self._state.present):
            kept[i] += int(counts.kept[place])
            if self._sums:
                self._sums.put(i, data.window.own_begin, counts.rows[place])
            for other, j in enumerate(self._state.present[place + 1 :], place + 1):
                overlaps[i, j] += int(counts.shared[place, other])

    def _select(
        self,
        workspace: Workspace,
        begin: int,
        end: int,
        ranks: Ranks,
        kept: list[int],
        overlaps: dict[tuple[int, int], int],
    ) -> None:
        state, length = self._state, end - begin
        assert state.selector is not None
        if state.selector.keeps_all:
            for i in state.present:
                kept[i] += length
            for pair in overlaps:
                overlaps[pair] += length
            return
        state.mask_tile(workspace, begin, end, state.present, ranks)
        state.count_masks(workspace, length, kept, overlaps)

    def finish(self) -> None:
        state = self._state
        state.settle_nonfinite(self._nonfinite)
        if self._sums:
            state.moments = self._sums.total()
        check_overflow(state)


class TensorFold:
    """The passes that merge or copy one tensor, and the rows that report it.

    Args:
        state: the tensor, made for these passes alone.
    """

    def __init__(self, state: TensorState) -> None:
        self.state = state
        self.passes = self._passes()

    def _passes(self) -> list[Pass]:
        state = self.state
        settings = state.task.settings
        if settings is None:
            return [CopyPass(state)]
        if isinstance(settings.method, CombinationMerge):
            make = column_passes if needs_columns(state.task) else combination_passes
            return make(state, settings.method)
        if isinstance(settings.method, NearSwap):
            return [NearSwapPass(state, settings.method)]
        if isinstance(settings.method, Elect):
            return [ElectPass(state)]
        if isinstance(settings.method, Fusion):
            return fusion_passes(state)
        method = settings.method
        passes = [*self._density_passes(), *self._order_passes(method)]
        if method.rescale in ("l1", "l2"):
            if not any(isinstance(p, MomentsPass) for p in passes):
                passes.insert(0, MomentsPass(state, self._divide_by_density))
            passes.append(KeptSumsPass(state, partial(divide_by_norms, state, 0 if method.rescale == "l1" else 1)))
        if method.weighting == "energy":
            passes.append(KeptSumsPass(state, partial(weigh_by_energy, state)))
        if method.counts_owners:
            passes.append(OwnersPass(state))
        self._divide_by_density()
        known = any(isinstance(p, MomentsPass) for p in passes)
        return [*passes, FoldPass(state, None if known else RowSums(state))]

    def _density_passes(self) -> list[Pass]:
        """Passes that decide densities from the tensor alone (`tadrop` without a target)."""
        state = self.state
        assert state.task.settings is not None and state.selector is not None
        local = {i: d for i, d in enumerate(state.task.settings.method.densities) if isinstance(d, TadropDensity)}
        local = {i: d for i, d in local.items() if i in state.present}
        by_moments = {i: d for i, d in local.items() if d.statistic != "quantile"}
        passes: list[Pass] = []
        if by_moments:
            passes.append(MomentsPass(state, lambda: self._densities_from_moments(by_moments)))
        quantiles = [i for i in local if i not in by_moments]
        if quantiles:
            orders = [o for i in quantiles for o in quantile_orders(state, i, self._density_from_quantiles)]
            passes += order_passes(state, orders)
        return passes

    def _densities_from_moments(self, models: dict[int, TadropDensity]) -> None:
        state = self.state
        assert state.selector is not None
        for i, wanted in models.items():
            moments = state.moments[i]
            assert moments is not None
            check_moments(state, i)
            statistic = tadrop.kurtosis if wanted.statistic == "kurtosis" else tadrop.participation
            state.selector.densities[i] = tadrop.local_density(statistic(state.task.numel, moments))
        self._divide_by_density()

    def _density_from_quantiles(self, i: int, median: float, high: float, all_zero: bool) -> None:
        assert self.state.selector is not None
        self.state.selector.densities[i] = tadrop.local_density(tadrop.quantile(median, high, all_zero))
        self._divide_by_density()

    def _divide_by_density(self) -> None:
        method = self.state.task.settings.method if self.state.task.settings else None
        selector = self.state.selector
        if selector is None or selector.divides or not isinstance(method, TaskVectorMerge):
            return
        if method.rescale == "density":
            self.state.divisors = [d if d > 0 else 1.0 for d in selector.densities]

    def _order_passes(self, method: TaskVectorMerge[Selection]) -> list[Pass]:
        state = self.state
        selection, depths = method.selection, range(len(state.levels))
        if not isinstance(selection, Top | TopInTurn | Band | Variance):
            return []
        if isinstance(selection, Variance):
            shared = edge_orders(state, state.present[0], sequential=False)
            return order_passes(state, shared)
        if not isinstance(selection, TopInTurn):
            orders = [order for i in state.present for order in edge_orders(state, i, sequential=False)]
            return order_passes(state, orders)
        passes: list[Pass] = []
        for place, i in enumerate(state.present):
            in_turn = edge_orders(state, i, sequential=True)
            passes += [OrderPass(state, in_turn, depth, state.present[:place]) for depth in depths]
        return passes

    def row(self, target: Target) -> TensorRow:
        """What a recipe's receipt says of this tensor; valid after the last pass."""
        state, task = self.state, self.state.task
        if task.settings is None:
            return TensorRow(name=task.name, action="copied", reason=task.reason, overflowed=target.overflowed)
        if isinstance(self.passes[0], ElectPass):
            return self.passes[0].row(target)
        densities = state.selector.densities if state.selector else [1.0] * len(task.models)
        selects = isinstance(task.settings.method, TaskVectorMerge | Fusion)
        models: list[ModelRow | None] = [None] * len(task.models)
        for i in state.present:
            moments = state.moments[i]
            models[i] = ModelRow(
                density=densities[i],
                kept=state.tally.kept[i] if selects else task.numel,
                l1=None if moments is None else _writable(float(moments[0])),
                l2=None if moments is None else _writable(math.sqrt(float(moments[1]))),
            )
        shared = state.tally.overlaps
        if isinstance(task.settings.method, CombinationMerge):  # every model gives every element
            shared = dict.fromkeys(combinations(state.present, 2), task.numel)
        overlaps = tuple((a, b, count) for (a, b), count in sorted(shared.items()))
        return TensorRow(
            name=task.name,
            action="merged",
            models=tuple(models),
            overlaps=overlaps,
            nonfinite=sum(state.tally.nonfinite),
            overflowed=target.overflowed,
        )


def _writable(value: float) -> float | None:
    """A number that JSON knows: squares of fp64 task vectors may lie beyond fp64."""
    return value if math.isfinite(value) else None
