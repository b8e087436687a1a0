"""Statistics of whole models before the merge: TADrop's budget and model-wide thresholds, shard by shard."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RecipeError
from ..fold.brackets import order_passes
from ..fold.masks import KEEP_ALL_EQUAL, Cut, Edge
from ..fold.sums import RowSums, check_moments, quantile_orders
from ..fold.tensor import Pass, TensorState, WindowData, Workspace, add_into
from ..kernels.protocol import Kernels, host
from ..kernels.rank_search import LEVELS_32, RankSearch
from ..methods import tadrop
from ..methods.stages import ModelThreshold
from ..output.manifest import SurveyPart, SurveyRow, canonical_json
from ..plan.demands import grain
from ..plan.plan import Plan
from ..plan.task import TensorSettings, TensorTask
from ..plan.windows import tiles, window_elements
from ..recipe.parameters import TadropDensity
from ..storage.protocol import Store
from .memory import MemoryPlan
from .meter import Meter
from .pipeline import Pipeline
from .tensor_job import Job, Part


@dataclass(frozen=True)
class Round:
    """One reading of all inputs for statistics."""

    kind: str
    """'moments', 'quantiles' (moments as well), 'high' or 'low' (16 and 15 bits of a whole model's histogram)."""
    prefixes: tuple[int, ...] = ()
    """For 'low': per model, the high bits that were chosen."""

    def part_name(self, model: int, shard: int) -> str:
        suffix = "" if self.kind in ("moments", "quantiles") else f"-{self.kind}"
        return f"{model:03d}-{shard + 1:05d}{suffix}.json"


@dataclass(frozen=True)
class Survey:
    """What whole models decided."""

    densities: Mapping[str, tuple[float | TadropDensity, ...]] = field(default_factory=dict)
    """Per tensor, then as its task's models; only tensors whose density depends on the whole model."""
    thresholds: tuple[int, ...] | None = None
    """Per model, the smallest key that is kept."""
    rows: tuple[Mapping[str, Any], ...] = ()
    """The table that the manifest keeps."""

    def set_cuts(self, state: TensorState) -> None:
        """Give a tensor the whole model's thresholds; zeros are never kept, since keeping them changes nothing."""
        if self.thresholds is None or state.selector is None:
            return
        if isinstance(state.selector.selection, ModelThreshold):
            keys = [self.thresholds[state.task.model_of(i)] for i in range(len(state.task.models))]
            state.selector.edges = [
                [Edge(Cut(0, key, KEEP_ALL_EQUAL if key else 0)) if key >= 0 else None] for key in keys
            ]

    @property
    def digest(self) -> str:
        """SHA-256 over the table."""
        return hashlib.sha256(canonical_json(list(self.rows))).hexdigest()


# -- gathering -----------------------------------------------------------------------------------------------------


class StatisticsPass:
    """Moments and zeros of every task vector of one tensor."""

    def __init__(self, state: TensorState) -> None:
        self._state = state
        self._sums = RowSums(state)
        self._nonfinite = [0] * (len(state.task.models) + 1)
        self.zeros = [0] * len(state.task.models)

    def run(self, data: WindowData, workspace: Workspace) -> None:
        state = self._state
        nonfinite, zeros = [0] * len(self._nonfinite), [0] * len(self.zeros)
        for begin, end in tiles(data.window.begin, data.window.end, state.stat_tile):
            state.load(data, workspace, begin, end, nonfinite)
            self._sums.add(workspace, begin, end)
            for i in state.present:
                zeros[i] += state.kernels.count_equal(workspace.task_vectors[i][: end - begin], None, 0, 0)
        with state.lock:
            add_into(self._nonfinite, nonfinite)
            add_into(self.zeros, zeros)

    def finish(self) -> None:
        self._state.settle_nonfinite(self._nonfinite)
        self._state.moments = self._sums.total()
        for i in self._state.present:
            check_moments(self._state, i)


class HistogramPass:
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
        self._state = state
        self._level = level
        self._models = {i: state.task.model_of(i) for i in state.present}
        self._prefixes = prefixes
        self._totals = totals
        self._totals_lock = lock
        self._nonfinite = [0] * (len(state.task.models) + 1)

    def run(self, data: WindowData, workspace: Workspace) -> None:
        state = self._state
        shift, bits = LEVELS_32[self._level]
        histograms = workspace.histograms(len(state.present))
        nonfinite = [0] * len(self._nonfinite)
        for begin, end in tiles(data.window.begin, data.window.end, state.stat_tile):
            state.load(data, workspace, begin, end, nonfinite)
            for counts, i in zip(histograms, state.present, strict=True):
                t, prefix = workspace.task_vectors[i][: end - begin], self._prefixes[self._models[i]]
                state.kernels.histogram(t, None, 0, shift, bits, prefix, counts[: 1 << bits])
        with self._totals_lock:
            add_into(self._nonfinite, nonfinite)
            for counts, i in zip(histograms, state.present, strict=True):
                self._totals[self._models[i]] += host(counts[: 1 << bits])

    def finish(self) -> None:
        self._state.settle_nonfinite(self._nonfinite)


class SurveyWorker:
    """Takes the statistics of shards in one process; arguments as for ShardWorker, without an output."""

    def __init__(
        self,
        plan: Plan,
        sources: Sequence[Store],
        memory: MemoryPlan,
        kernels: Kernels,
        meter: Meter,
    ) -> None:
        self._plan = plan
        self._memory = memory
        self._kernels = kernels
        self._pipeline = Pipeline(plan.sources, sources, memory, kernels, meter)

    def survey(self, shards: Sequence[int], round_: Round, publish: Callable[[Sequence[SurveyPart]], None]) -> None:
        """Call `publish` with one part per model for every shard."""
        for shard in shards:
            parts = _ShardSurvey(self._plan, shard, round_, self._kernels, self._memory.slab_bytes)
            self._pipeline.run(parts.jobs(), done=parts.add)
            publish(parts.parts())


class _ShardSurvey:
    """Statistics of one shard's tensors while they are gathered."""

    def __init__(self, plan: Plan, shard: int, round_: Round, kernels: Kernels, slab_bytes: int) -> None:
        self._plan = plan
        self._shard = shard
        self._round = round_
        self._kernels = kernels
        self._slab_bytes = slab_bytes
        models = len(plan.models)
        self._rows: list[list[SurveyRow]] = [[] for _ in range(models)]
        self._quantiles: dict[tuple[str, int], tuple[float, float]] = {}
        level = 1 if round_.kind == "low" else 0
        self._counts = [np.zeros(1 << LEVELS_32[level][1], np.int64) for _ in range(models)]
        self._counts_lock = threading.Lock()
        self._level = level

    def jobs(self) -> Iterator[Job]:
        for position in self._plan.shards[self._shard].tasks:
            task = self._plan.tasks[position]
            if not task.has_task_vectors:
                continue
            elements = window_elements(self._slab_bytes, task.widest_bytes, grain(task))
            state = TensorState(task, self._plan, self._kernels, elements)
            yield Job([Part(state, self._passes(state), range(len(self._plan.sources)))])

    def _passes(self, state: TensorState) -> list[Pass]:
        if self._round.kind in ("high", "low"):
            prefixes = self._round.prefixes or (0,) * len(self._plan.models)
            return [HistogramPass(state, self._level, prefixes, self._counts, self._counts_lock)]
        statistics = StatisticsPass(state)
        if self._round.kind == "moments":
            return [statistics]

        def found(i: int, median: float, high: float, _all_zero: bool) -> None:
            self._quantiles[state.task.name, i] = (median, high)

        orders = [order for i in state.present for order in quantile_orders(state, i, found)]
        return [statistics, *order_passes(state, orders)]

    def add(self, job: Job) -> None:
        """Keep the rows of a tensor whose passes are finished, and nothing else of it; called in plan order."""
        [part] = job.parts
        if isinstance(taken := part.passes[0], StatisticsPass):
            for i in part.state.present:
                self._rows[part.state.task.model_of(i)].append(self._row(part.state, taken, i))

    def parts(self) -> list[SurveyPart]:
        return [self._part(i) for i in range(len(self._plan.models))]

    def _part(self, i: int) -> SurveyPart:
        prefix = self._round.prefixes[i] if self._round.prefixes else 0
        counts: dict[str, int] = {}
        if self._round.kind in ("high", "low"):
            counts = {str(b): int(self._counts[i][b]) for b in np.flatnonzero(self._counts[i]).tolist()}
        return SurveyPart(
            plan_id=self._plan.plan_id,
            model=i,
            shard=self._shard,
            kind=self._round.kind,
            rows=tuple(self._rows[i]),
            counts=counts,
            prefix=prefix,
        )

    def _row(self, state: TensorState, taken: StatisticsPass, i: int) -> SurveyRow:
        moments = state.moments[i]
        assert moments is not None
        median, high = self._quantiles.pop((state.task.name, i), (None, None))
        return SurveyRow(
            tensor=state.task.name,
            numel=state.task.numel,
            zeros=taken.zeros[i],
            l1=float(moments[0]),
            squares=float(moments[1]),
            fourths=float(moments[2]),
            median=median,
            high=high,
        )


# -- deciding ------------------------------------------------------------------------------------------------------


def redundancy(row: SurveyRow, statistic: str) -> float:
    """u of one tensor: participation, kurtosis or quantile (ALGORITHMS 3); NaN for an all-zero task vector."""
    moments = np.array([row.l1, row.squares, row.fourths])
    if statistic == "kurtosis":
        return tadrop.kurtosis(row.numel, moments)
    if statistic == "participation":
        return tadrop.participation(row.numel, moments)
    if row.median is None or row.high is None:
        return math.nan
    return tadrop.quantile(row.median, row.high, row.zeros == row.numel)


def decide_densities(plan: Plan, parts: Sequence[SurveyPart]) -> Survey:
    """Turn statistics into densities: one budget per model and `tadrop` setting, tensors in plan order."""
    found = {(part.model, row.tensor): row for part in parts for row in part.rows}
    decided: dict[str, list[float | TadropDensity]] = {}
    table: list[dict[str, Any]] = []
    for i in range(len(plan.models)):
        for wanted, tasks in _budgets(plan, i).items():
            rows = [found[i, task.name] for task in tasks]
            u = [redundancy(row, wanted.statistic) for row in rows]
            assert wanted.mean is not None
            densities = tadrop.budget_densities(u, [row.numel for row in rows], wanted.mean, wanted.spread)
            for task, value, row, statistic in zip(tasks, densities, rows, u, strict=True):
                assert task.settings is not None
                decided.setdefault(task.name, list(task.settings.densities))[task.position_of(i)] = value
                redundant = None if math.isnan(statistic) else statistic
                table.append(
                    {
                        "model": i,
                        "density": value,
                        "redundancy": redundant,
                        **row.model_dump(exclude_none=True),
                    }
                )
    return Survey({name: tuple(values) for name, values in decided.items()}, None, tuple(table))


def _budgets(plan: Plan, i: int) -> Mapping[TadropDensity, list[TensorTask]]:
    """The tensors of model i by the target that they share, in plan order."""
    groups: dict[TadropDensity, list[TensorTask]] = defaultdict(list)
    for task, settings, position in _merged(plan, i):
        wanted = settings.densities[position]
        if task.models[position] is not None and isinstance(wanted, TadropDensity) and wanted.mean is not None:
            groups[wanted].append(task)
    return groups


def _merged(plan: Plan, i: int) -> Iterator[tuple[TensorTask, TensorSettings, int]]:
    """The merged tensors that model i takes part in, with its place among their models; it may lack some of them."""
    for task in plan.tasks:
        if task.settings is not None and i + 1 in task.origins[1:]:
            yield task, task.settings, task.position_of(i)


def threshold_searches(plan: Plan) -> list[RankSearch]:
    """Per model, the search for the (N - int(d N))-th smallest magnitude of all its merged tensors.

    Raises:
        RecipeError: a model's density differs between tensors, so there is no one threshold.
    """
    searches = []
    for i in range(len(plan.models)):
        numel, densities = 0, set()
        for task, settings, position in _merged(plan, i):
            numel += task.numel
            densities.add(settings.densities[position])
        if len(densities) > 1:
            raise RecipeError("`scope: model` needs one density per model, the recipe gives different ones by tensor")
        wanted = densities.pop() if densities else 1.0  # a model all of whose tensors are copied
        assert isinstance(wanted, float)
        searches.append(RankSearch(max(1, min(int(wanted * numel) + 1, numel)), LEVELS_32))
    return searches


def narrow_thresholds(plan: Plan, searches: Sequence[RankSearch], parts: Sequence[SurveyPart]) -> None:
    """Feed one round's histograms to the searches; tensors that a model lacks count as zeros."""
    for i, search in enumerate(searches):
        counts = np.zeros(1 << search.bits, np.int64)
        for part in parts:
            if part.model == i:
                for place, count in part.counts.items():
                    counts[int(place)] += count
        if search.prefix == 0:
            counts[0] += sum(task.numel for task, _, position in _merged(plan, i) if task.models[position] is None)
        if not counts.any():
            counts[0] = 1  # no tensor of this model is merged, so nobody will ask for its threshold
        search.narrow(counts)
