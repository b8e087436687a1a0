"""Results of merge.py as a Markdown table and as a drawing.

python -m benchmarks.table .bench/results/merge-0.5b-2.json [DRAWING.svg]
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MIB = 1 << 20
HEADINGS = (
    "method",
    "inputs",
    "contender",
    "seconds",
    "x floor",
    "x ours",
    "CPU s",
    "peak MiB",
    "disk read",
    "disk written",
    "unlike ours",
)


def median(row: Mapping[str, Any], key: str) -> float:
    return float(statistics.median(run[key] for run in row["runs"]))


def paired_ratio(row: Mapping[str, Any], reference: Mapping[str, Any] | None) -> str:
    """Median over the rounds of this contender's seconds to the reference's in the same round."""
    if reference is None:
        return ""
    pairs = zip(row["runs"], reference["runs"], strict=True)
    return f"{statistics.median(run['seconds'] / other['seconds'] for run, other in pairs):.1f}"


def _reference(rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The first contender of the same method and case whose name starts with ``name``."""
    same = [other for other in rows if (other["method"], other["case"]) == (row["method"], row["case"])]
    return next((other for other in same if other["contender"].startswith(name)), None)


def markdown(results: Mapping[str, Any]) -> str:
    """Medians and ratios; single runs stay in the JSON file."""
    facts, rows = results["facts"], results["rows"]
    about = (
        f"{facts['size']}, {facts['models']} models and their base, density {facts['density']}, "
        f"median of {facts['repeats']}; {facts['processor']}, {facts['memory_bytes'] / (1 << 30):.0f} GiB, "
        f"Python {facts['python']}, {facts['versions']}, {facts['date']}, commit {facts['commit']}. "
        f"Everything else on the machine used {_others(rows):.1f} cores meanwhile."
    )
    lines = [
        about,
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{'---|' * 3}{'---:|' * (len(HEADINGS) - 3)}",
    ]
    for row in rows:
        cells = (
            row["method"],
            row["case"],
            row["contender"],
            f"{median(row, 'seconds'):.2f}",
            paired_ratio(row, _reference(rows, row, "floor")),
            paired_ratio(row, _reference(rows, row, "anabranch")),
            f"{median(row, 'cpu_seconds'):.1f}",
            f"{median(row, 'peak_bytes') / MIB:.0f}",
            f"{median(row, 'disk_read_bytes') / MIB:.0f}",
            f"{median(row, 'disk_written_bytes') / MIB:.0f}",
            "" if row["unlike_ours"] is None else f"{100 * row['unlike_ours']:.3f} %",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _others(rows: Sequence[Mapping[str, Any]]) -> float:
    return float(statistics.median(run["others_cores"] for row in rows for run in row["runs"]))


def plot(results: Mapping[str, Any], path: Path) -> None:
    """One panel per method and case: seconds as bars, peak memory written beside them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = results["rows"]
    panels = list(dict.fromkeys((row["method"], row["case"]) for row in rows))
    figure, axes = plt.subplots(len(panels), 1, figsize=(8, 1.9 * len(panels)), squeeze=False, layout="constrained")
    for (method, case), axis in zip(panels, axes[:, 0], strict=True):
        shown = [row for row in rows if (row["method"], row["case"]) == (method, case)][::-1]
        seconds = [median(row, "seconds") for row in shown]
        colours = ["#b0b0b0" if row["contender"] == "floor" else "#1f77b4" for row in shown]
        for row, colour in zip(shown, range(len(colours)), strict=True):
            if row["contender"].startswith("anabranch"):
                colours[colour] = "#d95f02"
        bars = axis.barh([row["contender"] for row in shown], seconds, color=colours)
        peaks = [
            f" {value:.1f} s, {median(row, 'peak_bytes') / MIB:.0f} MiB"
            for row, value in zip(shown, seconds, strict=True)
        ]
        axis.bar_label(bars, labels=peaks, fontsize=8)
        axis.set_title(f"{method}, inputs {case}", loc="left", fontsize=10)
        axis.set_xlim(0, 1.3 * max(seconds))
        axis.spines[["top", "right"]].set_visible(False)
    facts = results["facts"]
    axes[-1, 0].set_xlabel(f"seconds, median of {facts['repeats']} ({facts['size']}, {facts['models']} models)")
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str]) -> int:
    results = json.loads(Path(arguments[0]).read_text())
    print(markdown(results))
    if len(arguments) > 1:
        plot(results, Path(arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
