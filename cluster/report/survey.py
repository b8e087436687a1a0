"""The report of a survey: the changes of a recipe's models before they are merged."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...engine.run import SurveyReport
from . import charts
from .facts import MAX_CELLS, bin_of, short_name
from .figures import Figure, Panel, Table, binned, heat_panels
from .page import Page, Section
from .places import NO_LAYER, Places
from .wording import percent, real, whole

STATISTICS = ("participation", "quantile", "kurtosis")


@dataclass(slots=True)
class Changes:
    """Several tensors' changes of one model."""

    tensors: int = 0
    numel: int = 0
    zeros: int = 0
    wanted: float = 0.0
    squares: float = 0.0
    redundancy: float = 0.0
    """Sum of elements times TADrop's statistic by participation."""
    known: int = 0
    """Elements of tensors that have one."""

    def add(self, row: Mapping[str, Any]) -> None:
        self.tensors += 1
        self.numel += row["numel"]
        self.zeros += row["zeros"]
        self.wanted += row["density"] * row["numel"]
        self.squares += row["l2"] ** 2
        if row["participation"] is not None:
            self.redundancy += row["participation"] * row["numel"]
            self.known += row["numel"]

    @property
    def size(self) -> float:
        """The root of the mean of t^2."""
        return math.sqrt(self.squares / self.numel) if self.numel else 0.0

    @property
    def density(self) -> float:
        return self.wanted / self.numel if self.numel else 0.0

    @property
    def statistic(self) -> float | None:
        return self.redundancy / self.known if self.known else None


_Measure = tuple[str, str, str, Callable[[Changes], float | None], Callable[[float | None], str], str]
_MEASURES: tuple[_Measure, ...] = (
    ("changes", "root mean square", "Size of changes", lambda c: c.size, real, "~g"),
    ("redundancy", "statistic", "TADrop's statistic", lambda c: c.statistic, real, "~g"),
    ("density", "density", "Density", lambda c: c.density, percent, "~%"),
)


def survey_page(report: SurveyReport) -> Page:
    """The page of a survey."""
    names = [f"{i} {short_name(model.url)}" for i, model in enumerate(report.plan.models)]
    models = report.models
    return Page(
        title=f"Survey: {report.plan.terms.method}",
        about="The changes of a recipe's models to their base, before anything is merged",
        numbers=[
            ("models", whole(len(names))),
            ("tensors and models", whole(len(report.rows))),
            *((f"norm of {name}", real(m["l2"])) for name, m in zip(names[:6], models, strict=False)),
        ],
        warnings=list(report.plan.warnings),
        notes=list(report.plan.notes),
        sections=[_models(names, models, report.plan.plan_id)],
        figures=list(_figures(report, names)),
    )


def _models(names: Sequence[str], models: Sequence[Mapping[str, Any]], plan_id: str) -> Section:
    rows = [
        (
            name,
            m["url"],
            whole(m["tensors"]),
            whole(m["numel"]),
            percent(m["zeros"]),
            real(m["l2"]),
            percent(m["density"]),
        )
        for name, m in zip(names, models, strict=True)
    ]
    columns = ("model", "from", "tensors", "elements", "unchanged", "norm", "density")
    return Section("Models", [("plan", plan_id)], table=Table(columns, rows))


def _figures(report: SurveyReport, names: Sequence[str]) -> Iterator[Figure]:
    tensors = ((row["tensor"], row["numel"]) for row in report.rows)
    places = Places(tensors, MAX_CELLS // max(1, len(names)))
    cells: dict[tuple[int, str, str], Changes] = {}
    for row in report.rows:
        cells.setdefault((row["model"], *places.find(row["tensor"])), Changes()).add(row)
    yield from _heat_maps(cells, places, names)
    if report.octaves:
        yield _octaves(report, names)
    yield from _statistics(report, names)


def _heat_maps(cells: Mapping[tuple[int, str, str], Changes], places: Places, names: Sequence[str]) -> Iterator[Figure]:
    columns = ("model", "layer", "kind", "tensors", "elements", "unchanged", "root mean square", "statistic", "density")
    table = Table(
        columns,
        [
            (
                *(names[i], layer, kind, whole(c.tensors), whole(c.numel)),
                *(percent(c.zeros / c.numel if c.numel else 0.0), real(c.size), real(c.statistic), percent(c.density)),
            )
            for (i, layer, kind), c in cells.items()
        ],
    )
    for name, what, title, measure, spelled, number_format in _MEASURES:
        values = {key: measure(c) for key, c in cells.items()}
        most = max([1e-9, *(value or 0.0 for value in values.values())])
        panels = heat_panels(values, places, names, what, most, spelled, number_format)
        text = f"{_MEANINGS[name]} A row is a kind of tensor, a column a layer."
        yield Figure(name, f"{title} by layer and kind", text, panels, table if name == "changes" else "changes")
    yield _norms(cells, places, names)


_MEANINGS = {
    "changes": "The root of the mean square of a model's changes.",
    "redundancy": "By participation, of tensors weighed by their elements: near 1 a few changes are most of it.",
    "density": "The share of elements that the recipe gives.",
}


def _norms(cells: Mapping[tuple[int, str, str], Changes], places: Places, names: Sequence[str]) -> Figure:
    squares: dict[tuple[int, str], float] = defaultdict(float)
    for (i, layer, _), changes in cells.items():
        squares[i, layer] += changes.squares
    table = [(names[i], layer, real(math.sqrt(value))) for (i, layer), value in squares.items()]
    rows = [
        {"column": layer, "series": names[i], "value": math.sqrt(value), "shown": real(math.sqrt(value))}
        for (i, layer), value in squares.items()
        if layer != NO_LAYER
    ]
    numbered = [label for label in places.layers if label != NO_LAYER]
    chart = charts.lines_by(rows, numbered, ("layer", "norm"), names)
    text = "The Euclidean norm of each model's change to the base, all tensors of a layer together."
    return Figure(
        "norms",
        "Norm of each model's change by layer",
        text,
        [Panel("all models", chart)],
        Table(("model", "layer", "norm"), table),
    )


def _octaves(report: SurveyReport, names: Sequence[str]) -> Figure:
    """Histograms of |t|: every element is counted once, in the octave of its magnitude."""
    found = sorted({octave for counts in report.octaves for octave in counts})
    columns = [f"{octave}" for octave in range(found[0], found[-1] + 1)] if found else []
    rows, table = [], []
    for i, counts in enumerate(report.octaves):
        for octave, count in sorted(counts.items()):
            between = (
                f"{2.0**octave:.3g} to {2.0 ** (octave + 1):.3g}" if octave < 1023 else f"from {2.0**octave:.3g} on"
            )
            shown = {"range": between, "series": names[i], "value": count, "shown": whole(count)}
            rows.append({"column": str(octave), **shown})
            table.append((names[i], str(octave), between, whole(count)))
    text = (
        "How many elements have changed by how much: |t| from 2^n to 2^(n+1). Those that have not changed are left out."
    )
    chart = charts.counts_by(rows, columns, ("|t|, power of 2", "elements"), names)
    columns_of_table = ("model", "power of 2", "|t|", "elements")
    return Figure("sizes", "Histogram of |t|", text, [Panel("all models", chart)], Table(columns_of_table, table))


def _statistics(report: SurveyReport, names: Sequence[str]) -> Iterator[Figure]:
    for name in STATISTICS:
        counts: dict[int, Counter[int]] = defaultdict(Counter)
        for row in report.rows:
            if row[name] is not None and math.isfinite(row[name]):
                counts[row["model"]][bin_of(row[name])] += 1
        if counts:
            panel, table = binned(names, counts, name, real, ".1f")
            text = f"How many tensors have which redundancy by {name}, which TADrop may go by."
            yield Figure(f"by-{name}", f"Distribution of {name}", text, [panel], table)
