"""What the commands do, without a command line: open, check, run. `import anabranch` offers the same functions."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..engine.commit import Output
from ..engine.errors import RecipeError, ResourceError
from ..engine.inputs import Inputs, open_inputs
from ..engine.kernels import Kernels
from ..engine.manifest import SurveyPart
from ..engine.memory import MemoryPlan, Surroundings, plan_memory
from ..engine.meter import Meter
from ..engine.recipe import load_recipe
from ..engine.storage import open_store
from ..engine.survey import Round, SurveyWorker
from ..engine.verify import Verification
from ..engine.verify import verify as verify_store
from .machine import available_cores, peak_rss_bytes
from .merge_report import MergeReport
from .plan_report import PlanReport
from .progress import Silent
from .runner import LocalRunner, Member, Progress, Runner, run, surroundings
from .survey_report import SurveyReport, make_survey_report
from .surveys import survey_bytes

DEFAULT_MEMORY_BYTES = 2 << 30
TABLES_BYTES_PER_TENSOR = 1000
"""Room for receipts, tables, index and manifest, generously."""


@dataclass(frozen=True, slots=True)
class Execution:
    """How a merge is carried out; changes no byte of its output."""

    workers: int | None = None
    """Fold threads, or actors on a cluster; None: as many as the machine or the cluster has room for."""
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    """Limit of one worker process."""
    device: Literal["cpu", "cuda"] = "cpu"
    ray: str = ""
    """'' (this process), 'local', 'auto', or the address of a cluster."""
    insecure_cluster: bool = False
    """Use a cluster that asks nobody for a token."""

    @property
    def threads(self) -> int:
        """Fold threads of one process."""
        return 1 if self.ray else self.workers or available_cores()


@dataclass(frozen=True)
class Job:
    """A recipe with its inputs open and its output looked at; nothing has been written."""

    recipe: str
    out: str
    inputs: Inputs
    output: Output
    memory: MemoryPlan
    report: PlanReport


def prepare(recipe: str | Path, out: str | Path, execution: Execution) -> Job:
    """Open a recipe's inputs, make the plan, and look at what the output directory already has.

    Raises:
        RecipeError, InputError: what the plan refuses.
        OutputConflictError: the output belongs to another plan.
        ResourceError: the memory limit cannot hold the smallest worker.
    """
    path = Path(recipe)
    inputs = open_inputs(load_recipe(path), path.parent)
    output = Output(inputs.plan, open_store(os.fspath(out)))
    state = output.check()
    shards = range(len(inputs.plan.shards))
    finished = frozenset(shards if state == "finished" else output.receipts() if state == "started" else ())
    around = surroundings([Member(inputs, output)], ray=bool(execution.ray), cuda=execution.device == "cuda")
    memory = plan_memory(inputs.plan, execution.memory_bytes, execution.threads, around)
    to_write = sum(shard.size for i, shard in enumerate(inputs.plan.shards) if i not in finished)
    report = PlanReport(
        recipe=str(recipe),
        plan=inputs.plan,
        out=output.store.url,
        state=state,
        finished_shards=finished,
        memory=memory,
        is_remote=inputs.is_remote,
        disk_needed_bytes=0 if state == "finished" else to_write + TABLES_BYTES_PER_TENSOR * len(inputs.plan.tasks),
        disk_free_bytes=output.store.free_bytes(),
    )
    return Job(str(recipe), os.fspath(out), inputs, output, memory, report)


def check_disk(jobs: Sequence[Job]) -> None:
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


# -- the functions of `import anabranch` -----------------------------------------------------------------------------


def plan(
    recipe: str | Path, out: str | Path, *, memory_bytes: int = DEFAULT_MEMORY_BYTES, workers: int | None = None
) -> PlanReport:
    """What a merge would read, write and need; nothing is written.

    Raises:
        AnabranchError: what the merge would refuse.
    """
    job = prepare(recipe, out, Execution(workers, memory_bytes))
    check_disk([job])
    return job.report


def merge(
    recipe: str | Path,
    out: str | Path,
    execution: Execution | None = None,
    *,
    progress: Progress | None = None,
    meter: Meter | None = None,
) -> MergeReport:
    """Merge what a recipe names into a directory; a run that was interrupted goes on where it stopped.

    Raises:
        AnabranchError: what stopped the merge; the same call goes on from there.
    """
    execution = execution or Execution()
    job = prepare(recipe, out, execution)
    check_disk([job])
    return merge_job(job, execution, progress or Silent(), meter or Meter())


def merge_job(job: Job, execution: Execution, progress: Progress, meter: Meter) -> MergeReport:
    """Carry out a prepared merge whose disk space has been checked."""
    begin = time.perf_counter()
    output = Output(job.inputs.plan, open_store(job.out, create=True))
    members = [Member(job.inputs, output)]
    with open_runner(members, execution, meter, progress) as runner:
        [outcome] = run(members, runner, progress)
    return MergeReport(
        recipe=job.recipe,
        out=output.store.url,
        plan=job.inputs.plan,
        outcome=outcome,
        meter=meter,
        memory=job.memory,
        is_remote=job.inputs.is_remote,
        on_cluster=bool(execution.ray),
        wall_seconds=time.perf_counter() - begin,
        peak_rss_bytes=peak_rss_bytes(),
    )


def survey(
    recipe: str | Path,
    *,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    workers: int | None = None,
    progress: Progress | None = None,
    meter: Meter | None = None,
) -> SurveyReport:
    """Take the statistics of every task vector of a recipe; needs no output directory.

    Raises:
        RecipeError: the recipe's method has no task vectors.
        AnabranchError: what a merge of the recipe would refuse.
    """
    path = Path(recipe)
    inputs = open_inputs(load_recipe(path), path.parent)
    made = inputs.plan
    shards = [i for i, shard in enumerate(made.shards) if any(made.tasks[j].has_task_vectors for j in shard.tasks)]
    if not shards:
        raise RecipeError(f"{recipe}: {made.recipe.merge_method} merges no task vectors, so there is nothing to survey")
    execution = Execution(workers, memory_bytes)
    around = Surroundings(remote_inputs=inputs.is_remote, quantiles=True)
    memory = plan_memory(made, memory_bytes, execution.threads, around)
    meter, progress = meter or Meter(), progress or Silent()
    worker = SurveyWorker(made, inputs.stores, memory, make_kernels("cpu"), meter)
    total = sum(survey_bytes(made, shard, Round("quantiles")) for shard in shards)
    progress.phase("survey", total, 0)
    parts: list[SurveyPart] = []

    def keep(found: Sequence[SurveyPart]) -> None:
        parts.extend(found)
        progress.shard_done(found[0].shard)

    worker.survey(shards, Round("quantiles"), keep)
    return make_survey_report(made, parts)


def verify(out: str | Path, *, workers: int | None = None) -> Verification:
    """Read every byte of a finished output again and compare it with the manifest.

    Raises:
        IntegrityError: the output is not finished. What is damaged is in the result.
    """
    return verify_store(open_store(os.fspath(out)), workers or available_cores())


@contextmanager
def open_runner(members: Sequence[Member], execution: Execution, meter: Meter, progress: Progress) -> Iterator[Runner]:
    """Where the work is done: this process, or a Ray cluster."""
    if not execution.ray:
        kernels = make_kernels(execution.device)
        yield LocalRunner(members, execution.threads, execution.memory_bytes, kernels, meter)
        return
    from .ray_session import ray_session

    with ray_session(execution.ray, execution.insecure_cluster):
        from .ray_runner import RayRunner

        yield RayRunner(members, execution.workers, execution.memory_bytes, execution.device, meter, progress.note)


def make_kernels(device: str) -> Kernels:
    """The arithmetic of a device.

    Raises:
        ResourceError: no CUDA device is usable here.
    """
    if device == "cpu":
        from ..engine.kernels.cpu import CpuKernels

        return CpuKernels()
    import torch

    from ..engine.kernels.reference import TorchKernels

    if not torch.cuda.is_available():
        raise ResourceError(
            "--device cuda: torch finds no usable CUDA device",
            "run on a machine with one and with torch's CUDA build, or without --device; the result is the same",
        )
    return TorchKernels("cuda")


def outputs_of(recipes: Sequence[str], out: str) -> list[str]:
    """Where each recipe's merge goes: OUT itself, or OUT/<the recipe file's name> where there are several.

    Raises:
        RecipeError: two recipe files have the same name.
    """
    if len(recipes) == 1:
        return [out]
    stems = [Path(recipe).stem for recipe in recipes]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise RecipeError(
            f"several recipes are called {twice[0]!r}, so their outputs would have the same name", "rename one of them"
        )
    return [f"{out.rstrip('/')}/{stem}" for stem in stems]
