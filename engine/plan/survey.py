"""What whole models decide: the rounds of a survey, and densities and thresholds from its statistics. Pure."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import RecipeError
from ..json_text import canonical_json
from ..kernels import LEVELS_32, RankSearch
from ..methods import Method, TadropDensity, tadrop
from .plan import Plan
from .records import SurveyPart, SurveyRow
from .task import TensorTask


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
    read: Mapping[int, frozenset[str]] = field(default_factory=dict)
    """By shard, digests of what was read for its statistics: one, unless rounds read different bytes."""

    @property
    def digest(self) -> str:
        """SHA-256 over the table."""
        return hashlib.sha256(canonical_json(list(self.rows))).hexdigest()


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
            counts = [row.numel - (row.zeros if wanted.mean_of == "changed" else 0) for row in rows]
            densities = tadrop.budget_densities(u, counts, wanted.mean, wanted.spread)
            for task, value, row, statistic in zip(tasks, densities, rows, u, strict=True):
                assert task.method is not None
                decided.setdefault(task.name, list(task.method.densities))[task.position_of(i)] = value
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
    for task, method, position in _merged(plan, i):
        wanted = method.target_densities.get(position)
        if task.models[position] is not None and wanted is not None:
            groups[wanted].append(task)
    return groups


def _merged(plan: Plan, i: int) -> Iterator[tuple[TensorTask, Method, int]]:
    """The merged tensors that model i takes part in, with its place among their models; it may lack some of them."""
    for task in plan.tasks:
        if task.method is not None and i + 1 in task.origins[1:]:
            yield task, task.method, task.position_of(i)


def threshold_searches(plan: Plan) -> list[RankSearch]:
    """Per model, the search for the (N - int(d N))-th smallest magnitude of all its merged tensors.

    Raises:
        RecipeError: a model's density differs between tensors, so there is no one threshold.
    """
    searches = []
    for i in range(len(plan.models)):
        numel, densities = 0, set()
        for task, method, position in _merged(plan, i):
            numel += task.numel
            densities.add(method.densities[position])
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
