"""Statistics of every task vector of a recipe, and the density that the recipe gives each: table and summary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..methods import TadropDensity, tadrop
from ..plan import Plan, SurveyPart, SurveyRow, decide_densities, redundancy

if TYPE_CHECKING:
    import pyarrow

STATISTICS = ("participation", "quantile", "kurtosis")


@dataclass(frozen=True)
class SurveyReport:
    """One row per model and tensor that has a task vector, in plan order."""

    plan: Plan
    rows: tuple[dict[str, Any], ...]
    octaves: tuple[Mapping[int, int], ...] = ()
    """Per model, elements by octave of |t|, without zeros and denormals: n is from 2^n on. Empty unless asked for."""

    @property
    def table(self) -> pyarrow.Table:
        """model, url, tensor, numel, zeros, l1, l2, median and 99 % quantile of |t|, redundancy by each statistic
        (null for an all-zero task vector), density under the recipe.
        """
        import pyarrow

        numbers = ("l1", "l2", "median", "high", *STATISTICS, "density")
        schema = pyarrow.schema(
            [
                ("model", pyarrow.int32()),
                ("url", pyarrow.string()),
                ("tensor", pyarrow.string()),
                ("numel", pyarrow.int64()),
                ("zeros", pyarrow.int64()),
                *((name, pyarrow.float64()) for name in numbers),
            ]
        )
        return pyarrow.Table.from_pylist(list(self.rows), schema=schema)

    @property
    def models(self) -> list[dict[str, Any]]:
        """A summary per model; means are weighted by tensor size, u is the redundancy by participation."""
        return [self._model(i) for i in range(len(self.plan.models))]

    def _model(self, i: int) -> dict[str, Any]:
        rows = [row for row in self.rows if row["model"] == i]
        numel = sum(row["numel"] for row in rows)
        densities = [row["density"] for row in rows]
        redundancies = [row["participation"] for row in rows if row["participation"] is not None]
        return {
            "model": i,
            "url": self.plan.models[i].url,
            "tensors": len(rows),
            "numel": numel,
            "unchanged_tensors": sum(row["zeros"] == row["numel"] for row in rows),
            "zeros": sum(row["zeros"] for row in rows) / numel if numel else 0.0,
            "l2": math.sqrt(math.fsum(row["l2"] ** 2 for row in rows)),
            "redundancy": [min(redundancies), max(redundancies)] if redundancies else None,
            "density": sum(row["density"] * row["numel"] for row in rows) / numel if numel else 0.0,
            "density_range": [min(densities), max(densities)] if densities else None,
        }

    def as_json(self) -> dict[str, Any]:
        return {"outcome": "done", "plan_id": self.plan.plan_id, "rows": len(self.rows), "models": self.models}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for row in self.models:
            yield f"model {row['model']} {row['url']}"
            yield (
                f"  {row['tensors']} tensors, {row['unchanged_tensors']} of them unchanged; "
                f"{row['zeros']:.1%} of {row['numel']:,} differences are zero; norm {row['l2']:.4g}"
            )
            if row["redundancy"] is not None:
                low, high = row["redundancy"]
                yield f"  redundancy (participation) from {low:.3f} to {high:.3f}"
            if row["density_range"] is not None:
                low, high = row["density_range"]
                yield f"  density {row['density']:.1%} on average, from {low:.1%} to {high:.1%}"


def make_survey_report(
    plan: Plan, parts: Sequence[SurveyPart], octaves: Sequence[Mapping[int, int]] = ()
) -> SurveyReport:
    """Rows from the parts of a "quantiles" round over all shards; `octaves` as `SurveyReport` has them."""
    found = {(part.model, row.tensor): row for part in parts for row in part.rows}
    decided = decide_densities(plan, parts)
    rows = []
    for i, model in enumerate(plan.models):
        for task in plan.tasks:
            row = found.get((i, task.name))
            if row is None or task.method is None:
                continue
            given = task.method.densities or (1.0,) * len(task.models)  # what selects no share keeps all
            wanted = decided.densities.get(task.name, given)[task.position_of(i)]
            rows.append({"model": i, "url": model.url, "tensor": task.name} | _statistics(row, wanted))
    return SurveyReport(plan, tuple(rows), tuple(octaves))


def _statistics(row: SurveyRow, wanted: float | TadropDensity) -> dict[str, Any]:
    redundancies = {name: redundancy(row, name) for name in STATISTICS}
    return {
        "numel": row.numel,
        "zeros": row.zeros,
        "l1": row.l1,
        "l2": math.sqrt(row.squares),
        "median": row.median,
        "high": row.high,
        **{name: None if math.isnan(u) else u for name, u in redundancies.items()},
        "density": wanted if isinstance(wanted, float) else tadrop.local_density(redundancies[wanted.statistic]),
    }
