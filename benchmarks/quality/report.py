"""Results as Parquet and drawings, and the tables of README.md: python -m benchmarks.quality.report

Per-seed results are read from what `run` kept. Tables follow from the Parquet file alone, so that whoever has it can
make them again.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import t as student

from .sets import SETS, TaskSet

FOLDER = Path(".bench/quality")
RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).with_name("README.md")
TABLE = re.compile(r"(?m)^<!-- table: (.+) -->\n(?:\|.*\n)*")
"""Where a page has the table of a group."""
REFERENCE = "task arithmetic"
OWN_REFERENCE = ("2 models", "6 models", "related", "equal norms", "bf16", "6 layers", "6 layers, 6 models")
"""Groups with other models or weights, and task arithmetic of their own."""
REFERENCES = {**{group: group for group in OWN_REFERENCE}, "order of 6 models": "6 models"}
"""By group, the one whose task arithmetic it is compared with; others with that of the main one."""
BOTH_AND_NEITHER = {"magnitude 0.1": "neither: magnitude 0.1", "CABS 0.1": "both: CABS 0.1"}
"""Rows of the main group that the ablation is read beside, and what they are there."""
CONFIDENCE = 0.95

Row = Mapping[str, Any]


def read_cells(of: TaskSet, folder: Path) -> list[dict[str, Any]]:
    """Every one of a set's cells that is done, in their order, of every seed, with its mean over tasks."""
    rows = []
    for cell in {cell.key: cell for cell in of.cells()}.values():
        for file in sorted((folder / of.place).glob(f"seed-*/cells/{cell.key}.json")):
            row = json.loads(file.read_text()) | {"group": cell.group, "title": cell.title}
            rows.append(row | {"mean": statistics.fmean(row["accuracy"].values())})
    return rows


def write_results(of: TaskSet, folder: Path, results: Path) -> None:
    """Parquet files of what is done, tables on standard output, and drawings."""
    rows = read_cells(of, folder)
    results /= of.place
    results.mkdir(parents=True, exist_ok=True)
    per_task = [
        {
            key: row.get(key)
            for key in ("seed", "group", "title", "layers", "dtype", "factor", "kept", "overlap", "at_edge")
        }
        | {"models": " ".join(row["models"]), "task": task, "accuracy": accuracy}
        for row in rows
        for task, accuracy in row["accuracy"].items()
    ]
    curves = [
        {key: row[key] for key in ("seed", "group", "title")} | {"factor": float(factor), "validation": score}
        for row in rows
        for factor, score in row.get("curve", {}).items()
    ]
    own = [json.loads(file.read_text()) for file in sorted((folder / of.place).glob("seed-*/specialists.json"))]
    specialists = [
        {"seed": each["seed"], "layers": each["layers"], "task": task, "accuracy": value}
        for each in own
        for task, value in each["accuracy"].items()
    ]
    for name, found in (("cells", per_task), ("curves", curves), ("specialists", specialists)):
        if found:
            pq.write_table(pa.Table.from_pylist(found), results / f"{name}.parquet")
    for line in tables(rows):
        print(line)
    if rows:
        draw(rows, curves, results)


def published_rows(of: TaskSet, results: Path) -> list[Row]:
    """Every cell of a set and every seed as `write_results` wrote it, with its mean over tasks."""
    of_tasks: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for task in pq.read_table(results / of.place / "cells.parquet").to_pylist():
        of_tasks[task["seed"], task["group"], task["title"]].append(task)
    return [{**tasks[0], "mean": statistics.fmean(task["accuracy"] for task in tasks)} for tasks in of_tasks.values()]


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown, a table per group."""
    for group in dict.fromkeys(row["group"] for row in rows):
        yield f"\n**{group}**\n"
        yield from table(rows, group)


def with_tables(text: str, of: TaskSet, rows: Sequence[Row]) -> str:
    """A page with the tables of a set made anew; a group without rows keeps the one that is there."""

    def table_of(match: re.Match[str]) -> str:
        place, _, group = match[1].rpartition("/")
        lines = list(table(rows, group)) if place == of.place else []
        return "".join(f"{line}\n" for line in (f"<!-- table: {match[1]} -->", *lines)) if lines else match[0]

    return TABLE.sub(table_of, text)


def table(rows: Sequence[Row], group: str) -> Iterator[str]:
    """Markdown of one group; titles say so where a row has fewer seeds than others."""
    found = titled_rows(rows, group)
    if not found:
        return
    reference = by_seed(rows, REFERENCES.get(group, "main"))
    most = max(map(len, found.values()))
    yield "| | accuracy % | to task arithmetic | lambda | kept % | overlap |"
    yield "|---|---|---|---|---|---|"
    for title, of_seed in found.items():
        seeds = f" ({len(of_seed)} of {most} seeds)" if len(of_seed) < most else ""
        yield "| " + " | ".join((title + seeds, *cells_of(of_seed, reference))) + " |"


def titled_rows(rows: Sequence[Row], group: str) -> dict[str, dict[int, Row]]:
    """A group's rows by title and seed: the largest densities first, an ablation between what it takes apart."""
    found: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        if row["group"] == group:
            found[row["title"]][row["seed"]] = row
    if group == "main":
        return dict(sorted(found.items(), key=lambda each: -density_of(each[0])))
    if group == "ablation":
        main = titled_rows(rows, "main")
        beside = [{name: main[title]} if title in main else {} for title, name in BOTH_AND_NEITHER.items()]
        return {**beside[0], **found, **beside[1]}
    return found


def density_of(title: str) -> float:
    """What a title ends with; infinite where it is no number."""
    try:
        return float(title.rpartition(" ")[2])
    except ValueError:
        return math.inf


def by_seed(rows: Sequence[Row], group: str) -> dict[int, float]:
    """Task arithmetic's mean in a group, by seed."""
    return {row["seed"]: row["mean"] for row in rows if row["group"] == group and row["title"] == REFERENCE}


def cells_of(found: Mapping[int, Row], reference: Mapping[int, float]) -> Iterator[str]:
    """What a table says of one way to merge, beside its title."""
    rows = [found[seed] for seed in sorted(found)]
    yield with_interval([100 * row["mean"] for row in rows], "{:.1f}")
    gaps = [100 * (row["mean"] - reference[row["seed"]]) for row in rows if row["seed"] in reference]
    yield "" if rows[0]["title"] == REFERENCE or not gaps else with_interval(gaps, "{:+.1f}")
    factors = [row["factor"] for row in rows if row.get("factor") is not None]
    yield "" if not factors else f"{min(factors):g} to {max(factors):g}" if len(set(factors)) > 1 else f"{factors[0]:g}"
    kept = [100 * row["kept"] for row in rows if row.get("kept") is not None]
    yield f"{statistics.fmean(kept):.1f}" if kept else ""
    overlap = [row["overlap"] for row in rows if row.get("overlap") is not None and math.isfinite(row["overlap"])]
    yield f"{statistics.fmean(overlap):.3f}" if overlap else ""


def with_interval(values: Sequence[float], form: str) -> str:
    """Mean and half the width of its confidence interval over seeds; one seed has none."""
    mean = form.format(statistics.fmean(values))
    if len(values) < 2:
        return mean
    return f"{mean} ± {half_width(values):.1f}"


def half_width(values: Sequence[float]) -> float:
    """Of the interval that Student's t gives for the mean of independent values."""
    quantile = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def draw(rows: Sequence[Row], curves: Sequence[Row], results: Path) -> None:
    """Accuracy by density, and the lambda curves of density 0.1."""
    import altair

    points = []
    for row in rows:
        name, density = row["title"].rpartition(" ")[0], density_of(row["title"])
        if row["group"] == "main" and math.isfinite(density):
            points.append({"method": name, "density": density, "accuracy": 100 * row["mean"], "seed": row["seed"]})
    if len({point["density"] for point in points}) > 1:
        scale = altair.Scale(zero=False)
        density_axis = altair.X("density:Q", scale=altair.Scale(type="log"), title="density")
        accuracy_axis = altair.Y("mean(accuracy):Q", scale=scale, title="test accuracy, %, mean of seeds")
        chart = altair.Chart(altair.Data(values=points)).mark_line(point=True)
        chart.encode(x=density_axis, y=accuracy_axis, color="method:N").save(results / "density.svg")
    wanted = [c for c in curves if c["group"] == "main" and (c["title"] == REFERENCE or c["title"].endswith(" 0.1"))]
    if wanted:
        factor_axis = altair.X("factor:Q", scale=altair.Scale(type="log"), title="lambda")
        score_axis = altair.Y("mean(validation):Q", scale=altair.Scale(zero=False), title="validation accuracy")
        chart = altair.Chart(altair.Data(values=wanted)).mark_line(point=True)
        chart.encode(x=factor_axis, y=score_axis, color="title:N").save(results / "lambda.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--set", choices=sorted(SETS), default="texts")
    options = parser.parse_args()
    of = SETS[options.set]
    write_results(of, options.folder, options.results)
    page = with_tables(PAGE.read_text(encoding="utf-8"), of, published_rows(of, options.results))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
