"""What `import anabranch` offers: plan, merge, survey and verify whole recipes. The command line calls the same."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..errors import RecipeError
from ..kernels import Kernels, announce_compiling, make_kernels
from ..models import Opened, Room
from ..output import MANIFEST_NAME, OutputDirectory, Verification, open_outputs, verify_inputs, verify_outputs
from ..plan import Round, SurveyPart, open_inputs
from ..recipe import load_recipe
from ..storage import client_bytes, open_output
from .compare import Comparison, open_side
from .comparison_report import ComparisonReport
from .execution import DEFAULT_MEMORY_BYTES, Execution
from .folded_bytes import round_bytes
from .local import LocalRunner
from .machine import available_cores, peak_rss_bytes
from .memory import MemoryPlan, Surroundings, plan_memory
from .merge_report import MergeReport
from .meter import Meter
from .plan_report import PlanReport
from .prepare import PreparedMerge, ReadingGroup, check_disk, outputs_of, prepare, prepare_all, share_readings
from .protocols import Member, Progress, Runner, Silent
from .runner import run
from .stages import Stages
from .survey_report import SurveyReport, make_survey_report
from .survey_worker import SurveyWorker

COMPILING = "compiling kernels for this processor: some seconds, once"


def plan(
    recipe: str | Path, out: str | Path, *, memory_bytes: int = DEFAULT_MEMORY_BYTES, workers: int | None = None
) -> PlanReport:
    """What a merge would read, write and need; nothing is written.

    Of EMR-Merging it is the report of the unified task vector, with those of the tasks in its `parts`.

    Raises:
        AnabranchError: what the merge would refuse.
    """
    jobs = prepare(recipe, out, Execution(workers, memory_bytes))
    check_disk(jobs)
    return replace(jobs[0].report, parts=tuple(job.report for job in jobs[1:]))


def merge(
    recipe: str | Path,
    out: str | Path,
    execution: Execution | None = None,
    *,
    progress: Progress | None = None,
    meter: Meter | None = None,
) -> MergeReport:
    """Merge what a recipe names into a directory; a run that was interrupted goes on where it stopped.

    EMR-Merging writes several outputs, OUT/unified and OUT/<task>: the report is that of the unified task vector, with
    those of the tasks in its `parts`.

    Raises:
        AnabranchError: what stopped the merge; the same call goes on from there.
    """
    execution = execution or Execution()
    first, *parts = merge_jobs(prepare(recipe, out, execution), execution, progress, meter)
    return replace(first, parts=tuple(parts))


def merge_all(
    recipes: Sequence[str | Path],
    out: str | Path,
    execution: Execution | None = None,
    *,
    progress: Progress | None = None,
    meter: Meter | None = None,
) -> list[MergeReport]:
    """Merge several recipes, each into OUT/<name of its file> and with the bytes of a merge of its own.

    Recipes whose outputs are laid out alike share one reading of their inputs (see `share_readings`); masks that are
    the same for several of them are computed once. Readings are carried out one after the other.

    Returns:
        One report per output, in the order of the recipes.

    Raises:
        AnabranchError: what stopped one of the merges and with it all; the same call goes on from there.
    """
    execution = execution or Execution()
    return merge_jobs(prepare_all(recipes, outputs_of(recipes, out), execution), execution, progress, meter)


def merge_jobs(
    jobs: Sequence[PreparedMerge], execution: Execution, progress: Progress | None, meter: Meter | None
) -> list[MergeReport]:
    """Carry out prepared merges, those together that can share a reading; one report per job."""
    check_disk(jobs)
    reports: dict[str, MergeReport] = {}
    for reading in share_readings(jobs, execution):
        found = merge_reading(reading, execution, progress or Silent(), meter or Meter())
        reports |= {job.out: report for job, report in zip(reading.jobs, found, strict=True)}
    return [reports[job.out] for job in jobs]


def merge_reading(
    reading: ReadingGroup, execution: Execution, progress: Progress, meter: Meter, began: float | None = None
) -> list[MergeReport]:
    """Carry out prepared merges that share a reading, and whose disk space has been checked.

    `began` is when the time of the merge starts to count, on the clock of `time.perf_counter`; None: now.
    """
    begin = time.perf_counter() if began is None else began
    stages = Stages(progress, meter, begin)
    members = [
        Member(
            job.inputs,
            OutputDirectory(job.inputs.plan, open_output(job.out, MANIFEST_NAME, create=True), progress.note),
        )
        for job in reading.jobs
    ]
    with open_runner(members, reading.memory, execution, meter, progress) as runner:
        outcomes = run(members, runner, stages, meter, execution.trust_sizes)
    stages.finish()
    seconds, peak = time.perf_counter() - begin, peak_rss_bytes()
    return [
        MergeReport(
            recipe=job.recipe,
            out=member.output.store.url,
            plan=job.inputs.plan,
            outcome=outcome,
            meter=meter,
            memory=reading.memory,
            on_cluster=execution.place is not None,
            wall_seconds=seconds,
            peak_rss_bytes=peak,
            beside=tuple(other.recipe for other in reading.jobs if other is not job),
        )
        for job, member, outcome in zip(reading.jobs, members, outcomes, strict=True)
    ]


def survey(
    recipe: str | Path,
    *,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    workers: int | None = None,
    progress: Progress | None = None,
    meter: Meter | None = None,
    octaves: bool = False,
) -> SurveyReport:
    """Take the statistics of every task vector of a recipe; needs no output directory.

    With `octaves` the elements of each model are counted by the exponents of their magnitudes, too.

    Raises:
        RecipeError: the recipe's method has no task vectors.
        AnabranchError: what a merge of the recipe would refuse.
    """
    path = Path(recipe)
    inputs = open_inputs(load_recipe(path), path.parent, Opened(room=Room(memory_bytes)))
    made = inputs.plan
    shards = [i for i, shard in enumerate(made.shards) if any(made.tasks[j].has_task_vectors for j in shard.tasks)]
    if not shards:
        raise RecipeError(f"{recipe}: {made.terms.method} merges no task vectors, so there is nothing to survey")
    execution = Execution(workers, memory_bytes)
    client = client_bytes(store.url for store in inputs.stores)
    around = Surroundings(remote_inputs=inputs.is_remote, client_bytes=client, quantiles=True)
    memory = plan_memory(made, memory_bytes, execution.threads, around)
    meter, progress = meter or Meter(), progress or Silent()
    total = sum(round_bytes(made, shard, "quantiles") for shard in shards)
    progress.phase("survey", total, 0)
    parts: list[SurveyPart] = []
    counted: list[Counter[int]] | None = [Counter() for _ in made.models] if octaves else None
    with told_kernels("cpu", progress) as kernels:
        worker = SurveyWorker(made, inputs.stores, memory, kernels, meter, counted)
        for shard in shards:
            parts += worker.survey(shard, Round("quantiles"))
            progress.shard_done(shard)
    return make_survey_report(made, parts, counted or ())


def verify(
    out: str | Path, *, inputs: bool = False, memory_bytes: int = DEFAULT_MEMORY_BYTES, workers: int | None = None
) -> Verification:
    """Read every byte of a finished output, or of all parts in its folders, again and compare it with the manifest.

    Args:
        out: the output.
        inputs: also read its inputs again, and compare them with what the merge read of them.
        memory_bytes: bounds headers of inputs.
        workers: files that are read at the same time; None: all cores.

    Raises:
        IntegrityError: the output is not finished. What is damaged is in the result.
    """
    outputs, threads = open_outputs(out), workers or available_cores()
    found = verify_outputs(outputs, threads)
    if inputs and not found.problems:
        found = replace(found, problems=verify_inputs(outputs, threads, memory_bytes=memory_bytes).problems)
    return found


def compare(
    first: str | Path, second: str | Path, *, memory_bytes: int = DEFAULT_MEMORY_BYTES, workers: int | None = None
) -> ComparisonReport:
    """Which tensors of two checkpoints differ and by how much; of two outputs also how they came about.

    Raises:
        AnabranchError: one of them cannot be read.
    """
    room = Room(memory_bytes)
    sides = open_side(os.fspath(first), room), open_side(os.fspath(second), room)
    comparison = Comparison(*sides, memory_bytes, workers)
    return comparison.run(make_kernels("cpu"))


@contextmanager
def open_runner(
    members: Sequence[Member], memory: MemoryPlan, execution: Execution, meter: Meter, progress: Progress
) -> Iterator[Runner]:
    """Where the work is done: in this process, or where the execution says."""
    if execution.place is not None:
        with execution.place.open(members, memory, execution, meter, progress.note) as runner:
            yield runner
        return
    with told_kernels(execution.device, progress) as kernels:
        yield LocalRunner(members, memory, kernels, meter)


@contextmanager
def told_kernels(device: str, progress: Progress) -> Iterator[Kernels]:
    """The arithmetic of a device, and a note when it has to be compiled first: a merge stands still meanwhile."""
    kernels = make_kernels(device)
    with announce_compiling(lambda: progress.note(COMPILING)):
        yield kernels
