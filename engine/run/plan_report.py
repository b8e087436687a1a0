"""What a merge would read, write and need, as text and as JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from rich.filesize import decimal

from ..errors import some_names
from ..models import Checkpoint, TensorLocation
from ..plan import Plan
from .folded_bytes import fold_bytes, survey_bytes
from .memory import MemoryPlan
from .wording import counted, duration

State = Literal["new", "started", "finished"]

READ_BYTES_PER_SECOND = 1.0e9
WRITE_BYTES_PER_SECOND = 0.5e9
REMOTE_BYTES_PER_SECOND = 0.2e9
FOLD_BYTES_PER_SECOND = 0.25e9
"""Per thread, of input bytes of one pass."""


@dataclass(frozen=True)
class PlanReport:
    """A plan beside the output directory and the machine that it would run on."""

    recipe: str
    plan: Plan
    out: str
    state: State
    """How far the output directory is."""
    finished_shards: frozenset[int]
    memory: MemoryPlan
    is_remote: bool
    """Whether any input lies behind a network."""
    disk_needed_bytes: int
    """Still to be written."""
    disk_free_bytes: int | None
    """None: unknown or unlimited."""
    parts: tuple[PlanReport, ...] = ()
    """The other outputs of the recipe."""

    @property
    def merged_tensors(self) -> int:
        return sum(task.method is not None for task in self.plan.tasks)

    @cached_property
    def copied(self) -> dict[str, list[str]]:
        """Names of the tensors that are copied, by reason."""
        found: dict[str, list[str]] = defaultdict(list)
        for task in self.plan.tasks:
            if task.method is None:
                found[task.reason].append(task.name)
        return dict(found)

    @cached_property
    def differences(self) -> list[dict[str, Any]]:
        """Per model: tensors that it lacks, tensors that only it has, and tensors of another shape or dtype.

        With slices, of what they take; what they leave out is in the notes. Names are those of the output.
        """
        return [
            {
                "url": model.url,
                "missing": [name for name, _, own in pairs if own is None],
                "extra": list(self.plan.extra.get(model.url, ())),
                "shape": [name for name, asked, own in pairs if own and own.info.shape != asked.info.shape],
                "dtype": [name for name, asked, own in pairs if own and own.out_dtype != asked.out_dtype],
            }
            for model, pairs in zip(self.plan.models, self._pairs(), strict=True)
        ]

    def _pairs(self) -> list[list[tuple[str, TensorLocation, TensorLocation | None]]]:
        """Per model: every tensor that it should have, where the reference has it, and where the model has it."""
        plan = self.plan
        if not plan.terms.slices:
            base = plan.base.tensors
            return [[(name, base[name], model.tensors.get(name)) for name in base] for model in plan.models]
        found: list[list[tuple[str, TensorLocation, TensorLocation | None]]] = [[] for _ in plan.models]
        for task in plan.tasks:
            for i, own in enumerate(task.models) if task.method is not None else ():
                found[task.model_of(i)].append((task.name, task.base, own))
        return found

    @property
    def seconds(self) -> float:
        """A rough time for what is still to be done, from assumed speeds."""
        if self.state == "finished":
            return 0.0
        todo = [i for i in range(len(self.plan.shards)) if i not in self.finished_shards]
        read = sum(self.plan.tasks[i].read_bytes for shard in todo for i in self.plan.shards[shard].tasks)
        read += self.plan.read_bytes if self.plan.survey_kind else 0
        fold = fold_bytes(self.plan, todo) + survey_bytes(self.plan)
        return max(
            read / (REMOTE_BYTES_PER_SECOND if self.is_remote else READ_BYTES_PER_SECOND),
            self.disk_needed_bytes / WRITE_BYTES_PER_SECOND,
            fold / (FOLD_BYTES_PER_SECOND * self.memory.threads),
        )

    def as_json(self) -> dict[str, Any]:
        """Everything, sizes in bytes."""
        plan = self.plan
        return {
            "outcome": "planned",
            "plan_id": plan.plan_id,
            "recipe": self.recipe,
            "method": plan.terms.method,
            "part": plan.part.describe() if plan.part is not None else None,
            "out": self.out,
            "state": self.state,
            "inputs": [
                {
                    "role": role,
                    "url": checkpoint.url,
                    "files": len(checkpoint.files),
                    "tensors": len(checkpoint.tensors),
                    "bytes": sum(file.size for file in checkpoint.files),
                }
                for role, checkpoint in self._inputs()
            ],
            "slices": plan.terms.slices,
            "layers": plan.terms.layers or None,
            "tensors": len(plan.tasks),
            "merged_tensors": self.merged_tensors,
            "parameters": sum(task.numel for task in plan.tasks),
            "read_bytes": plan.read_bytes,
            "fold_bytes": fold_bytes(plan, range(len(plan.shards))),
            "survey": plan.survey_kind,
            "survey_bytes": survey_bytes(self.plan),
            "write_bytes": plan.write_bytes,
            "shards": [{"name": shard.name, "bytes": shard.size} for shard in plan.shards],
            "finished_shards": sorted(self.finished_shards),
            "threads": self.memory.threads,
            "peak_memory_bytes": self.memory.peak_bytes,
            "memory_limit_bytes": self.memory.limit_bytes,
            "disk_needed_bytes": self.disk_needed_bytes,
            "disk_free_bytes": self.disk_free_bytes,
            "seconds": round(self.seconds, 1),
            "copied": self.copied,
            "differences": self.differences,
            "notes": list(plan.notes),
            "warnings": list(plan.warnings),
        }

    def _inputs(self) -> Iterator[tuple[str, Checkpoint]]:
        if self.plan.terms.has_base:
            yield "base", self.plan.base
        for checkpoint in self.plan.sources[1 + len(self.plan.models) :]:
            yield "base", checkpoint
        for i, model in enumerate(self.plan.models):
            yield f"model {i}", model

    def __str__(self) -> str:
        return "\n".join(line for each in (self, *self.parts) for line in each._lines())

    def _lines(self) -> Iterator[str]:
        plan = self.plan
        yield f"plan {plan.plan_id[:16]}: {plan.terms.method}{self._part_text()} into {self.out}"
        if plan.masks_of is None:
            yield from self._input_lines()
        yield from self._output_lines()
        if plan.masks_of is None:
            yield f"time        {self._time_text()}"
            for note in plan.notes:
                yield f"note        {note}"
            for warning in plan.warnings:
                yield f"warning     {warning}"

    def _part_text(self) -> str:
        part = self.plan.part
        if part is None:
            return ""
        return ", unified task vector" if part.task is None else f", masks of model {part.task} ({part.name})"

    def _input_lines(self) -> Iterator[str]:
        plan = self.plan
        for role, checkpoint in self._inputs():
            size = decimal(sum(file.size for file in checkpoint.files))
            files = counted(len(checkpoint.files), "file")
            yield f"  {role:<9} {checkpoint.url}: {counted(len(checkpoint.tensors), 'tensor')}, {size} in {files}"
        if plan.terms.slices:
            yield f"slices      {counted(plan.terms.slices, 'slice')} with {counted(plan.terms.layers, 'layer')}"
        parameters = sum(task.numel for task in plan.tasks)
        copied = len(plan.tasks) - self.merged_tensors
        yield f"tensors     {self.merged_tensors} merged, {copied} copied; {parameters:,} parameters"
        for reason, names in self.copied.items():
            yield f"  copied    {reason}: {some_names(names)}"
        yield from self._difference_lines()
        yield f"read        {decimal(plan.read_bytes)}{self._survey_text()}"

    def _output_lines(self) -> Iterator[str]:
        plan = self.plan
        largest = max(shard.size for shard in plan.shards)
        shards = counted(len(plan.shards), "shard")
        yield f"write       {decimal(plan.write_bytes)} in {shards} of at most {decimal(largest)}"
        if self.state == "started":
            yield f"resume      {len(self.finished_shards)} of {len(plan.shards)} shards are there"
        if self.state == "finished":
            yield "resume      the output is complete; merging again changes nothing"
        peak, limit = self.memory.peak_bytes >> 20, self.memory.limit_bytes >> 20
        yield f"memory      {peak} MiB at most with {counted(self.memory.threads, 'fold thread')}, limit {limit} MiB"
        free = "unknown or unlimited" if self.disk_free_bytes is None else decimal(self.disk_free_bytes)
        yield f"disk        {decimal(self.disk_needed_bytes)} needed, {free} free"

    def _difference_lines(self) -> Iterator[str]:
        texts: Mapping[str, str] = {
            "missing": "lacks {} of the reference's tensors, which count as unchanged",
            "extra": "has {} tensors that the reference does not have, which are left out",
            "shape": "has {} tensors of another shape, merged where both have rows",
            "dtype": "has {} tensors of another dtype",
        }
        for i, row in enumerate(self.differences):
            for key, text in texts.items():
                if row[key]:
                    yield f"  model {i}   {text.format(len(row[key]))}: {some_names(row[key])}"

    def _survey_text(self) -> str:
        kind = self.plan.survey_kind
        return f", and the same before it for statistics of whole models ({kind})" if kind else ""

    def _time_text(self) -> str:
        if self.state == "finished":
            return "nothing to do"
        source = REMOTE_BYTES_PER_SECOND if self.is_remote else READ_BYTES_PER_SECOND
        return (
            f"roughly {duration(self.seconds)}, if reading does {decimal(int(source))}/s, "
            f"writing {decimal(int(WRITE_BYTES_PER_SECOND))}/s and a thread folds "
            f"{decimal(int(FOLD_BYTES_PER_SECOND))}/s; not measured here"
        )
