"""What a merge did and where its time went, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.filesize import decimal

from ..output import manifest_sha256
from ..plan import Plan
from .memory import MemoryPlan
from .meter import PHASES, Meter, Phase, Stage
from .protocols import Outcome
from .resumed import check_threads
from .wording import counted, duration

ADVICE = {
    "read": "reading the inputs (and computing those that are not stored as they are merged)",
    "fold": "arithmetic",
    "emit": "hashing and writing the output",
    "publish": "making shards durable",
}
"""What each kind of thread spends its time with."""
AROUND: tuple[Stage, ...] = ("start", "commit")
BOUND_FROM = 0.5
"""Share of the time from which starting and committing are what a merge waited for."""


@dataclass(frozen=True)
class MergeReport:
    """A finished merge."""

    recipe: str
    out: str
    plan: Plan
    outcome: Outcome
    meter: Meter
    memory: MemoryPlan
    on_cluster: bool
    """Whether the phases add up workers that came and went; shares of the time then mean nothing."""
    wall_seconds: float
    peak_rss_bytes: int
    """Of this process, which on a cluster is only the driver."""
    beside: tuple[str, ...] = ()
    """Recipes that were merged in the same reading; time, memory, threads and phases are of all of them together."""
    parts: tuple[MergeReport, ...] = ()
    """The other outputs of the recipe."""

    @property
    def written_bytes(self) -> int:
        """Bytes of this recipe's shards that were written."""
        if not self.beside:
            return self.meter.usage["write"].bytes
        return sum(self.plan.shards[shard].size for shard in self.outcome.merged_shards)

    @property
    def threads(self) -> dict[Phase, int]:
        """Threads of each kind; hashing and writing share one."""
        return {
            "check": check_threads(),
            "read": self.memory.readers,
            "fold": self.memory.threads,
            "hash": 1,
            "write": 1,
            "publish": 1,
            "wait": 0,
        }

    def busy(self) -> dict[str, float]:
        """Share of the time between start and commit that each kind of thread worked; empty for a cluster."""
        if self.on_cluster:
            return {}
        stages = self.meter.stages
        usage, wall = self.meter.usage, max(stages.get("survey", 0.0) + stages.get("merge", 0.0), 1e-9)
        seconds = {
            "read": usage["read"].seconds / self.threads["read"],
            "fold": usage["fold"].seconds / self.threads["fold"],
            "emit": usage["hash"].seconds + usage["write"].seconds,
            "publish": usage["publish"].seconds,
        }
        return {kind: value / wall for kind, value in seconds.items()}

    def as_json(self) -> dict[str, Any]:
        """Everything, sizes in bytes; `phases` adds up over all threads."""
        manifest = self.outcome.manifest
        return {
            "outcome": "already complete" if self.outcome.already_complete else "done",
            "plan_id": self.plan.plan_id,
            "recipe": self.recipe,
            "out": self.out,
            "read_with": list(self.beside),
            "manifest_sha256": manifest_sha256(manifest),
            "shards": len(self.plan.shards),
            "shards_merged": len(self.outcome.merged_shards),
            "shards_resumed": len(self.outcome.resumed_shards),
            "merged_tensors": manifest.merged_tensors,
            "copied_tensors": manifest.copied_tensors,
            "seconds": round(self.wall_seconds, 3),
            "read_bytes": self.meter.usage["read"].bytes,
            "written_bytes": self.written_bytes,
            "peak_rss_bytes": self.peak_rss_bytes,
            "memory_limit_bytes": self.memory.limit_bytes,
            "threads": self.memory.threads,
            "stages": {stage: round(seconds, 3) for stage, seconds in self.meter.stages.items()},
            "phases": {
                phase: {"seconds": round(usage.seconds, 3), "bytes": usage.bytes, "calls": usage.calls}
                for phase, usage in self.meter.usage.items()
            },
            "busy": {kind: round(share, 3) for kind, share in self.busy().items()},
            "models": manifest.summary,
            "notes": manifest.notes,
            "warnings": manifest.warnings,
        }

    def __str__(self) -> str:
        return "\n".join([*(line for each in (self, *self.parts) for line in each.results()), *self.costs()])

    def results(self) -> Iterator[str]:
        """What the recipe has become."""
        manifest = self.outcome.manifest
        if self.outcome.already_complete:
            yield f"{self.out} is already complete; nothing was done (`anabranch verify` reads it again)"
            return
        yield f"merged into {self.out}"
        yield f"  manifest SHA-256 {manifest_sha256(manifest)}"
        there = len(self.outcome.resumed_shards)
        resumed = f" ({there} {'was' if there == 1 else 'were'} there)" if there else ""
        copied = "copied" if self.plan.part is None else "left to the base"
        yield (
            f"  {manifest.merged_tensors} tensors merged, {manifest.copied_tensors} {copied}, "
            f"{counted(len(self.plan.shards), 'shard')}{resumed}"
        )
        for row in manifest.summary:
            yield from self._model_lines(row)
        if self.plan.masks_of is not None:
            return  # the unified task vector's report has said it
        for note in manifest.notes:
            yield f"  note: {note}"
        for warning in manifest.warnings:
            yield f"  warning: {warning}"

    def costs(self) -> Iterator[str]:
        """Time and memory, of all recipes of the reading together; nothing where nothing was done."""
        if self.outcome.already_complete:
            return
        whose = " of the driver" if self.on_cluster else ""
        yield (
            f"  {duration(self.wall_seconds)}, peak memory{whose} {self.peak_rss_bytes >> 20} MiB; "
            f"limit {self.memory.limit_bytes >> 20} MiB{' per worker' if self.on_cluster else ''}"
        )
        yield "  " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in self.meter.stages.items())
        yield from self._phase_lines()

    def _model_lines(self, row: dict[str, Any]) -> Iterator[str]:
        shared = ", ".join(f"{share:.1%} with model {other}" for other, share in row["overlap"].items())
        overlap = f"; positions shared: {shared}" if shared else ""
        kept = f": {row['kept_fraction']:.1%} kept{overlap}" if self.outcome.manifest.merged_tensors else ""
        scale = f"; scale {row['scale']:.6g}" if "scale" in row else ""
        yield f"  model {row['model']} {row['url']}{kept}{scale}"

    def _phase_lines(self) -> Iterator[str]:
        yield f"  {'phase':<8} {'threads':>7} {'seconds':>9} {'GB/s each':>9} {'bytes':>9}"
        for phase in PHASES:
            usage = self.meter.usage[phase]
            if not usage.calls:
                continue
            speed = f"{usage.bytes / usage.seconds / 1e9:.2f}" if usage.bytes and usage.seconds else "-"
            size = decimal(usage.bytes) if usage.bytes else "-"
            threads = "-" if self.on_cluster or not self.threads[phase] else str(self.threads[phase])
            yield f"  {phase:<8} {threads:>7} {usage.seconds:>9.2f} {speed:>9} {size:>9}"
        if not self.on_cluster:
            yield f"  {self.bound()}"

    def bound(self) -> str:
        """What a merge in one process waited for."""
        around = sum(self.meter.stages.get(stage, 0.0) for stage in AROUND)
        if around > BOUND_FROM * self.wall_seconds:
            return f"bound by starting and committing: they took {around / self.wall_seconds:.0%} of the time"
        kind, share = max(self.busy().items(), key=lambda item: item[1])
        return f"bound by {ADVICE[kind]}: its threads were busy {min(share, 1.0):.0%} of the time between"
