"""What only the run of a merge knows: time and bytes by phase and by worker, and what it waited for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ...engine.run import MergeReport, Stretch, duration
from . import charts
from .figures import Figure, Panel, Table
from .page import Section
from .wording import real, size, whole


def run_section(report: MergeReport) -> Section:
    """Words and a table."""
    told = report.as_json()
    facts = [
        ("time", duration(report.wall_seconds)),
        ("stages", ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in told["stages"].items())),
        ("peak memory", f"{size(report.peak_rss_bytes)}{' of the driver' if report.on_cluster else ''}"),
        ("limit", f"{size(report.memory.limit_bytes)}{' per worker' if report.on_cluster else ''}"),
        ("shards", f"{told['shards_merged']} made, {told['shards_resumed']} were there"),
        ("read with", ", ".join(report.beside)),
        ("bound", "" if report.on_cluster else report.bound()),
    ]
    return Section("How long it took", [(what, text) for what, text in facts if text])


def run_figures(report: MergeReport) -> list[Figure]:
    """Seconds by phase, and lanes where they were kept."""
    found = [_phases(report)]
    lanes = report.meter.lanes
    if lanes is not None and lanes.stretches:
        found.append(_lanes(lanes.stretches, report.on_cluster))
    return found


def _phases(report: MergeReport) -> Figure:
    rows, table, lines = [], [], []
    for phase, usage in report.meter.usage.items():
        if not usage.calls:
            continue
        lines.append(phase)
        rows.append({"line": phase, "value": usage.seconds, "shown": f"{real(usage.seconds)} s"})
        moved = size(usage.bytes) if usage.bytes else "-"
        speed = f"{size(int(usage.bytes / usage.seconds))}/s" if usage.bytes and usage.seconds else "-"
        table.append((phase, f"{real(usage.seconds)} s", moved, speed, whole(usage.calls)))
    text = "Seconds of all threads or workers together, and the bytes that went through each phase."
    panel = Panel("seconds", charts.bars(rows, lines, "seconds", "~g"))
    return Figure(
        "phases", "Time and bytes by phase", text, [panel], Table(("phase", "time", "bytes", "each", "calls"), table)
    )


def _lanes(stretches: Sequence[Stretch], on_cluster: bool) -> Figure:
    start = min(each.begin_seconds for each in stretches)
    rows = []
    totals: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for each in stretches:
        lane = each.who if on_cluster else f"{each.what}: {each.who}"
        took = each.end_seconds - each.begin_seconds
        shown = f"{real(took)} s from {real(each.begin_seconds - start)} s on"
        rows.append(
            {
                "lane": lane,
                "begin": round(each.begin_seconds - start, 4),
                "end": round(each.end_seconds - start, 4),
                "series": each.what,
                "what": f"{size(each.bytes)}, busy {each.busy_seconds / took if took else 1:.0%}",
                "shown": shown,
            }
        )
        sums = totals[lane, each.what]
        sums[0], sums[1], sums[2] = sums[0] + each.busy_seconds, sums[1] + each.bytes, sums[2] + 1
    names = list(dict.fromkeys(lane for lane, _ in sorted(totals)))
    kinds = list(dict.fromkeys(each.what for each in stretches))
    table = [
        (lane, what, f"{real(seconds)} s", size(int(moved)), whole(int(count)))
        for (lane, what), (seconds, moved, count) in sorted(totals.items())
    ]
    who = "worker" if on_cluster else "thread"
    text = f"What each {who} did when; stretches with pauses too short to be seen are one."
    panel = Panel(f"{who}s", charts.lanes(rows, names, kinds))
    columns = (who, "work", "busy", "bytes", "stretches")
    return Figure("lanes", f"Work by {who} over time", text, [panel], Table(columns, table))
