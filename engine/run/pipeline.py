"""Read ahead, fold, hand on in order: the threads of one process, bounded by its buffers."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ..fold import Real, Target, WindowData, Workspace
from ..kernels import Kernels
from ..models import DTYPES, Checkpoint, TensorLocation
from ..plan import Window
from ..storage import Store
from .awaited_thread import AwaitedThread
from .buffers import BufferPool, PoolClosed
from .memory import AHEAD, MemoryPlan, resident_slabs
from .meter import Meter
from .reader import HeldArrays, Scratch, SourceReader
from .tensor_job import PassGroup, TensorJob
from .tiny import Batch
from .work_queue import WorkQueue

Slab = NDArray[np.uint8]
STOP_POLL_SECONDS = 0.2
"""How often a thread that waits for another window looks whether the run is being stopped."""


@dataclass(slots=True)
class _Out:
    """A buffer for one window of one target, of which the first `size` bytes are written."""

    target: Target
    slab: Slab
    size: int


_Read = tuple[Slab | None, Future[None] | None]
"""A buffer and the read that fills it; nothing where the source has no bytes in the window."""


@dataclass(slots=True)
class _Turn:
    """One turn of one job: how many windows are still out, and whether its passes are finished."""

    job: TensorJob
    index: int
    needs: Sequence[int]
    """Which of the job's needs its windows have in memory."""
    picks: Sequence[Sequence[int | None]]
    """Per part of the turn and source of its tensor, where among these it is."""
    remaining: int
    done: threading.Event


@dataclass(slots=True)
class _Item:
    """One window in one turn."""

    turn: _Turn
    window: int
    reads: Sequence[_Read]
    """Per need of the turn."""
    keep: bool
    """Whether the buffers stay for the next turn."""
    outs: Sequence[_Out]
    """For everything that is written in this turn, in the order of the parts."""
    folded: Future[bool]
    """Whether the outs are filled."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Runs jobs with a fixed set of threads and buffers.

    Windows are read in order, folded by any thread, and handed to `emit` in order, so every output is one sequential
    stream whatever the number of threads.
    """

    sources: Sequence[Checkpoint]
    """Distinct inputs."""
    stores: Sequence[Store]
    """One per source."""
    memory: MemoryPlan
    """Threads, buffers and their size."""
    kernels: Kernels
    meter: Meter
    """Gets seconds and bytes of every phase."""

    def run(
        self,
        jobs: Iterable[TensorJob],
        emit: Callable[[Target, Slab], None] | None = None,
        done: Callable[[TensorJob], None] | None = None,
    ) -> None:
        """Run every job to its end.

        Args:
            jobs: made one by one, as buffers allow.
            emit: gets the output bytes of every target and window, for each target in order; called from one thread.
            done: called when a job's last window was emitted (or its last pass finished, for jobs that write nothing).

        Raises:
            Whatever a pass, a read or `emit` raised first; everything has stopped by then.
        """
        _Run(self, emit, done).run(jobs)


class _Run:
    """The state of one call of `Pipeline.run`."""

    def __init__(
        self,
        pipeline: Pipeline,
        emit: Callable[[Target, Slab], None] | None,
        done: Callable[[TensorJob], None] | None,
    ) -> None:
        memory, kernels, meter = pipeline.memory, pipeline.kernels, pipeline.meter
        held, scratch = HeldArrays(memory.held_bytes, memory.held_most_bytes), Scratch()
        self._sources: list[SourceReader] = []
        for index, (checkpoint, store) in enumerate(zip(pipeline.sources, pipeline.stores, strict=True)):
            reader = SourceReader(
                index,
                checkpoint,
                store,
                kernels=kernels,
                held=held,
                scratch=scratch,
                meter=meter,
                readers=self._sources,
            )
            self._sources.append(reader)
        self._memory = memory
        self._kernels = kernels
        self._meter = meter
        self._emit = emit
        self._done = done
        self._pool = BufferPool(memory.slab_bytes, memory.slabs, kernels.buffer)
        self._readers = ThreadPoolExecutor(memory.readers, "read")
        self._work: WorkQueue[_Item | Batch] = WorkQueue()
        self._ordered: queue.SimpleQueue[_Item | Batch | None] = queue.SimpleQueue()
        self._batch = Batch()
        """Tiny tensors that wait for others."""
        self._alive: list[TensorJob] = []
        self._failure: BaseException | None = None
        self._lock = threading.Lock()

    def run(self, jobs: Iterable[TensorJob]) -> None:
        folders = [AwaitedThread(self._fold_items, f"fold-{i}") for i in range(self._memory.threads)]
        threads = [*folders, AwaitedThread(self._emit_items, "emit")]
        for thread in threads:
            thread.start()
        try:
            for job in jobs:
                self._take(job)
            self._feed_batch()
        except PoolClosed:
            pass  # the failure that closed the pool is raised below
        except BaseException as error:  # noqa: BLE001 (raised by run)
            self._fail(error)
        try:
            self._work.close()
            self._ordered.put(None)
            for thread in threads:
                thread.ended.wait()
        except BaseException as error:  # noqa: BLE001 (raised by run)
            self._fail(error)
            for thread in threads:
                thread.ended.wait()
        finally:
            self._readers.shutdown(cancel_futures=True)
        if self._failure is not None:
            raise self._failure

    # -- feeding: the calling thread -----------------------------------------------------------------------------

    def _take(self, job: TensorJob) -> None:
        """Feed a job, or let it wait for others if it is tiny."""
        if self._batch.takes(job, self._pool.slab_bytes):
            return
        self._feed_batch()
        if not self._batch.takes(job, self._pool.slab_bytes):
            self._feed(job)

    def _feed_batch(self) -> None:
        batch, self._batch = self._batch, Batch()
        if not batch.jobs:
            return
        inputs = self._pool.acquire() if batch.inputs_bytes else None
        outputs = self._pool.acquire() if batch.outputs_bytes else None
        for run in batch.lay_out(inputs, outputs):
            assert inputs is not None, "there is something to read"
            read = self._sources[run.source].read_run
            batch.reads.append(self._readers.submit(read, run.file, run.tensors, inputs[run.begin : run.end]))
        self._work.put(batch)
        self._ordered.put(batch)

    def _feed(self, job: TensorJob) -> None:
        with self._lock:
            self._alive.append(job)
        needs = job.needs_in(0)
        reserve = (self._memory.threads + AHEAD) * (len(needs) + sum(len(p.state.targets) for p in job.parts))
        resident = job.turns > 1 and resident_slabs(len(needs), job.windows) + reserve <= self._pool.slabs
        kept: list[Sequence[_Read]] = []
        before: _Turn | None = None
        for index in range(job.turns):
            last = index == job.turns - 1
            idle = False
            if before is not None and not resident and job.optional(index):
                if not self._finished(before):
                    return
                idle = not any(part.needed(index) for part in job.in_turn(index))
                if idle and not last:
                    continue
            turn = self._start_turn(job, index, needs if resident else job.needs_in(index))
            for window in range(job.windows):
                reads = kept[window] if resident and index else [] if idle else self._start_reads(turn, window)
                if resident and index == 0:
                    kept.append(reads)
                outs = self._start_outs(job.written_in(index), window)
                item = _Item(turn, window, reads, resident and not last, outs, Future())
                self._work.put(item, before.done if before is not None else None)
                if outs or last:
                    self._ordered.put(item)
            before = turn

    @staticmethod
    def _start_turn(job: TensorJob, index: int, needs: Sequence[int]) -> _Turn:
        place = {need: number for number, need in enumerate(needs)}
        picks = [[None if pick is None else place[pick] for pick in part.picks] for part in job.in_turn(index)]
        return _Turn(job, index, needs, picks, job.windows, threading.Event())

    def _start_outs(self, written: Sequence[tuple[PassGroup, Target]], window: int) -> list[_Out]:
        outs = []
        for part, target in written:
            place = part.state.windows[window]
            size = target.task.out_bytes(place.own_end - place.own_begin)
            outs.append(_Out(target, self._pool.acquire(), size))
        return outs

    def _start_reads(self, turn: _Turn, window: int) -> list[_Read]:
        reads: list[_Read] = []
        for need in turn.needs:
            source, location = turn.job.needs[need]
            begin, end, size = _span(location, *turn.job.span(window))
            if size == 0:
                reads.append((None, None))
                continue
            slab = self._pool.acquire()
            fill = self._sources[source].fill
            reads.append((slab, self._readers.submit(fill, location, begin, end, slab[:size], turn.job.taken_of(need))))
        return reads

    # -- folding -------------------------------------------------------------------------------------------------

    def _fold_items(self) -> None:
        """One fold thread: takes windows in order until the end mark; after a failure it only drains them."""
        workspaces: dict[Real, Workspace] = {}
        while (item := self._work.take()) is not None:
            try:
                if self._failure is None:
                    self._wait_for_reads(item)
                    if isinstance(item, Batch):
                        self._fold_batch(item, workspaces)
                    else:
                        self._fold(item, workspaces)
            except BaseException as error:  # noqa: BLE001 (raised by run)
                self._fail(error)
            if not item.folded.done():
                item.folded.set_result(False)

    def _wait_for_reads(self, item: _Item | Batch) -> None:
        """Wait for the window's bytes, or those of a whole batch."""
        reads = item.reads if isinstance(item, Batch) else [read for _, read in item.reads if read is not None]
        with self._meter.measure("wait"):
            for read in reads:
                read.result()

    def _finished(self, turn: _Turn) -> bool:
        while not turn.done.wait(STOP_POLL_SECONDS):
            if self._failure is not None:
                return False
        return self._failure is None

    def _fold(self, item: _Item, workspaces: dict[Real, Workspace]) -> None:
        turn = item.turn
        both = zip(turn.job.in_turn(turn.index), turn.picks, strict=True)
        parts = [(part, picks) for part, picks in both if part.needed(turn.index)]
        if parts:
            self._run(item, parts, workspaces)
        if not item.keep:
            self._pool.release([slab for slab, _ in item.reads if slab is not None])
        with self._lock:
            turn.remaining -= 1
            finished = turn.remaining == 0
        if finished:
            for part, _ in parts:
                part.passes[turn.index].finish()
            self._work.over(turn.done)
        item.folded.set_result(True)

    def _run(
        self, item: _Item, parts: Sequence[tuple[PassGroup, Sequence[int | None]]], workspaces: dict[Real, Workspace]
    ) -> None:
        """The passes of some parts over a window, with what each of them picks of the turn's needs."""
        turn, outs, span = item.turn, iter(item.outs), item.turn.job.span(item.window)
        locations = [turn.job.needs[need][1] for need in turn.needs]
        with self._meter.measure("fold", sum(_span(location, *span)[2] for location in locations)):
            for part, picks in parts:
                window = part.state.windows[item.window]
                own = islice(outs, len(part.state.targets) if turn.index == len(part.passes) - 1 else 0)
                raws = [
                    None if pick is None else _bytes_of(item.reads[pick], locations[pick], window) for pick in picks
                ]
                data = WindowData(window, raws, [out.slab[: out.size] for out in own])
                part.passes[turn.index].run(data, self._workspace(part, workspaces))

    def _fold_batch(self, batch: Batch, workspaces: dict[Real, Workspace]) -> None:
        """All passes of one tiny tensor after the other; each has one window."""
        begin, size = time.perf_counter(), 0
        for number, job in enumerate(batch.jobs):
            if self._failure is not None:
                return
            size += self._fold_tiny(batch, number, job, workspaces)
        self._meter.add("fold", begin, time.perf_counter(), size)
        if batch.inputs is not None:
            self._pool.release([batch.inputs])
        batch.folded.set_result(True)

    def _fold_tiny(self, batch: Batch, number: int, job: TensorJob, workspaces: dict[Real, Workspace]) -> int:
        """Returns how many bytes were looked at."""
        size, outs, views = 0, iter(batch.outs[number]), batch.views[number]
        own = [[out for _, out in islice(outs, len(part.state.targets))] for part in job.parts]
        for turn in range(job.turns):
            both = zip(job.parts, own, strict=True)
            working = [(part, out) for part, out in both if turn < len(part.passes) and part.needed(turn)]
            for part, out in working:
                raws = [None if pick is None else views[pick] for pick in part.picks]
                last = turn == len(part.passes) - 1
                data = WindowData(part.state.windows[0], raws, out if last else [])
                part.passes[turn].run(data, self._workspace(part, workspaces))
            for part, _ in working:
                part.passes[turn].finish()
            if working:
                size += sum([len(view) for need in job.needs_in(turn) if (view := views[need]) is not None])
        return size

    def _workspace(self, part: PassGroup, workspaces: dict[Real, Workspace]) -> Workspace:
        """This thread's arrays for the part's tiles; made again, larger, when a part needs more than any before."""
        state = part.state
        elements, models = max(state.tile, state.stat_tile), len(state.task.models)
        found = workspaces.get(state.real)
        if found is None or found.elements < elements or len(found.task_vectors) < models:
            if found is not None:
                elements, models = max(elements, found.elements), max(models, len(found.task_vectors))
            del found
            workspaces.pop(state.real, None)
            workspaces[state.real] = Workspace(self._kernels, state.real, models, elements)
        return workspaces[state.real]

    # -- emitting in order ---------------------------------------------------------------------------------------

    def _emit_items(self) -> None:
        """The emitting thread: takes windows in order until the end mark; after a failure it only drains them."""
        while (item := self._ordered.get()) is not None:
            try:
                if item.folded.result() and self._failure is None:
                    if isinstance(item, Batch):
                        self._emit_batch(item)
                    else:
                        self._emit_item(item)
            except BaseException as error:  # noqa: BLE001 (raised by run)
                self._fail(error)

    def _emit_item(self, item: _Item) -> None:
        job, turn = item.turn.job, item.turn.index
        for out in item.outs:
            if self._emit is not None:
                self._emit(out.target, out.slab[: out.size])
        self._pool.release([out.slab for out in item.outs])
        if turn == job.turns - 1 and item.window == job.windows - 1 and self._finished(item.turn):
            with self._lock:
                self._alive.remove(job)
            if self._done is not None:
                self._done(job)

    def _emit_batch(self, batch: Batch) -> None:
        for job, outs in zip(batch.jobs, batch.outs, strict=True):
            for target, out in outs:
                if self._emit is not None:
                    self._emit(target, out)
            if self._done is not None:
                self._done(job)
        if batch.outputs is not None:
            self._pool.release([batch.outputs])

    # -- stopping ------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """Remember the first failure and wake every thread that waits for something that will not come."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = error
            alive = list(self._alive)
        self._pool.close()
        self._work.stop()
        for job in alive:
            for part in job.parts:
                part.state.abandon()


def _span(location: TensorLocation, begin: int, end: int) -> tuple[int, int, int]:
    """(first unit, end, bytes) of elements [begin, end) of a source; fewer where the source has fewer rows."""
    size, units = DTYPES[location.info.dtype].unit_bytes, location.info.units
    begin, end = min(begin, units), min(end, units)
    return begin, end, (end - begin) * size


def _bytes_of(read: _Read, location: TensorLocation, window: Window) -> Slab | None:
    """The part of a source's buffer that belongs to a window of one part."""
    slab, size = read[0], _span(location, window.begin, window.read_end)[2]
    return None if slab is None or size == 0 else slab[:size]
