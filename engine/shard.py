"""One output shard: its tensors through the pipeline, hashed and written behind in order; returns a receipt."""

from __future__ import annotations

import hashlib
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .fold import TensorFold
from .kernels import Kernels
from .manifest import PLAN_ATTRIBUTE, Receipt, TensorRow
from .memory import MemoryPlan
from .meter import Meter
from .pipeline import Job, Pipeline
from .plan import Plan
from .storage import Store, Writer
from .survey import Survey
from .task import TensorTask
from .tensor import TensorState


class Ledger(Protocol):
    """Where receipts are kept."""

    def publish_receipt(self, receipt: Receipt) -> None:
        """Record that a shard is durable."""

    def receipt(self, shard: int) -> Receipt | None:
        """The receipt of a shard that is there with its right size, else None."""


class ShardSink:
    """The file of one shard while it is written: header first, then every window, hashing as it goes."""

    def __init__(self, plan: Plan, index: int, store: Store, run_id: str, meter: Meter) -> None:
        self.index = index
        self._plan = plan
        self._shard = plan.shards[index]
        self._meter = meter
        self._digest = hashlib.sha256()
        self._written = 0
        self.rows: dict[str, TensorRow] = {}
        self._writer: Writer = store.writer(self._shard.name, self._shard.size, {PLAN_ATTRIBUTE: plan.plan_id}, run_id)
        try:
            self.write(np.frombuffer(self._shard.header, np.uint8))
        except BaseException:
            self.discard()
            raise

    def write(self, data: NDArray[np.uint8]) -> None:
        with self._meter.measure("hash", len(data)):
            self._digest.update(data.data)
        with self._meter.measure("write", len(data)):
            self._writer.write(data.data)
        self._written += len(data)

    def commit(self) -> Receipt:
        """Make the shard visible and durable; the receipt is the caller's to publish."""
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
        self._writer.discard()


class ShardWorker:
    """Merges shards in one process.

    Args:
        plan: the plan.
        sources: one store per source of the plan.
        output: where shards are written.
        memory: the worker's share of memory.
        kernels: where the arithmetic runs.
        meter: gets seconds and bytes.
        run_id: distinguishes this process's temporary files from another's.
    """

    def __init__(
        self,
        plan: Plan,
        sources: Sequence[Store],
        output: Store,
        memory: MemoryPlan,
        kernels: Kernels,
        meter: Meter,
        remote: bool = False,
    ) -> None:
        self._plan = plan
        self._output = output
        self._memory = memory
        self._kernels = kernels
        self._meter = meter
        self._pipeline = Pipeline(plan, sources, memory, kernels, meter, remote)
        self.run_id = uuid.uuid4().hex[:12]

    def merge(
        self, shards: Sequence[int], survey: Survey | None, ledger: Ledger, done: Callable[[Receipt], None]
    ) -> None:
        """Merge the given shards, one after the other but without a gap: while one is made durable the next is folded.

        Args:
            shards: positions in `plan.shards`.
            survey: densities and thresholds that depend on whole models, where the plan asks for them.
            ledger: gets each shard's receipt once the shard is durable.
            done: called after that.

        Raises:
            InputError, ResourceError, TemporaryError: nothing of the failing shard is left behind.
        """
        run = _Merge(self._plan, self._output, self._meter, self.run_id, ledger, done)
        try:
            self._pipeline.run(self._jobs(shards, survey, run), run.emit, run.job_done)
            run.finish()
        except BaseException:
            run.discard()
            raise

    def _jobs(self, shards: Sequence[int], survey: Survey | None, run: _Merge) -> Iterator[Job]:
        for index in shards:
            for position in self._plan.shards[index].tasks:
                task = self._plan.tasks[position]
                state = TensorState(with_survey(task, survey), self._plan, self._kernels, self._memory.slab_bytes)
                if survey is not None:
                    survey.set_cuts(state)
                fold = TensorFold(state)
                job = Job(state, fold.passes, writes=True)
                run.expect(job, fold, index)
                yield job


def with_survey(task: TensorTask, survey: Survey | None) -> TensorTask:
    """The task with the densities that a survey of whole models decided."""
    densities = survey.densities.get(task.name) if survey is not None else None
    if densities is None or task.settings is None:
        return task
    return replace(task, settings=replace(task.settings, densities=densities))


class _Merge:
    """The shards of one `merge` call: which window belongs where, and what is being made durable."""

    def __init__(
        self,
        plan: Plan,
        output: Store,
        meter: Meter,
        run_id: str,
        ledger: Ledger,
        done: Callable[[Receipt], None],
    ) -> None:
        self._plan = plan
        self._output = output
        self._meter = meter
        self._run_id = run_id
        self._ledger = ledger
        self._done = done
        self._expected: deque[tuple[Job, TensorFold, int]] = deque()
        self._sink: ShardSink | None = None
        self._publisher = ThreadPoolExecutor(1, "publish")
        self._publishing: Future[None] | None = None

    def expect(self, job: Job, fold: TensorFold, shard: int) -> None:
        self._expected.append((job, fold, shard))

    def emit(self, job: Job, data: NDArray[np.uint8]) -> None:
        self._open(job).write(data)

    def _open(self, job: Job) -> ShardSink:
        expected, _, shard = self._expected[0]
        assert expected is job, "windows come in the order of the plan"
        if self._sink is None:
            self._sink = ShardSink(self._plan, shard, self._output, self._run_id, self._meter)
        return self._sink

    def job_done(self, job: Job) -> None:
        sink = self._open(job)
        _, fold, shard = self._expected.popleft()
        sink.rows[fold.state.task.name] = fold.row()
        if len(sink.rows) == len(self._plan.shards[shard].tasks):
            self._settle()
            self._sink = None
            self._publishing = self._publisher.submit(self._commit, sink)

    def _commit(self, sink: ShardSink) -> None:
        try:
            with self._meter.measure("publish"):
                self._done(self._make_durable(sink))
        except BaseException:
            sink.discard()
            raise

    def _make_durable(self, sink: ShardSink) -> Receipt:
        try:
            receipt = sink.commit()
        except FileNotFoundError:
            # A twin finished the whole output and cleaned up; its bytes are ours, as both follow from the plan.
            twin = self._ledger.receipt(sink.index)
            if twin is None:
                raise
            return twin
        self._ledger.publish_receipt(receipt)
        return receipt

    def _settle(self) -> None:
        """Wait for the shard that is being made durable; one at a time bounds what a failure can cost."""
        if self._publishing is not None:
            self._publishing.result()
            self._publishing = None

    def finish(self) -> None:
        self._settle()
        self._publisher.shutdown()

    def discard(self) -> None:
        """Remove the unfinished shard; one that is already being made durable is allowed to finish."""
        self._publisher.shutdown(wait=True)
        if self._sink is not None:
            self._sink.discard()
