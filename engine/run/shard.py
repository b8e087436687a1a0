"""One output shard: its tensors through the pipeline, hashed and written behind in order; returns a receipt."""

from __future__ import annotations

import hashlib
import uuid
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import AnabranchError
from ..fold import Target, TensorFold, TensorState, fold_of_tensor, set_thresholds
from ..kernels import Kernels
from ..output import PLAN_ATTRIBUTE, OutputDirectory
from ..plan import (
    Plan,
    Receipt,
    SharedReading,
    Survey,
    TensorRow,
    TensorTask,
    grain,
    joint_window_elements,
)
from ..storage import Store, Writer
from .memory import MemoryPlan
from .meter import Meter
from .pipeline import Pipeline
from .taken import input_ranges
from .tensor_job import PassGroup, TensorJob

SMALL_BYTES = 4 << 10
GATHERED_BYTES = 64 << 10
"""Windows of up to SMALL_BYTES are written when there are so many bytes of them."""


class ShardSink:
    """The file of one shard while it is written: header first, then every window, hashing as it goes."""

    def __init__(self, plan: Plan, index: int, store: Store, run_id: str, meter: Meter) -> None:
        self.index = index
        self._plan = plan
        self._shard = plan.shards[index]
        self._meter = meter
        self._digest = hashlib.sha256()
        self._written = 0
        self._small = bytearray()
        """What waits to be written with what comes next, so that many tiny tensors are one write."""
        self.rows: dict[str, TensorRow] = {}
        self._writer: Writer = store.writer(self._shard.name, self._shard.size, {PLAN_ATTRIBUTE: plan.plan_id}, run_id)
        try:
            self.write(np.frombuffer(self._shard.header, np.uint8))
        except BaseException:
            self.discard()
            raise

    def write(self, data: NDArray[np.uint8]) -> None:
        if len(data) <= SMALL_BYTES:
            self._small += data.data
            if len(self._small) < GATHERED_BYTES:
                return
            self._settle()
        else:
            self._settle()
            self._put(data.data)

    def _settle(self) -> None:
        small, self._small = self._small, bytearray()
        if small:
            self._put(memoryview(small))

    def _put(self, data: memoryview) -> None:
        with self._meter.measure("hash", len(data)):
            self._digest.update(data)
        with self._meter.measure("write", len(data)):
            self._writer.write(data)
        self._written += len(data)

    def commit(self) -> Receipt:
        """Make the shard visible and durable; the receipt is the caller's to publish."""
        self._settle()
        assert self._written == self._shard.size, "every tensor of the plan has been written"
        self._writer.commit()
        return Receipt(
            plan_id=self._plan.plan_id,
            shard=self.index,
            name=self._shard.name,
            size=self._written,
            sha256=self._digest.hexdigest(),
            tensors=tuple(self.rows[self._plan.tasks[i].name] for i in self._shard.tasks),
        )

    def discard(self) -> None:
        """Remove what was written. What led here is what a user must hear of, so a failure leaves the file to `gc`."""
        with suppress(AnabranchError):
            self._writer.discard()


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of every output that still lacks it."""

    index: int
    """Its position in the plans' shards."""
    members: tuple[int, ...]
    """Which plans of the group need it."""


class ShardWorker:
    """Merges shards in one process.

    Args:
        group: the plans.
        stores: one store per source of the group.
        outputs: where each plan's shards are written, and their receipts kept.
        memory: the worker's share of memory.
        kernels: where the arithmetic runs.
        meter: gets seconds and bytes.
    """

    def __init__(
        self,
        group: SharedReading,
        stores: Sequence[Store],
        outputs: Sequence[OutputDirectory],
        memory: MemoryPlan,
        kernels: Kernels,
        meter: Meter,
    ) -> None:
        self._group = group
        self._outputs = outputs
        self._memory = memory
        self._kernels = kernels
        self._meter = meter
        self.pipeline = Pipeline(group.sources, stores, memory, kernels, meter)
        self.places = group.places[0]
        """Where the sources of the first plan are among the pipeline's."""
        self.run_id = uuid.uuid4().hex[:12]
        """Distinguishes this process's temporary files from another's."""

    def merge(
        self,
        shards: Sequence[Shard],
        surveys: Sequence[Survey | None],
        done: Callable[[int, Receipt], None],
    ) -> None:
        """Merge the given shards, one after the other but without a gap: while one is made durable the next is folded.

        Args:
            shards: which, and of which plans.
            surveys: per plan, densities and thresholds that depend on whole models, where it asks for them.
            done: called with the plan's place in the group and the receipt once a shard is durable and has its receipt.

        Raises:
            InputError, ResourceError, TemporaryError: nothing of the failing shard is left behind, in no output.
        """
        run = _Merge(self._group, self._outputs, self._meter, self.run_id, done)
        try:
            self.pipeline.run(self._jobs(shards, surveys, run), run.emit, run.job_done)
            run.finish()
        except BaseException:
            run.discard()
            raise

    def _jobs(self, shards: Sequence[Shard], surveys: Sequence[Survey | None], run: _Merge) -> Iterator[TensorJob]:
        for shard in shards:
            for position in self._group.plans[0].shards[shard.index].tasks:
                folds = self._folds(position, shard.members, surveys)
                parts = [PassGroup(fold.state, fold.passes, places) for fold, places in folds]
                job = TensorJob(parts, noted=True)
                run.expect(_Expected(job, [fold for fold, _ in folds], shard))
                yield job

    def fold(self, position: int, survey: Survey | None) -> TensorFold:
        """What is done to the tensor at that position, for the only plan of a group."""
        ((fold, _),) = self._folds(position, (0,), (survey,))
        return fold

    def _folds(
        self, position: int, members: Sequence[int], surveys: Sequence[Survey | None]
    ) -> list[tuple[TensorFold, tuple[int, ...]]]:
        """What is done to the tensor at that position: once for all plans that select alike, with their sources."""
        tasks = {member: with_survey(self._group.plans[member].tasks[position], surveys[member]) for member in members}
        alike: dict[Hashable, list[int]] = {}
        for member, task in tasks.items():
            key = self._selection(member, task, surveys[member]) if len(tasks) > 1 else member
            alike.setdefault(key, []).append(member)
        elements = joint_window_elements(
            self._memory.slab_bytes,
            max(task.widest_bytes for task in tasks.values()),
            [grain(task) for task in tasks.values()],
        )
        folds = []
        for first, *others in alike.values():
            targets = [self._target(member, tasks[member]) for member in (first, *others)]
            state = TensorState(tasks[first], self._group.plans[first], self._kernels, elements, targets)
            survey = surveys[first]
            if survey is not None:
                set_thresholds(state, survey.thresholds)
            folds.append((fold_of_tensor(state), self._group.places[first]))
        return folds

    def _selection(self, member: int, task: TensorTask, survey: Survey | None) -> Hashable:
        """Equal for plans whose masks and statistics of this tensor are the same, whatever they make of them."""
        plan, method = self._group.plans[member], task.method
        if method is None or method.selecting is None:
            return member
        thresholds = survey.thresholds if survey is not None else None
        chosen = (method.selecting, thresholds, plan.terms.seed, plan.terms.keep_base_where_nonfinite)
        return chosen, task.orders, self._group.places[member], task.origins, task.sources

    def _target(self, member: int, task: TensorTask) -> Target:
        label = f"{self._outputs[member].store.url}: " if len(self._outputs) > 1 else ""
        return Target(task, self._group.plans[member].terms.saturate, member, label)


def with_survey(task: TensorTask, survey: Survey | None) -> TensorTask:
    """The task with the densities that a survey of whole models decided."""
    densities = survey.densities.get(task.name) if survey is not None else None
    if densities is None or task.method is None:
        return task
    return replace(task, method=task.method.with_densities(densities))


@dataclass(frozen=True, slots=True)
class _Expected:
    """A tensor on its way through the pipeline."""

    job: TensorJob
    folds: Sequence[TensorFold]
    shard: Shard


class _Merge:
    """The shards of one `merge` call: which window belongs where, and what is being made durable."""

    def __init__(
        self,
        group: SharedReading,
        outputs: Sequence[OutputDirectory],
        meter: Meter,
        run_id: str,
        done: Callable[[int, Receipt], None],
    ) -> None:
        self._group = group
        self._outputs = outputs
        self._meter = meter
        self._run_id = run_id
        self._done = done
        self._expected: deque[_Expected] = deque()
        self._sinks: dict[int, ShardSink] = {}
        """Per plan, the file that is being written."""
        self._publisher = ThreadPoolExecutor(1, "publish")
        self._publishing: list[Future[None]] = []

    def expect(self, expected: _Expected) -> None:
        self._expected.append(expected)

    def emit(self, target: Target, data: NDArray[np.uint8]) -> None:
        self._open(target.member).write(data)

    def _open(self, member: int) -> ShardSink:
        if member not in self._sinks:
            plan, shard = self._group.plans[member], self._expected[0].shard
            self._sinks[member] = ShardSink(plan, shard.index, self._outputs[member].store, self._run_id, self._meter)
        return self._sinks[member]

    def job_done(self, job: TensorJob) -> None:
        expected = self._expected[0]
        assert expected.job is job, "tensors come in the order of the plan"
        stretches = [taken.stretches() for taken in job.taken]
        for fold, part in zip(expected.folds, job.parts, strict=True):
            read = [stretch for pick in part.picks if pick is not None for stretch in stretches[pick]]
            for target in fold.state.targets:
                inputs = tuple(sorted(input_ranges(self._group.plans[target.member], read)))
                row = fold.row(target).model_copy(update={"inputs": inputs})
                self._open(target.member).rows[target.task.name] = row
        self._expected.popleft()
        shard = expected.shard
        if len(self._sinks[shard.members[0]].rows) == len(self._group.plans[0].shards[shard.index].tasks):
            self._settle()
            sinks, self._sinks = self._sinks, {}
            self._publishing = [self._publisher.submit(self._commit, *each) for each in sinks.items()]

    def _commit(self, member: int, sink: ShardSink) -> None:
        try:
            with self._meter.measure("publish"):
                receipt = self._make_durable(self._outputs[member], sink)
                self._done(member, receipt)
        except BaseException:
            sink.discard()
            raise

    def _make_durable(self, output: OutputDirectory, sink: ShardSink) -> Receipt:
        try:
            receipt = sink.commit()
        except FileNotFoundError:
            # A twin finished the whole output and cleaned up; its bytes are ours, as both follow from the plan.
            twin = output.receipt(sink.index)
            if twin is None:
                raise
            return twin
        output.publish_receipt(receipt)
        return receipt

    def _settle(self) -> None:
        """Wait for the shard that is being made durable; one at a time bounds what a failure can cost."""
        for future in self._publishing:
            future.result()
        self._publishing = []

    def finish(self) -> None:
        self._settle()
        self._publisher.shutdown()

    def discard(self) -> None:
        """Remove the unfinished shard; one that is already being made durable is allowed to finish."""
        self._publisher.shutdown(wait=True)
        for sink in self._sinks.values():
            sink.discard()
