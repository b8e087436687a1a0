"""Figures: what a reader gets to see together, pictures with words and the table behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import charts
from .facts import BINS, MAX_MODELS, MAX_PAIRS, Facts, Sums, short_name
from .places import NO_LAYER, Places
from .wording import percent, real, size, whole

Cells = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture."""

    title: str
    picture: charts.Picture


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as they are shown."""

    columns: Cells
    rows: Sequence[Cells]


@dataclass(frozen=True, slots=True)
class Figure:
    """Pictures of one thing."""

    name: str
    """Of letters and dashes."""
    title: str
    text: str
    """What it shows and how to read it."""
    panels: Sequence[Panel]
    table: Table | str
    """What is behind it, or the name of the figure that has it."""


def model_names(facts: Facts) -> list[str]:
    """What pictures call models: their places in the recipe, and the end of their URLs."""
    return [f"{i} {short_name(url)}" for i, url in enumerate(facts.models)]


def output_figures(facts: Facts) -> Iterator[Figure]:
    """All that the tables of an output give."""
    if facts.cells:
        yield from _heat_maps(facts)
    if any(sums.known for sums in facts.cells.values()):
        yield _norms(facts)
        yield _energy(facts)
    if facts.claims:
        yield _claims(facts)
    if facts.pairs:
        yield _pairs(facts)
    if facts.cells:
        yield _densities(facts)
    if facts.statistics:
        yield _statistics(facts)
    yield _actions(facts)


LEAST_SCALE = 0.01
"""The end of a scale of colours where all shares are smaller."""
_MEASURES: tuple[tuple[str, str, str, Callable[[Sums], float]], ...] = (
    ("density", "Density", "the share of its elements that the recipe asks a model to give", lambda s: s.density),
    ("kept", "Kept share", "the share of elements that a model's mask keeps", lambda s: s.kept_share),
    (
        "overlap",
        "Overlap",
        "of what a model and another keep together or alone, the share that both keep; the mean over the others",
        lambda s: s.overlap,
    ),
)


def _heat_maps(facts: Facts) -> Iterator[Figure]:
    names, places = model_names(facts), facts.places
    table = Table(
        ("model", "layer", "kind", "tensors", "elements", "density", "kept", "overlap", "energy kept"),
        [
            (names[i], layer, kind, whole(s.tensors), whole(s.numel), *map(percent, _shares(s)))
            for (i, layer, kind), s in sorted(facts.cells.items(), key=lambda item: _order(facts, item[0]))
        ],
    )
    for name, title, meaning, measure in _MEASURES:
        if name == "overlap" and len(names) < 2:
            continue
        values = {key: measure(sums) for key, sums in facts.cells.items()}
        most = max([*values.values(), LEAST_SCALE])
        panels = heat_panels(values, places, names, title, most)
        left_out = (
            f" The first {MAX_MODELS} of {len(names)} models; the table has all." if len(names) > MAX_MODELS else ""
        )
        text = f"{title} is {meaning}. A row is a kind of tensor, a column a layer.{left_out}"
        yield Figure(name, f"{title} by layer and kind", text, panels, table if name == "density" else "density")


def heat_panels(
    values: Mapping[tuple[int, str, str], float | None],
    places: Places,
    names: Sequence[str],
    what: str,
    most: float,
    spelled: Callable[[float | None], str] = percent,
    number_format: str = "~%",
) -> list[Panel]:
    """A heat map of values by model, layer and kind for each of the first models.

    Args:
        values: None where there is none.
        places: layers and kinds in their order.
        names: of all models.
        what: the values are.
        most: the value of the lightest colour.
        spelled: as tables spell a value.
        number_format: of the legend.
    """
    panels = []
    for i, name in enumerate(names[:MAX_MODELS]):
        rows = [
            {"column": layer, "line": kind, "value": value, "shown": spelled(value)}
            for (model, layer, kind), value in values.items()
            if model == i
        ]
        heat = charts.heat_map(rows, places.layers, places.kinds, ("layer", "kind", what), most, number_format)
        panels.append(Panel(name, heat))
    return panels


def _shares(s: Sums) -> tuple[float | None, ...]:
    return s.density, s.kept_share, s.overlap, s.energy


def _order(facts: Facts, key: tuple[int, str, str]) -> tuple[int, int, int]:
    model, layer, kind = key
    return model, facts.places.layers.index(layer), facts.places.kinds.index(kind)


BEFORE, AFTER = "of the change", "of what its mask keeps"


def _norms(facts: Facts) -> Figure:
    names, panels, table = model_names(facts), [], []
    numbered = [label for label in facts.places.layers if label != NO_LAYER]
    for i, name in enumerate(names):
        rows: list[dict[str, Any]] = []
        for label in facts.places.layers:
            if (sums := facts.layer(i, label)) is None:
                continue
            table.append((name, label, real(sums.norm), real(sums.kept_norm), percent(sums.energy)))
            for series, value in ((BEFORE, sums.norm), (AFTER, sums.kept_norm)) if label != NO_LAYER else ():
                rows.append({"column": label, "series": series, "value": value, "shown": real(value)})
        if i < MAX_MODELS:
            lines = charts.lines_by(rows, numbered, ("layer", "norm"), (BEFORE, AFTER))
            panels.append(Panel(name, lines))
    text = (
        "The Euclidean norm of each model's change to the base, by layer: as the model has it, and of what its mask "
        "keeps, before that is rescaled or weighed."
    )
    columns = ("model", "layer", f"norm {BEFORE}", f"norm {AFTER}", "energy kept")
    return Figure("norms", "Norm of each model's change by layer", text, panels, Table(columns, table))


def _energy(facts: Facts) -> Figure:
    names = model_names(facts)
    found = [facts.model(i) for i in range(len(names))]
    kept, energy = "elements kept", "energy kept"
    rows = [
        {"line": name, "series": series, "value": value, "shown": percent(value)}
        for name, sums in zip(names, found, strict=True)
        for series, value in ((kept, sums.kept_share), (energy, sums.energy))
        if value is not None
    ]
    text = (
        "Energy is the sum of squares of a model's change. A mask that keeps large changes keeps more energy than "
        "elements; with masks that are made in turn, later models keep less of it than they would have kept alone."
    )
    table = [
        (
            n,
            whole(s.numel),
            percent(s.density),
            percent(s.kept_share),
            percent(s.energy),
            real(s.norm),
            real(s.kept_norm),
        )
        for n, s in zip(names, found, strict=True)
    ]
    columns = ("model", "elements", "density", kept, energy, f"norm {BEFORE}", f"norm {AFTER}")
    panel = Panel("all models", charts.bars(rows, names, "share", ".0%", (kept, energy)))
    return Figure("energy", "Energy that each model keeps", text, [panel], Table(columns, table))


def _claims(facts: Facts) -> Figure:
    total = sum(facts.claims.values())
    numbers = range(max(facts.claims) + 1)
    lines = [_models(number) for number in numbers]
    shares = [facts.claims[number] / total if total else 0.0 for number in numbers]
    rows = [{"line": ln, "value": s, "shown": percent(s)} for ln, s in zip(lines, shares, strict=True)]
    table = [(ln, whole(facts.claims[n]), percent(shares[n])) for n, ln in zip(numbers, lines, strict=True)]
    text = "Of all positions in merged tensors, the share that so many models keep. What no model keeps is the base's."
    panel = Panel("all merged tensors", charts.bars(rows, lines, "share of positions", ".0%"))
    columns = ("kept by", "positions", "share")
    return Figure("claims", "Positions by the number of models that keep them", text, [panel], Table(columns, table))


def _models(number: int) -> str:
    return "no model" if number == 0 else "1 model" if number == 1 else f"{number} models"


MOST_BARS = 10
"""Pairs that are bars; more are a matrix."""


def _pairs(facts: Facts) -> Figure:
    names = model_names(facts)
    union, smaller = "|A and B| / |A or B|", "|A and B| / the smaller"
    pairs = facts.pairs[:MAX_PAIRS]
    labels = [f"{p.first} and {p.second}" for p in pairs]
    table = [
        (names[p.first], names[p.second], whole(p.both), percent(p.jaccard), percent(p.over_smaller)) for p in pairs
    ]
    if len(pairs) <= MOST_BARS:
        rows = [
            {"line": label, "series": series, "value": value, "shown": percent(value)}
            for label, p in zip(labels, pairs, strict=True)
            for series, value in ((union, p.jaccard), (smaller, p.over_smaller))
        ]
        panels = [Panel("pairs of models", charts.bars(rows, labels, "share", ".0%", (union, smaller)))]
    else:
        panels = [
            Panel(union, _matrix({(p.first, p.second): p.jaccard for p in pairs})),
            Panel(smaller, _matrix({(p.first, p.second): p.over_smaller for p in pairs})),
        ]
    left_out = f" The first {MAX_PAIRS} of {len(facts.pairs)} pairs." if len(facts.pairs) > MAX_PAIRS else ""
    text = f"How much two models' masks have in common, over all merged tensors.{left_out}"
    columns = ("A", "B", "positions of both", union, smaller)
    return Figure("pairs", "Overlap of pairs of models", text, panels, Table(columns, table))


def _matrix(values: Mapping[tuple[int, int], float]) -> charts.Picture:
    places = [str(i) for i in sorted({i for pair in values for i in pair})]
    both = {**values, **{(b, a): value for (a, b), value in values.items()}}
    rows = [
        {"column": str(b), "line": str(a), "value": value, "shown": percent(value)} for (a, b), value in both.items()
    ]
    return charts.heat_map(rows, places, places, ("model", "and model", "share"), max([*values.values(), LEAST_SCALE]))


def _densities(facts: Facts) -> Figure:
    panel, table = binned(model_names(facts), facts.densities, "density", percent, ".0%")
    text = "How many tensors have which density, the share of elements that a model was asked to keep of them."
    return Figure("densities", "Distribution of densities", text, [panel], table)


def _statistics(facts: Facts) -> Figure:
    panel, table = binned(model_names(facts), facts.statistics, "statistic", real, ".1f")
    text = (
        "TADrop's statistic of each tensor's change, from which its density follows: near 1 the change is sparse or "
        "heavy-tailed and little of it is kept, near 0 it is spread out evenly."
    )
    return Figure("statistics", "Distribution of TADrop's statistic", text, [panel], table)


def binned(
    names: Sequence[str],
    counts: Mapping[int, Mapping[int, int]],
    what: str,
    spelled: Callable[[float], str],
    number_format: str,
) -> tuple[Panel, Table]:
    """A histogram over [0, 1] and its table: per model, tensors by bin (see `bin_of`)."""
    rows, table = [], []
    for i, bins in sorted(counts.items()):
        for place, count in sorted(bins.items()):
            begin, end = place / BINS, (place + 1) / BINS
            between = f"{spelled(begin)} to {spelled(end)}"
            shown = {"range": between, "series": names[i], "value": count, "shown": whole(count)}
            rows.append({"begin": begin, "end": end, **shown})
            table.append((names[i], between, whole(count)))
    chart = charts.histogram(rows, (what, "tensors"), number_format, [names[i] for i in sorted(counts)])
    return Panel("all models", chart), Table(("model", what, "tensors"), table)


def _actions(facts: Facts) -> Figure:
    lines, rows, table = [], [], []
    for (action, reason), (tensors, numel, bytes_) in sorted(facts.actions.items(), key=lambda item: -item[1][0]):
        line = f"{action}: {reason}" if reason else action
        lines.append(line)
        rows.append({"line": line, "value": tensors, "shown": whole(tensors)})
        table.append(
            (action, reason or "-", whole(tensors), whole(numel) if numel else "-", size(bytes_) if bytes_ else "-")
        )
    for i, count in sorted(facts.missing.items()):
        if count:
            line = f"missing in {model_names(facts)[i]}"
            lines.append(line)
            rows.append({"line": line, "value": count, "shown": whole(count)})
            table.append(("missing", f"model {model_names(facts)[i]} has no such tensor", whole(count), "-", "-"))
    text = (
        "What became of each tensor of the output, and why. A tensor that a model lacks is merged from the others. How "
        "inputs were read (padded, dequantised, gathered) stands in the notes at the top."
    )
    panel = Panel("tensors", charts.bars(rows, lines, "tensors", "~s"))
    columns = ("what", "why", "tensors", "elements", "bytes written")
    return Figure("actions", "What became of the tensors", text, [panel], Table(columns, table))
