"""Runs a plan to its manifest: surveys, shards, commit; a runner decides where the work is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..engine.commit import Output
from ..engine.demands import passes_over
from ..engine.inputs import Inputs
from ..engine.kernels import Kernels
from ..engine.manifest import Manifest, Receipt, SurveyPart
from ..engine.memory import QUANTILES_PASSES, Surroundings, crosses_network, plan_memory
from ..engine.meter import Meter
from ..engine.plan import Plan
from ..engine.shard import ShardWorker
from ..engine.survey import (
    Round,
    Survey,
    SurveyWorker,
    decide_densities,
    narrow_thresholds,
    threshold_searches,
)

Phase = Literal["survey", "merge", "commit"]


class Runner(Protocol):
    """Where shards are surveyed and merged."""

    def survey(self, shards: Sequence[int], round_: Round, done: Callable[[int], None]) -> None:
        """Publish the survey parts of each shard, then call `done` with it."""

    def merge(self, shards: Sequence[int], survey: Survey | None, done: Callable[[Receipt], None]) -> None:
        """Write each shard and publish its receipt, then call `done` with it."""


class Progress(Protocol):
    """Is told what happens; sizes are bytes of inputs looked at."""

    def phase(self, name: Phase, total_bytes: int, done_bytes: int) -> None: ...

    def shard_done(self, shard: int) -> None: ...

    def note(self, text: str) -> None:
        """Something happened that a user should know, such as the loss of a worker."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run did."""

    manifest: Manifest
    merged_shards: tuple[int, ...]
    """Shards that this run made."""
    resumed_shards: tuple[int, ...]
    """Shards that were already there."""
    already_complete: bool


def run(inputs: Inputs, output: Output, runner: Runner, progress: Progress) -> Outcome:
    """Bring an output directory to its manifest, whatever is already there.

    Raises:
        OutputConflictError: the directory belongs to another plan.
        InputError, ResourceError, TemporaryError: what stopped the run; the same command goes on from there.
    """
    finished = output.manifest()
    if finished is None:
        inputs.check_config()
        try:
            return _run(inputs, output, runner, progress)
        except FileNotFoundError:
            # A twin finished the same plan and removed our unfinished files: its bytes are ours.
            finished = output.manifest()
            if finished is None:
                raise
    output.clean(finished)
    return Outcome(finished, (), tuple(range(len(inputs.plan.shards))), already_complete=True)


def _run(inputs: Inputs, output: Output, runner: Runner, progress: Progress) -> Outcome:
    plan = inputs.plan
    output.open()
    survey = run_survey(plan, output, runner, progress)
    receipts = output.receipts()
    resumed = tuple(sorted(receipts))
    missing = [index for index in range(len(plan.shards)) if index not in receipts]
    progress.phase("merge", fold_bytes(plan, range(len(plan.shards))), fold_bytes(plan, resumed))

    def done(receipt: Receipt) -> None:
        receipts[receipt.shard] = receipt
        progress.shard_done(receipt.shard)

    if missing:
        runner.merge(missing, survey, done)
    progress.phase("commit", 0, 0)
    manifest = output.finish(receipts, survey, inputs.side_files())
    output.clean(manifest)
    return Outcome(manifest, tuple(missing), resumed, already_complete=False)


def fold_bytes(plan: Plan, shards: Sequence[int]) -> int:
    """Bytes of inputs that the passes over these shards look at."""
    passes: dict[tuple[int, bool], int] = {}  # most tensors share their settings
    total = 0
    for shard in shards:
        for i in plan.shards[shard].tasks:
            task = plan.tasks[i]
            kind = (id(task.settings), task.is_double)
            if kind not in passes:
                passes[kind] = passes_over(task.settings, task.is_double)
            total += task.read_bytes * passes[kind]
    return total


def survey_bytes(plan: Plan, shard: int, round_: Round) -> int:
    """Bytes of inputs that a round of the survey looks at in one shard."""
    passes = QUANTILES_PASSES if round_.kind == "quantiles" else 1
    tasks = (plan.tasks[i] for i in plan.shards[shard].tasks)
    return sum(passes * task.read_bytes for task in tasks if task.has_task_vectors)


def run_survey(plan: Plan, output: Output, runner: Runner, progress: Progress) -> Survey | None:
    """Take the statistics of whole models that the plan asks for; finished parts are not taken again."""
    if plan.survey_kind == "":
        return None
    if plan.survey_kind != "threshold":
        return decide_densities(plan, _round(plan, output, runner, progress, Round(plan.survey_kind)))
    searches = threshold_searches(plan)
    narrow_thresholds(plan, searches, _round(plan, output, runner, progress, Round("high")))
    low = Round("low", tuple(search.prefix for search in searches))
    narrow_thresholds(plan, searches, _round(plan, output, runner, progress, low))
    thresholds = tuple(search.prefix for search in searches)
    rows = tuple({"model": i, "threshold_key": key} for i, key in enumerate(thresholds))
    return Survey({}, thresholds, rows)


def _round(plan: Plan, output: Output, runner: Runner, progress: Progress, round_: Round) -> list[SurveyPart]:
    shards = range(len(plan.shards))
    missing = [shard for shard in shards if output.survey_parts(round_, shard) is None]
    sizes = {shard: survey_bytes(plan, shard, round_) for shard in shards}
    progress.phase("survey", sum(sizes.values()), sum(sizes[s] for s in shards if s not in set(missing)))
    if missing:
        runner.survey(missing, round_, progress.shard_done)
    parts: list[SurveyPart] = []
    for shard in shards:
        found = output.survey_parts(round_, shard)
        assert found is not None, "the runner published every part"
        parts += found
    return parts


def surroundings(inputs: Inputs, output: Output, ray: bool = False, cuda: bool = False) -> Surroundings:
    """What a worker of this merge holds in memory besides the merge itself."""
    return Surroundings(inputs.is_remote, crosses_network(output.store.url), ray, cuda)


class LocalRunner:
    """All work in this process.

    Args:
        inputs: plan and sources.
        output: where receipts and survey parts are published.
        threads: fold threads at most; the memory limit may hold fewer.
        limit_bytes: memory limit of this process.
        kernels: where the arithmetic runs.
        meter: gets seconds and bytes.
    """

    def __init__(
        self, inputs: Inputs, output: Output, threads: int, limit_bytes: int, kernels: Kernels, meter: Meter
    ) -> None:
        self._inputs = inputs
        self._output = output
        self._kernels = kernels
        self._meter = meter
        self.memory = plan_memory(inputs.plan, limit_bytes, threads, surroundings(inputs, output))

    def survey(self, shards: Sequence[int], round_: Round, done: Callable[[int], None]) -> None:
        def publish(parts: Sequence[SurveyPart]) -> None:
            self._output.publish_survey_parts(round_, parts)
            done(parts[0].shard)

        worker = SurveyWorker(
            self._inputs.plan,
            self._inputs.stores,
            self.memory,
            self._kernels,
            self._meter,
            self._inputs.is_remote,
        )
        worker.survey(shards, round_, publish)

    def merge(self, shards: Sequence[int], survey: Survey | None, done: Callable[[Receipt], None]) -> None:
        worker = ShardWorker(
            self._inputs.plan,
            self._inputs.stores,
            self._output.store,
            self.memory,
            self._kernels,
            self._meter,
            self._inputs.is_remote,
        )
        worker.merge(shards, survey, self._output, done)
