"""Recipes on their way to being merged: opened, planned, checked, and put together where they can share a reading."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from ..errors import RecipeError, ResourceError
from ..models import Opened, Room
from ..output import MANIFEST_NAME, OutputDirectory
from ..plan import Inputs, Plan, SharedReading, inputs_of_parts, open_inputs, share_reading, why_apart
from ..recipe import load_recipe
from ..storage import open_output
from .execution import Execution, worker_memory
from .memory import MemoryPlan
from .plan_report import PlanReport
from .protocols import Member

TABLES_BYTES_PER_TENSOR = 1000
"""Room for receipts, tables, index and manifest, generously."""


@dataclass(frozen=True)
class PreparedMerge:
    """A recipe with its inputs open and its output looked at; nothing has been written."""

    recipe: str
    out: str
    inputs: Inputs
    output: OutputDirectory
    memory: MemoryPlan
    report: PlanReport

    @property
    def member(self) -> Member:
        return Member(self.inputs, self.output)


def prepare(
    recipe: str | Path, out: str | Path, execution: Execution, opened: Opened | None = None
) -> list[PreparedMerge]:
    """Open a recipe's inputs, make the plan, and look at what the output directory already has.

    A recipe with several outputs (EMR-Merging) becomes a job for each of them, in OUT/<name of the part>.

    Args:
        recipe: the recipe's file.
        out: the output directory.
        execution: how it will be merged.
        opened: checkpoints that other recipes of the same command have opened; gets those of this one, too.

    Raises:
        RecipeError, InputError: what the plan refuses.
        OutputConflictError: the output belongs to another plan.
        ResourceError: the memory limit cannot hold the smallest worker.
    """
    path = Path(recipe)
    opened = opened or Opened(room=Room(execution.memory_bytes))
    parts = inputs_of_parts(open_inputs(load_recipe(path), path.parent, opened))
    return [_job(str(recipe), out_of(part.plan, out), part, execution) for part in parts]


def out_of(plan: Plan, out: str | Path) -> str:
    """Where a plan's output goes when its recipe goes to `out`."""
    return os.fspath(out) if plan.part is None else f"{os.fspath(out).rstrip('/')}/{plan.part.name}"


def _job(recipe: str, out: str, inputs: Inputs, execution: Execution) -> PreparedMerge:
    output = OutputDirectory(inputs.plan, open_output(out, MANIFEST_NAME))
    state = output.check()
    shards = range(len(inputs.plan.shards))
    finished = frozenset(shards if state == "finished" else output.receipts() if state == "started" else ())
    memory = worker_memory([Member(inputs, output)], execution)
    to_write = sum(shard.size for i, shard in enumerate(inputs.plan.shards) if i not in finished)
    report = PlanReport(
        recipe=recipe,
        plan=inputs.plan,
        out=output.store.url,
        state=state,
        finished_shards=finished,
        memory=memory,
        is_remote=inputs.is_remote,
        disk_needed_bytes=0 if state == "finished" else to_write + TABLES_BYTES_PER_TENSOR * len(inputs.plan.tasks),
        disk_free_bytes=output.store.free_bytes(),
    )
    return PreparedMerge(recipe, out, inputs, output, memory, report)


def prepare_all(recipes: Sequence[str | Path], outs: Sequence[str | Path], execution: Execution) -> list[PreparedMerge]:
    """As `prepare`, for recipes of one command: a checkpoint that several name is opened once."""
    opened = Opened(room=Room(execution.memory_bytes))
    pairs = zip(recipes, outs, strict=True)
    return [job for recipe, out in pairs for job in prepare(recipe, out, execution, opened)]


def outputs_of(recipes: Sequence[str | Path], out: str | Path) -> list[str]:
    """Where several recipes go: OUT/<the recipe file's name> each.

    Raises:
        RecipeError: two recipe files have the same name.
    """
    stems = [Path(recipe).stem for recipe in recipes]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise RecipeError(
            f"several recipes are called {twice[0]!r}, so their outputs would have the same name", "rename one of them"
        )
    return [f"{os.fspath(out).rstrip('/')}/{stem}" for stem in stems]


def check_disk(jobs: Sequence[PreparedMerge]) -> None:
    """Refuse what cannot fit.

    Raises:
        ResourceError: less space is free than the outputs together still need.
    """
    free = [job.report.disk_free_bytes for job in jobs if job.report.disk_free_bytes is not None]
    needed = sum(job.report.disk_needed_bytes for job in jobs if job.report.disk_free_bytes is not None)
    if free and needed > min(free):
        raise ResourceError(
            f"{jobs[0].output.store.url}: {needed} bytes are still to be written, {min(free)} are free",
            "free some space or use another output directory; `anabranch gc OUT` finds left-over temporaries",
        )


# -- readings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadingGroup:
    """Recipes whose inputs are read once for all of them."""

    jobs: tuple[PreparedMerge, ...]
    memory: MemoryPlan
    apart: str = ""
    """Why these are not part of an earlier reading."""

    @cached_property
    def group(self) -> SharedReading:
        return share_reading([job.inputs.plan for job in self.jobs])

    @cached_property
    def read_bytes(self) -> int:
        """Bytes of inputs that a merge of all of them needs, each counted once."""
        members = range(len(self.jobs))
        return sum(self.group.read_bytes(position, members) for position in range(len(self.group.plans[0].tasks)))

    @property
    def alone_bytes(self) -> int:
        """Bytes that they would read one after the other."""
        return sum(job.inputs.plan.read_bytes for job in self.jobs)

    def as_json(self) -> dict[str, Any]:
        """Sizes in bytes."""
        return {
            "recipes": [job.recipe for job in self.jobs],
            "read_bytes": self.read_bytes,
            "alone_bytes": self.alone_bytes,
            "threads": self.memory.threads,
            "peak_memory_bytes": self.memory.peak_bytes,
            "apart": self.apart,
        }

    def __str__(self) -> str:
        names = ", ".join(dict.fromkeys(job.recipe for job in self.jobs))
        memory = f"{self.memory.peak_bytes >> 20} MiB at most"
        why = f" ({self.apart})" if self.apart else ""
        if len(self.jobs) == 1:
            return f"read alone: {names}, {decimal(self.read_bytes)}, {memory}{why}"
        return (
            f"read together: {names}, {decimal(self.read_bytes)} instead of {decimal(self.alone_bytes)}, {memory}{why}"
        )


def share_readings(jobs: Sequence[PreparedMerge], execution: Execution) -> list[ReadingGroup]:
    """Put recipes together whose outputs are laid out alike; finished ones need no reading and stay alone.

    A recipe joins the first reading that it fits into without costing a fold thread or a smaller buffer; parts of one
    recipe stay together at that cost, as each alone would read all inputs again.
    """
    readings: list[ReadingGroup] = []
    for job in jobs:
        reason = ""
        for place, reading in enumerate(readings):
            joined = _join(reading, job, execution)
            if isinstance(joined, ReadingGroup):
                readings[place] = joined
                break
            reason = reason or joined
        else:
            finished = job.report.state == "finished"
            readings.append(ReadingGroup((job,), job.memory, "its output is complete" if finished else reason))
    return readings


def _join(reading: ReadingGroup, job: PreparedMerge, execution: Execution) -> ReadingGroup | str:
    """The reading with one more recipe, or why that cannot be."""
    if "finished" in (job.report.state, reading.jobs[0].report.state):
        return ""
    apart = why_apart([other.inputs.plan for other in reading.jobs], job.inputs.plan)
    if apart:
        return apart
    jobs = (*reading.jobs, job)
    lacking = f"{execution.memory_bytes >> 20} MiB do not hold its buffers beside theirs: give more with --memory"
    try:
        memory = worker_memory([each.member for each in jobs], execution)
    except ResourceError:
        return lacking
    if job.inputs.plan.part is not None and job.recipe == reading.jobs[-1].recipe:
        return replace(reading, jobs=jobs, memory=memory)
    alone = (reading.memory, job.memory)
    if memory.threads < min(m.threads for m in alone) or memory.slab_bytes < min(m.slab_bytes for m in alone):
        return lacking
    return replace(reading, jobs=jobs, memory=memory)
