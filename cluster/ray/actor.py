"""The actor: works on one shard at a time and answers with its receipts, never with weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic

import ray
from ray.util.metrics import Counter

from ...engine.errors import AnabranchError, ResourceError, TemporaryError
from ...engine.kernels import make_kernels
from ...engine.models import open_source
from ...engine.output import OutputDirectory
from ...engine.plan import SharedReading
from ...engine.run import MemoryPlan, Meter, PartRecord, Phase, R, Shard, Work, Worker, part_worker, receipts_of
from ...engine.storage import open_store
from .parting import EndErrand, Errand, PartErrand

Usage = Mapping[Phase, tuple[float, int, int]]
"""Seconds, bytes and calls per phase."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker needs besides the plan. Holds no secret: credentials come from each node's own environment."""

    output_urls: tuple[str, ...]
    """One per plan of the group."""
    memory: MemoryPlan
    device: str
    num_cpus: int = 1

    @property
    def resources(self) -> dict[str, float]:
        """What Ray reserves for one worker."""
        wanted = {"CPU": float(self.num_cpus), "memory": float(self.memory.limit_bytes)}
        return wanted | ({"GPU": 1.0} if self.device == "cuda" else {})

    @property
    def gpu_text(self) -> str:
        return " and 1 GPU" if self.device == "cuda" else ""


@dataclass(frozen=True, slots=True)
class Done(Generic[R]):
    """A finished shard."""

    receipts: Mapping[int, R]
    """By plan of the group."""
    usage: Usage


@dataclass(frozen=True, slots=True)
class MadePart:
    """A finished part of a shard."""

    record: PartRecord
    usage: Usage


@dataclass(frozen=True, slots=True)
class Going:
    """What has been looked at and written of work in hand."""

    folded_bytes: int
    written_bytes: int


@dataclass(frozen=True, slots=True)
class Failed:
    """An error that a user can understand; others reach the driver as Ray's own."""

    error: AnabranchError


class MergeWorker:
    """State of one actor: opened inputs and outputs.

    Args:
        group: plans that share a reading.
        options: where to write, and how much memory to use.
    """

    def __init__(self, group: SharedReading, options: WorkerOptions) -> None:
        stores = [open_source(checkpoint) for checkpoint in group.sources]
        outputs = [
            OutputDirectory(plan, open_store(url, own=True))
            for plan, url in zip(group.plans, options.output_urls, strict=True)
        ]
        self._worker = Worker(group, stores, outputs, options.memory, make_kernels(options.device))
        self._meter = Meter()
        self._bytes = Counter("anabranch_bytes", "Bytes per phase.", ("phase",))
        self._seconds = Counter("anabranch_seconds", "Seconds per phase.", ("phase",))
        self._shards = Counter("anabranch_shards", "Finished shards.", ("what",))

    @ray.method(concurrency_group="watch")  # type: ignore[untyped-decorator]
    def progress(self) -> Going:
        """How far the work in hand is; answered while it is being done."""
        usage = self._meter.usage
        return Going(usage["fold"].bytes, usage["write"].bytes)

    def ready(self) -> str:
        """The first sign of life: the id of the node."""
        return str(ray.get_runtime_context().get_node_id())

    def work(self, work: Work[R], errand: Errand) -> Done[R] | MadePart | Failed:
        """Do it for a shard's members, but for those whose receipt a twin published already; or a part of one."""
        meter = self._meter = Meter()
        made: Mapping[int, R] | PartRecord
        try:
            made = self._receipts(work, errand, meter) if isinstance(errand, Shard) else self._part(work, errand, meter)
        except AnabranchError as error:
            return Failed(error)
        except MemoryError:
            return Failed(ResourceError("a worker ran out of memory", "give more with --memory"))
        usage = {phase: (u.seconds, u.bytes, u.calls) for phase, u in meter.usage.items()}
        self._report(usage)
        if isinstance(made, PartRecord):
            return MadePart(made, usage)
        self._shards.inc(1, {"what": work.step})
        return Done(made, usage)

    def _receipts(self, work: Work[R], shard: Shard, meter: Meter) -> Mapping[int, R]:
        receipts = receipts_of(work, self._worker.outputs, shard)
        missing = tuple(member for member in shard.members if member not in receipts)
        if missing:
            work.do(self._worker, meter, [Shard(shard.index, missing)], lambda _, made: receipts.update(made))
        return receipts

    def _part(self, work: Work[R], errand: PartErrand | EndErrand, meter: Meter) -> Mapping[int, R] | PartRecord:
        worker = part_worker(self._worker, work.survey(0), meter)
        try:
            if isinstance(errand, PartErrand):
                return worker.make(errand.part, errand.before)
            worker.finish(errand.records)
        except FileNotFoundError as error:
            # Another driver finished the shard, and the whole output, and removed what was unfinished.
            found = receipts_of(work, self._worker.outputs, errand.shard)
            if found:
                return found
            raise TemporaryError(f"the unfinished file of shard {errand.shard.index + 1} is gone") from error
        return receipts_of(work, self._worker.outputs, errand.shard)

    def _report(self, usage: Usage) -> None:
        for phase, (seconds, size, _) in usage.items():
            if size:
                self._bytes.inc(size, {"phase": phase})
            if seconds > 0:
                self._seconds.inc(seconds, {"phase": phase})


def make_worker(options: WorkerOptions, name: str) -> Any:
    """The actor class with its resources; never restarted or retried by Ray, as the scheduler decides that."""
    return ray.remote(concurrency_groups={"watch": 1})(MergeWorker).options(
        name=name,
        num_cpus=options.num_cpus,
        num_gpus=1 if options.device == "cuda" else 0,
        memory=options.memory.limit_bytes,
        max_restarts=0,
        max_task_retries=0,
    )
