"""OUT/search.html: how a search went, which parameters mattered, and what each of their values gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from ...engine.recipe import Choice
from ..report import charts
from ..report.figures import Figure, Panel, Table
from ..report.page import Page, Section
from ..report.wording import percent, real, whole
from .results import Results

MAX_SLICES = 24
"""Pictures of parameters; the table has all."""


def search_page(results: Results, importances: Sequence[Mapping[str, float]]) -> Page:
    """The page of a search that has at least one scored trial.

    Args:
        results: the trials.
        importances: per objective, shares by parameter; see `Study.importances`.
    """
    trial = results.best[0]
    names = [objective.text for objective in results.objectives]
    best = zip(names, results.values[trial], strict=True)
    return Page(
        title="Search",
        about=str(results.out),
        numbers=[
            ("trials with scores", whole(len(results.values))),
            ("failed", whole(len(results.failed))),
            ("best trial", str(trial)),
            *((name, real(value)) for name, value in best),
        ],
        warnings=[],
        notes=[],
        sections=[Section("Best trial", [(name, str(value)) for name, value in _point(results, trial).items()])],
        figures=[*_history(results, names), *_importance(importances, names), *_slices(results, names)],
    )


def _point(results: Results, number: int) -> dict[str, Any]:
    [trial] = [trial for trial in results.trials if trial.number == number]
    return {name: results.value_of(name, option) for name, option in trial.point.items()}


def _history(results: Results, names: Sequence[str]) -> Iterator[Figure]:
    panels = []
    for place, name in enumerate(names):
        values = {number: value[place] for number, value in results.values.items()}
        points = [
            _row(number, number, value) | {"best": best, "best_shown": real(best)}
            for (number, value), best in zip(values.items(), accumulate(values.values(), max), strict=True)
        ]
        panels.append(Panel(name, charts.history(points, name)))
    rows = [(str(number), *map(real, value)) for number, value in results.values.items()]
    text = "A point for each trial that has scores; larger is better. The line is the best until then."
    yield Figure("history", "History", text, panels, Table(("trial", *names), rows))


def _row(number: int, column: Any, value: float) -> dict[str, Any]:
    return {"column": column, "value": value, "trial": str(number), "place": str(column), "shown": real(value)}


def _importance(importances: Sequence[Mapping[str, float]], names: Sequence[str]) -> Iterator[Figure]:
    panels, table = [], []
    for name, shares in zip(names, importances, strict=True):
        if not shares:
            continue
        rows = [{"line": key, "value": share, "shown": percent(share)} for key, share in shares.items()]
        panels.append(Panel(name, charts.bars(rows, list(shares), "importance", "~%")))
        table += [(name, key, percent(share)) for key, share in shares.items()]
    text = (
        "How much of the difference between the best tenth of the trials and all of them lies in each parameter "
        "(PED-ANOVA, arXiv 2304.10255). Parameters that count only sometimes are left out; few trials tell little."
    )
    if panels:
        yield Figure("importance", "Importance", text, panels, Table(("objective", "parameter", "importance"), table))


def _slices(results: Results, names: Sequence[str]) -> Iterator[Figure]:
    """Of the first objective where there are several: one picture per parameter."""
    name = names[0]
    panels: list[Panel] = []
    table: list[tuple[str, ...]] = []
    points = {number: _point(results, number) for number in results.values}
    for parameter, domain in results.parameters.items():
        columns = [str(label) for label in domain.labels] if isinstance(domain, Choice) else None
        rows = []
        for number, point in points.items():
            if parameter in point:
                place = point[parameter] if columns is None else str(point[parameter])
                value = results.values[number][0]
                rows.append(_row(number, place, value))
                table.append((parameter, str(point[parameter]), str(number), real(value)))
        if rows and len(panels) < MAX_SLICES:
            panels.append(Panel(parameter, charts.scatter(rows, columns, (parameter, name))))
    text = f"What each value of a parameter gave in {name}, whatever the others were."
    yield Figure("slices", "Slices", text, panels, Table(("parameter", "value", "trial", name), table))
