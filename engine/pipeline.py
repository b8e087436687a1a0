"""Read ahead, fold, hand on in order: the threads of one process, bounded by its buffers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .header import DTYPES
from .kernels import Kernels
from .memory import AHEAD, BufferPool, MemoryPlan, PoolClosed, reader_threads, resident_slabs
from .meter import Meter
from .plan import Plan
from .reading import HeldArrays, Scratch, SourceReader
from .source import TensorLocation
from .storage import Store
from .tensor import Pass, Real, TensorState, WindowData, Workspace
from .windows import Window

Slab = NDArray[np.uint8]
STOP_POLL_SECONDS = 0.2
"""How often a thread that waits for another window looks whether the run is being stopped."""


@dataclass(slots=True)
class Job:
    """One tensor on its way through the pipeline: passes that run in order, the last of which may write."""

    state: TensorState
    passes: Sequence[Pass]
    writes: bool
    """Whether the last pass produces output bytes; a survey's does not."""


@dataclass(slots=True)
class _Turn:
    """One pass of one job: how many windows are still out, and whether the pass is finished."""

    job: Job
    index: int
    remaining: int
    done: threading.Event


@dataclass(slots=True)
class _Item:
    """One window in one pass."""

    turn: _Turn
    before: _Turn | None
    window: Window
    reads: Sequence[tuple[Slab | None, int, Future[None] | None]]
    """Per source: its buffer, the bytes in it, and the read that fills it."""
    keep: bool
    """Whether the buffers stay for the next pass."""
    out: Slab | None
    result: Future[Slab | None]


class Pipeline:
    """Runs jobs with a fixed set of threads and buffers.

    Windows are read in order, folded by any thread, and handed to `emit` in order, so the output is one sequential
    stream whatever the number of threads.

    Args:
        plan: the plan; tells the sources' dtypes and policies.
        stores: one store per source of the plan.
        memory: threads, buffers and their size.
        kernels: makes the kernels of one fold thread.
        meter: gets seconds and bytes of every phase.
        remote: whether the sources answer with the latency of a network.
    """

    def __init__(
        self,
        plan: Plan,
        stores: Sequence[Store],
        memory: MemoryPlan,
        kernels: Kernels,
        meter: Meter,
        remote: bool = False,
    ) -> None:
        self._plan = plan
        self._stores = stores
        self._memory = memory
        self._kernels = kernels
        self._meter = meter
        self._readers = reader_threads(plan, memory.threads, remote)

    def run(
        self,
        jobs: Iterable[Job],
        emit: Callable[[Job, Slab], None] | None = None,
        done: Callable[[Job], None] | None = None,
    ) -> None:
        """Run every job to its end.

        Args:
            jobs: made one by one, as buffers allow.
            emit: gets the output bytes of every window in order; called from one thread.
            done: called when a job's last window was emitted (or its last pass finished, for jobs that write nothing).

        Raises:
            Whatever a pass, a read or `emit` raised first; everything has stopped by then.
        """
        _Run(self._plan, self._stores, self._memory, self._kernels, self._meter, self._readers, emit, done).run(jobs)


class _Run:
    """The state of one call of `Pipeline.run`."""

    def __init__(
        self,
        plan: Plan,
        stores: Sequence[Store],
        memory: MemoryPlan,
        kernels: Kernels,
        meter: Meter,
        readers: int,
        emit: Callable[[Job, Slab], None] | None,
        done: Callable[[Job], None] | None,
    ) -> None:
        held, scratch = HeldArrays(memory.held_bytes), Scratch()
        self._plan = plan
        self._sources = [
            SourceReader(index, checkpoint, store, kernels, held, scratch, meter)
            for index, (checkpoint, store) in enumerate(zip(plan.sources, stores, strict=True))
        ]
        self._memory = memory
        self._kernels = kernels
        self._meter = meter
        self._emit = emit
        self._done = done
        self._pool = BufferPool(memory.slab_bytes, memory.slabs)
        self._readers = ThreadPoolExecutor(readers, "read")
        self._work: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._ordered: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._alive: list[Job] = []
        self._failure: BaseException | None = None
        self._lock = threading.Lock()

    def run(self, jobs: Iterable[Job]) -> None:
        folders = [
            threading.Thread(target=self._fold_items, name=f"fold-{i}", daemon=True)
            for i in range(self._memory.threads)
        ]
        emitter = threading.Thread(target=self._emit_items, name="emit", daemon=True)
        threads = [*folders, emitter]
        for thread in threads:
            thread.start()
        try:
            for job in jobs:
                self._feed(job)
        except PoolClosed:
            pass  # the failure that closed the pool is raised below
        except BaseException as error:  # noqa: BLE001 (raised by run)
            self._fail(error)
        try:
            for _ in folders:
                self._work.put(None)
            self._ordered.put(None)
            for thread in threads:
                thread.join()
        except BaseException as error:  # noqa: BLE001 (raised by run)
            self._fail(error)
            for thread in threads:
                thread.join()
        finally:
            self._readers.shutdown(cancel_futures=True)
        if self._failure is not None:
            raise self._failure

    # -- feeding: the calling thread -----------------------------------------------------------------------------

    def _feed(self, job: Job) -> None:
        with self._lock:
            self._alive.append(job)
        windows = job.state.windows
        reserve = (self._memory.threads + AHEAD) * (self._plan.most_models + 2)
        resident = len(job.passes) > 1 and resident_slabs(job.state.task, len(windows)) + reserve <= self._pool.slabs
        kept: list[Sequence[tuple[Slab | None, int, Future[None] | None]]] = []
        before: _Turn | None = None
        for index in range(len(job.passes)):
            last = index == len(job.passes) - 1
            turn = _Turn(job, index, len(windows), threading.Event())
            for window in windows:
                reads = kept[window.index] if resident and index else self._start_reads(job, window)
                if resident and index == 0:
                    kept.append(reads)
                out = self._pool.acquire() if last and job.writes else None
                item = _Item(turn, before, window, reads, resident and not last, out, Future())
                self._work.put(item)
                if last:
                    self._ordered.put(item)
            before = turn

    def _start_reads(self, job: Job, window: Window) -> list[tuple[Slab | None, int, Future[None] | None]]:
        task = job.state.task
        sources: list[TensorLocation | None] = [task.base if task.reads_base else None, *task.models]
        reads: list[tuple[Slab | None, int, Future[None] | None]] = []
        for index, location in enumerate(sources):
            begin, end, size = _span(location, window)
            if location is None or size == 0:
                reads.append((None, 0, None))
                continue
            slab = self._pool.acquire()
            read = self._readers.submit(self._sources[task.origins[index]].fill, location, begin, end, slab[:size])
            reads.append((slab, size, read))
        return reads

    # -- folding -------------------------------------------------------------------------------------------------

    def _fold_items(self) -> None:
        """One fold thread: takes windows in order until the end mark; after a failure it only drains them."""
        workspaces: dict[tuple[Real, int], Workspace] = {}
        while (item := self._work.get()) is not None:
            try:
                if self._failure is None and self._ready(item):
                    self._fold(item, workspaces)
            except BaseException as error:  # noqa: BLE001 (raised by run)
                self._fail(error)
            if not item.result.done():
                item.result.set_result(None)

    def _ready(self, item: _Item) -> bool:
        """Wait for the window's bytes and for the pass before; False when the run is being stopped."""
        with self._meter.measure("wait"):
            for _, _, read in item.reads:
                if read is not None:
                    read.result()
            return item.before is None or self._finished(item.before)

    def _finished(self, turn: _Turn) -> bool:
        while not turn.done.wait(STOP_POLL_SECONDS):
            if self._failure is not None:
                return False
        return self._failure is None

    def _fold(self, item: _Item, workspaces: dict[tuple[Real, int], Workspace]) -> None:
        job, state = item.turn.job, item.turn.job.state
        key = (state.real, max(state.tile, state.stat_tile))
        if key not in workspaces:
            for other in [k for k in workspaces if k[0] == key[0]]:
                del workspaces[other]
            workspaces[key] = Workspace(self._kernels, state.real, self._plan.most_models, key[1])
        raws = [None if slab is None else slab[:size] for slab, size, _ in item.reads]
        size = (item.window.own_end - item.window.own_begin) * DTYPES[state.task.out_dtype].unit_bytes
        out = None if item.out is None else item.out[:size]
        with self._meter.measure("fold", sum(length for _, length, _ in item.reads)):
            job.passes[item.turn.index].run(WindowData(item.window, raws, out), workspaces[key])
        if not item.keep:
            self._pool.release([slab for slab, _, _ in item.reads if slab is not None])
        with self._lock:
            item.turn.remaining -= 1
            finished = item.turn.remaining == 0
        if finished:
            job.passes[item.turn.index].finish()
            item.turn.done.set()
        item.result.set_result(out)

    # -- emitting in order ---------------------------------------------------------------------------------------

    def _emit_items(self) -> None:
        """The emitting thread: takes windows in order until the end mark; after a failure it only drains them."""
        while (item := self._ordered.get()) is not None:
            try:
                out = item.result.result()
                if self._failure is None:
                    self._emit_item(item, out)
            except BaseException as error:  # noqa: BLE001 (raised by run)
                self._fail(error)

    def _emit_item(self, item: _Item, out: Slab | None) -> None:
        job = item.turn.job
        if out is not None and item.out is not None and self._emit is not None:
            self._emit(job, out)
            self._pool.release([item.out])
        if item.window.index == len(job.state.windows) - 1 and self._finished(item.turn):
            with self._lock:
                self._alive.remove(job)
            if self._done is not None:
                self._done(job)

    # -- stopping ------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """Remember the first failure and wake every thread that waits for something that will not come."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = error
            alive = list(self._alive)
        self._pool.close()
        for job in alive:
            job.state.abandon()


def _span(location: TensorLocation | None, window: Window) -> tuple[int, int, int]:
    """(first unit, end, bytes) of a source in a window; fewer where the source has fewer rows."""
    if location is None:
        return 0, 0, 0
    size, units = DTYPES[location.info.dtype].unit_bytes, location.info.units
    begin = min(window.begin, units)
    end = min(window.read_end, units)
    return begin, end, (end - begin) * size
