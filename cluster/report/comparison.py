"""The report of a comparison: where two checkpoints differ, and how masks of two outputs moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...engine.errors import IntegrityError
from ...engine.output import Finished, open_outputs
from ...engine.run import ComparedTensor, ComparisonReport
from . import charts
from .facts import MAX_CELLS, Facts, Sums, read_facts, short_name
from .figures import LEAST_SCALE, Figure, Panel, Table
from .page import Page, Section
from .places import NO_LAYER, Places
from .wording import percent, real, whole

MOST_TENSORS = 500
"""Rows of the table of tensors, the most different first."""


@dataclass(slots=True)
class Differences:
    """Several tensors that both checkpoints have and whose elements were compared."""

    tensors: int = 0
    elements: int = 0
    differing: int = 0
    largest: float = 0.0
    squares: float = 0.0
    change: float = 0.0

    def add(self, tensor: ComparedTensor) -> None:
        each = tensor.elements
        if each is not None:
            norm, change = each.norms
            self.tensors += 1
            self.elements += each.elements
            self.differing += each.differing
            self.largest = max(self.largest, each.largest)
            self.squares += norm * norm
            self.change += change * change

    @property
    def share(self) -> float:
        return self.differing / self.elements if self.elements else 0.0

    @property
    def relative(self) -> float | None:
        """|a - b| / |a|; None where there is no such number."""
        if self.change == 0:
            return 0.0
        ratio = math.sqrt(self.change / self.squares) if self.squares else math.inf
        return ratio if math.isfinite(ratio) else None


def comparison_page(report: ComparisonReport, first: str, second: str) -> Page:
    """The page of a comparison.

    Args:
        report: what was found.
        first: A as the user names it, from which its tables are read where it is an output.
        second: B.
    """
    states = {state: count for state, count in report.as_json()["states"].items() if state != "equal"}
    numbers = [("tensors", whole(len(report.tensors))), ("that differ", whole(len(report.differing)))]
    numbers += [(f"other {state}" if state in ("values", "bits") else state, whole(n)) for state, n in states.items()]
    figures = list(_element_figures(report))
    if report.ours is not None:
        figures += _mask_figures(first, second)
    return Page(
        title="Comparison: equal" if report.equal else f"Comparison: {len(report.differing):,} tensors differ",
        about=f"A {report.first} and B {report.second}",
        numbers=numbers,
        warnings=[],
        notes=[],
        sections=list(_sections(report)),
        figures=figures,
    )


def _sections(report: ComparisonReport) -> Iterator[Section]:
    yield Section("What was compared", [("A", report.first), ("B", report.second)])
    if report.ours is not None:
        parts = (("recipe", report.ours.recipe), ("input", report.ours.inputs), ("masks", report.ours.summary))
        rows = [(what, each.where, _value(each.first), _value(each.second)) for what, found in parts for each in found]
        rows += [("file", name, "", "") for name in report.ours.files]
        if rows:
            yield Section("How the outputs came about", table=Table(("what", "where", "A", "B"), rows))


def _value(value: object) -> str:
    return "nothing" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _element_figures(report: ComparisonReport) -> Iterator[Figure]:
    named = [(tensor.name, tensor.elements.elements if tensor.elements else 0) for tensor in report.tensors]
    places = Places(named, MAX_CELLS)
    cells: dict[tuple[str, str], Differences] = {}
    for tensor in report.tensors:
        cells.setdefault(places.find(tensor.name), Differences()).add(tensor)
    cells = {key: found for key, found in cells.items() if found.tensors}
    if cells:
        yield _map(cells, places, "differing", "Elements that differ", lambda d: d.share, percent)
        yield _map(cells, places, "relative", "Relative difference", lambda d: d.relative, real)
        yield _by_layer(cells, places)
    yield _tensors(report)


def _map(
    cells: Mapping[tuple[str, str], Differences],
    places: Places,
    name: str,
    title: str,
    measure: Callable[[Differences], float | None],
    spelled: Callable[[float | None], str],
) -> Figure:
    values = {key: measure(d) for key, d in cells.items()}
    rows = [
        {"column": layer, "line": kind, "value": value, "shown": spelled(value)}
        for (layer, kind), value in values.items()
    ]
    most = max([1e-9, *(value or 0.0 for value in values.values())])
    number_format = "~g" if name == "relative" else "~%"
    chart = charts.heat_map(rows, places.layers, places.kinds, ("layer", "kind", title), most, number_format)
    columns = ("layer", "kind", "tensors", "elements", "differ", "largest", "relative")
    table: Table | str = "differing"
    if name == "differing":
        table = Table(
            columns,
            [
                (layer, kind, whole(d.tensors), whole(d.elements), percent(d.share), real(d.largest), real(d.relative))
                for (layer, kind), d in cells.items()
            ],
        )
    what = "The share of elements with other values" if name == "differing" else "|a - b| / |a|, Euclidean"
    text = f"{what}, of tensors of one kind in one layer together. A row is a kind of tensor, a column a layer."
    return Figure(name, f"{title} by layer and kind", text, [Panel("A and B", chart)], table)


def _by_layer(cells: Mapping[tuple[str, str], Differences], places: Places) -> Figure:
    rows, table = [], []
    for label in places.layers:
        total = Differences()
        for (layer, _), d in cells.items():
            if layer == label:
                total.tensors += d.tensors
                total.squares += d.squares
                total.change += d.change
        if total.tensors:
            table.append((label, whole(total.tensors), real(total.relative)))
        if total.tensors and label != NO_LAYER:
            shown = real(total.relative)
            rows.append({"column": label, "series": "relative difference", "value": total.relative, "shown": shown})
    numbered = [label for label in places.layers if label != NO_LAYER]
    chart = charts.lines_by(rows, numbered, ("layer", "|a - b| / |a|"), ("relative difference",))
    text = "The norm of the difference over the norm of A, all tensors of a layer together."
    columns = ("layer", "tensors", "relative")
    return Figure("layers", "Relative difference by layer", text, [Panel("A and B", chart)], Table(columns, table))


def _tensors(report: ComparisonReport) -> Figure:
    """How many tensors are in which state, with the tensors themselves behind it."""
    states: dict[str, int] = report.as_json()["states"]
    rows = [{"line": state, "value": count, "shown": whole(count)} for state, count in states.items()]
    chosen = sorted(report.differing, key=_most_different)[:MOST_TENSORS]
    table = [(tensor.name, tensor.state, *_of_tensor(tensor)) for tensor in chosen]
    left = f" The table has the {MOST_TENSORS} most different." if len(report.differing) > MOST_TENSORS else ""
    text = f"How many tensors are equal, and in what the others differ.{left}"
    columns = ("tensor", "state", "elements", "differ", "largest", "relative", "cosine")
    panel = Panel("tensors", charts.bars(rows, list(states), "tensors", "~s"))
    return Figure("tensors", "Tensors that differ", text, [panel], Table(columns, table))


def _of_tensor(tensor: ComparedTensor) -> tuple[str, ...]:
    each = tensor.elements
    if each is None:
        return ("-",) * 5
    cosine = "-" if each.cosine is None else f"{each.cosine:.8f}"
    share = percent(each.differing / each.elements if each.elements else 0.0)
    return whole(each.elements), share, real(each.largest), real(each.relative), cosine


def _most_different(tensor: ComparedTensor) -> tuple[float, str]:
    relative = tensor.elements.relative if tensor.elements is not None else None
    return (-math.inf if relative is None else -relative, tensor.name)


# -- masks of two outputs --------------------------------------------------------------------------------------------

_MOVES: tuple[tuple[str, str, Callable[[Sums], float]], ...] = (
    ("density", "density", lambda s: s.density),
    ("kept", "kept share", lambda s: s.kept_share),
    ("overlap", "overlap", lambda s: s.overlap),
)


def _mask_figures(first: str, second: str) -> list[Figure]:
    """How densities, kept shares and overlaps moved; of models that are at the same place in both recipes."""
    try:
        a, b = (_facts(place) for place in (first, second))
    except IntegrityError:
        return []
    if a is None or b is None:
        return []
    shared = [key for key in a.cells if key in b.cells]
    models = sorted({model for model, _, _ in shared})
    if not shared:
        return []
    found = []
    for name, title, measure in _MOVES:
        moved = {key: measure(b.cells[key]) - measure(a.cells[key]) for key in shared}
        most = max([LEAST_SCALE, *(abs(value) for value in moved.values())])
        panels, table = [], []
        for i in models:
            rows = [
                {"column": layer, "line": kind, "value": value, "shown": percent_points(value)}
                for (model, layer, kind), value in moved.items()
                if model == i
            ]
            names = ("layer", "kind", f"{title}, B - A")
            chart = charts.heat_map(rows, a.places.layers, a.places.kinds, names, most, "+~%", diverging=True)
            panels.append(Panel(f"{i} {short_name(a.models[i])}", chart))
        for model, layer, kind in shared:
            before, after = (measure(each.cells[model, layer, kind]) for each in (a, b))
            table.append((str(model), layer, kind, percent(before), percent(after), percent_points(after - before)))
        text = f"By how much each model's {title} is larger in B (yellow to red) or smaller (blue)."
        columns = ("model", "layer", "kind", "A", "B", "B - A")
        found.append(Figure(f"moved-{name}", f"How each model's {title} moved", text, panels, Table(columns, table)))
    return found


def percent_points(value: float) -> str:
    """A difference of shares, with its sign."""
    return f"{value:+.2%}"


def _facts(place: str) -> Facts | None:
    outputs: Sequence[Finished] = open_outputs(place)
    return read_facts(outputs[0]) if len(outputs) == 1 else None
