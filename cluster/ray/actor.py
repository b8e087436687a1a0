"""The actor: merges or surveys one shard at a time and answers with a receipt, never with weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.metrics import Counter

from ...engine.errors import AnabranchError, ResourceError
from ...engine.kernels import make_kernels
from ...engine.models import open_source
from ...engine.output import OutputDirectory
from ...engine.plan import Receipt, Round, SharedReading, Survey, SurveyPart
from ...engine.run import MemoryPlan, Meter, Phase, Shard, ShardWorker, SurveyWorker
from ...engine.storage import open_store

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
class Done:
    """A finished shard."""

    receipts: Mapping[int, Receipt] | bool
    """By plan of the group; True for a part of a survey, which the outputs hold."""
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """An error that a user can understand; others reach the driver as Ray's own."""

    error: AnabranchError


class MergeWorker:
    """State of one actor: opened inputs and output.

    Args:
        group: plans that share a reading.
        options: where to write, and how much memory to use.
    """

    def __init__(self, group: SharedReading, options: WorkerOptions) -> None:
        self._group = group
        self._options = options
        self._stores = [open_source(checkpoint) for checkpoint in group.sources]
        self._outputs = [
            OutputDirectory(plan, open_store(url)) for plan, url in zip(group.plans, options.output_urls, strict=True)
        ]
        self._kernels = make_kernels(options.device)
        self._meter = Meter()
        self._bytes = Counter("anabranch_bytes", "Bytes per phase.", ("phase",))
        self._seconds = Counter("anabranch_seconds", "Seconds per phase.", ("phase",))
        self._shards = Counter("anabranch_shards", "Finished shards.", ("what",))

    @ray.method(concurrency_group="watch")  # type: ignore[untyped-decorator]
    def moved_bytes(self) -> int:
        """Bytes looked at and written for the shard in work; answered while it is being made."""
        usage = self._meter.usage
        return usage["fold"].bytes + usage["write"].bytes

    def ready(self) -> bool:
        """The first sign of life."""
        return True

    def merge(self, shard: Shard, surveys: Sequence[Survey | None]) -> Done | Failed:
        """Write one shard of its members and publish the receipts, but for those that a twin published already."""
        meter = self._meter = Meter()
        receipts: dict[int, Receipt] = {}

        def work() -> None:
            found = {member: self._outputs[member].receipt(shard.index) for member in shard.members}
            receipts.update({member: receipt for member, receipt in found.items() if receipt is not None})
            missing = tuple(member for member in shard.members if member not in receipts)
            if not missing:
                return
            options = self._options
            worker = ShardWorker(self._group, self._stores, self._outputs, options.memory, self._kernels, meter)
            worker.merge([Shard(shard.index, missing)], surveys, receipts.__setitem__)

        return self._answer(work, meter, "merge", lambda: receipts)

    def survey(self, shard: int, round_: Round, members: Sequence[int]) -> Done | Failed:
        """Publish the statistics of one shard for members whose statistics are the same."""
        meter = self._meter = Meter()

        def work() -> None:
            options, plan = self._options, self._group.plans[members[0]]
            stores = [self._stores[place] for place in self._group.places[members[0]]]
            worker = SurveyWorker(plan, stores, options.memory, self._kernels, meter)

            def publish(parts: Sequence[SurveyPart]) -> None:
                for member in members:
                    self._outputs[member].publish_survey_parts(round_, parts)

            worker.survey([shard], round_, publish)

        return self._answer(work, meter, "survey", lambda: True)

    def _answer(self, work: Any, meter: Meter, what: str, receipts: Any) -> Done | Failed:
        try:
            work()
        except AnabranchError as error:
            return Failed(error)
        except MemoryError:
            return Failed(ResourceError("a worker ran out of memory", "give more with --memory"))
        usage = {phase: (u.seconds, u.bytes, u.calls) for phase, u in meter.usage.items()}
        self._report(usage, what)
        return Done(receipts(), usage)

    def _report(self, usage: Usage, what: str) -> None:
        for phase, (seconds, size, _) in usage.items():
            if size:
                self._bytes.inc(size, {"phase": phase})
            if seconds > 0:
                self._seconds.inc(seconds, {"phase": phase})
        self._shards.inc(1, {"what": what})


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
