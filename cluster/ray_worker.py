"""The actor: merges or surveys one shard at a time and answers with a receipt, never with weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.metrics import Counter

from ..engine.commit import Output
from ..engine.errors import AnabranchError, ResourceError
from ..engine.kernels import Kernels
from ..engine.manifest import Receipt
from ..engine.memory import MemoryPlan
from ..engine.meter import Meter, Phase
from ..engine.plan import Plan
from ..engine.shard import ShardWorker
from ..engine.storage import open_store
from ..engine.survey import Round, Survey, SurveyWorker

Usage = Mapping[Phase, tuple[float, int, int]]
"""Seconds, bytes and calls per phase."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker needs besides the plan. Holds no secret: credentials come from each node's own environment."""

    output_url: str
    memory: MemoryPlan
    device: str
    remote: bool
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

    receipt: Receipt | bool
    """True for a part of a survey, which the output holds."""
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """An error that a user can understand; others reach the driver as Ray's own."""

    error: AnabranchError


class MergeWorker:
    """State of one actor: opened inputs and output.

    Args:
        plan: the plan.
        options: where to write, and how much memory to use.
    """

    def __init__(self, plan: Plan, options: WorkerOptions) -> None:
        self._plan = plan
        self._options = options
        self._sources = [open_store(checkpoint.url) for checkpoint in plan.sources]
        self._output = Output(plan, open_store(options.output_url))
        self._kernels = _kernels(options.device)
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

    def merge(self, shard: int, survey: Survey | None) -> Done | Failed:
        """Write one shard and publish its receipt, unless a twin did so already."""
        meter = self._meter = Meter()
        receipts: list[Receipt] = []

        def work() -> None:
            found = self._output.receipt(shard)
            if found is not None:
                receipts.append(found)
                return
            options = self._options
            worker = ShardWorker(
                self._plan, self._sources, self._output.store, options.memory, self._kernels, meter, options.remote
            )
            worker.merge([shard], survey, self._output, receipts.append)

        return self._answer(work, meter, "merge", lambda: receipts[0])

    def survey(self, shard: int, round_: Round) -> Done | Failed:
        """Publish the statistics of one shard."""
        meter = self._meter = Meter()

        def work() -> None:
            options = self._options
            worker = SurveyWorker(self._plan, self._sources, options.memory, self._kernels, meter, options.remote)
            worker.survey([shard], round_, lambda parts: self._output.publish_survey_parts(round_, parts))

        return self._answer(work, meter, "survey", lambda: True)

    def _answer(self, work: Any, meter: Meter, what: str, receipt: Any) -> Done | Failed:
        try:
            work()
        except AnabranchError as error:
            return Failed(error)
        except MemoryError:
            return Failed(ResourceError("a worker ran out of memory", "give more with --memory"))
        usage = {phase: (u.seconds, u.bytes, u.calls) for phase, u in meter.usage.items()}
        self._report(usage, what)
        return Done(receipt(), usage)

    def _report(self, usage: Usage, what: str) -> None:
        for phase, (seconds, size, _) in usage.items():
            if size:
                self._bytes.inc(size, {"phase": phase})
            if seconds > 0:
                self._seconds.inc(seconds, {"phase": phase})
        self._shards.inc(1, {"what": what})


def _kernels(device: str) -> Kernels:
    if device == "cuda":
        from ..engine.kernels.reference import TorchKernels

        return TorchKernels("cuda")
    from ..engine.kernels.cpu import CpuKernels

    return CpuKernels()


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
