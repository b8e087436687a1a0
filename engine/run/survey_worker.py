"""Statistics of whole models before the merge: TADrop's budget and model-wide thresholds, shard by shard."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from ..fold import HistogramPass, Pass, StatisticsPass, TensorState, order_passes, quantile_orders
from ..kernels import LEVELS_32, Kernels
from ..plan import InputRange, Plan, Round, SurveyPart, SurveyRow, grain, ranges_digest, window_elements
from ..storage import Store
from .memory import MemoryPlan
from .meter import Meter
from .pipeline import Pipeline
from .taken import input_ranges
from .tensor_job import PassGroup, TensorJob


class SurveyWorker:
    """Takes statistics of shards in one process; arguments as for ShardWorker, without an output.

    `octaves` gets, per model, elements by the exponent of their magnitude (see `StatisticsPass`); None: not counted.
    """

    def __init__(
        self,
        plan: Plan,
        sources: Sequence[Store],
        memory: MemoryPlan,
        kernels: Kernels,
        meter: Meter,
        octaves: Sequence[Counter[int]] | None = None,
    ) -> None:
        self._octaves = octaves
        self._plan = plan
        self._memory = memory
        self._kernels = kernels
        self._pipeline = Pipeline(plan.sources, sources, memory, kernels, meter)

    def survey(self, shard: int, round_: Round) -> list[SurveyPart]:
        """One part per model."""
        parts = _ShardSurvey(self._plan, shard, round_, self._kernels, self._memory.slab_bytes, self._octaves)
        self._pipeline.run(parts.jobs(), done=parts.add)
        return parts.parts()


class _ShardSurvey:
    """Statistics of one shard's tensors while they are gathered."""

    def __init__(
        self,
        plan: Plan,
        shard: int,
        round_: Round,
        kernels: Kernels,
        slab_bytes: int,
        octaves: Sequence[Counter[int]] | None,
    ) -> None:
        self._octaves = octaves
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
        self._read: set[InputRange] = set()

    def jobs(self) -> Iterator[TensorJob]:
        for position in self._plan.shards[self._shard].tasks:
            task = self._plan.tasks[position]
            if not task.has_task_vectors:
                continue
            elements = window_elements(self._slab_bytes, task.widest_bytes, grain(task))
            state = TensorState(task, self._plan, self._kernels, elements)
            part = PassGroup(state, self._passes(state), range(len(self._plan.sources)))
            yield TensorJob([part], noted=True)

    def _passes(self, state: TensorState) -> list[Pass]:
        if self._round.kind in ("high", "low"):
            prefixes = self._round.prefixes or (0,) * len(self._plan.models)
            return [HistogramPass(state, self._level, prefixes, self._counts, self._counts_lock)]
        statistics = StatisticsPass(state, octaves=self._octaves is not None)
        if self._round.kind == "moments":
            return [statistics]

        def found(i: int, median: float, high: float, _all_zero: bool) -> None:
            self._quantiles[state.task.name, i] = (median, high)

        orders = [order for i in state.present for order in quantile_orders(state, i, found)]
        return [statistics, *order_passes(state, orders)]

    def add(self, job: TensorJob) -> None:
        """Keep the rows of a tensor whose passes are finished, and nothing else of it; called in plan order."""
        [part] = job.parts
        for read in job.taken:
            self._read |= input_ranges(self._plan, read.stretches())
        if isinstance(taken := part.passes[0], StatisticsPass):
            for i in part.state.present:
                model = part.state.task.model_of(i)
                self._rows[model].append(self._row(part.state, taken, i))
                if self._octaves is not None:
                    self._octaves[model].update(taken.octaves(i))

    def parts(self) -> list[SurveyPart]:
        read = ranges_digest(self._read)
        return [self._part(i, read) for i in range(len(self._plan.models))]

    def _part(self, i: int, read: str) -> SurveyPart:
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
            read=read,
        )

    def _row(self, state: TensorState, taken: StatisticsPass, i: int) -> SurveyRow:
        moments = taken.moments(i)
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
