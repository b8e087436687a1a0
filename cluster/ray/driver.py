"""Ray actors do the work, the scheduler decides: Ray's events go in, its actions come out. Weights never travel."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.metrics import Counter

from ...engine.errors import AnabranchError, ResourceError, TemporaryError
from ...engine.plan import SharedReading, share_reading
from ...engine.run import Done as Told
from ...engine.run import Member, Meter, R, Shard, Work, receipts_of
from .actor import Done, Failed, Going, MadePart, Usage, WorkerOptions, make_worker
from .events import (
    Action,
    Event,
    Finish,
    LookedUp,
    LookUp,
    LookUpFailed,
    ShardTask,
    SlotsChanged,
    StartTask,
    StartWorker,
    Stop,
    StopWorker,
    TaskDone,
    TaskFailed,
    TaskProgress,
    Tick,
    WorkerJoined,
    WorkerLeaving,
    WorkerLost,
)
from .folded_so_far import FoldedSoFar
from .incidents import Incidents
from .limits import Limits
from .nodes import cluster_slots, draining_nodes
from .parting import Parting, parted_store
from .scheduler import Scheduler

PROGRESS_POLL_SECONDS = 5.0
"""How often busy workers are asked how far they are: what lags behind its peers gets a twin early."""
NODES_POLL_SECONDS = 1.0
"""How often the cluster is asked for its nodes: new ones are used and lost ones are noticed this soon."""
LOOKS_AT_ONCE = 8
"""Receipts read at the same time while outcomes are unknown."""


class RayRunner:
    """Has work done on Ray actors, one shard at a time each.

    Args:
        members: recipes that share a reading, each with an output directory that every node must reach under its URL.
        options: what each actor needs besides the plans.
        meter: gets the seconds and bytes of all actors.
        note: gets a line for each thing that goes wrong on the way.
        workers: actors at most; None: as many as the cluster holds.
        limits: deadlines and retries.
    """

    def __init__(
        self,
        members: Sequence[Member],
        options: WorkerOptions,
        meter: Meter,
        note: Callable[[str], None],
        *,
        workers: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._group = share_reading([member.plan for member in members])
        self._outputs = [member.output for member in members]
        self._options = options
        self._meter = meter
        self._note = note
        self._workers = workers
        self._limits = limits or Limits()
        self._retries = Counter("anabranch_retries", "Shards handed out again.")
        self._spare: list[Any] = []
        self._check_fits()

    def _check_fits(self) -> None:
        # Ray would wait without a word for resources that no node has. A head without cores is no such node: its first
        # workers may still be starting.
        has_workers = any(node["Resources"].get("CPU") for node in ray.nodes() if node["Alive"])
        if has_workers and cluster_slots(self._options) < 1:
            need = f"{self._options.num_cpus} CPU and {self._options.memory.limit_bytes >> 20} MiB"
            raise ResourceError(
                f"no node of the Ray cluster holds a worker: each needs {need}" + self._options.gpu_text,
                "lower --memory or add larger nodes",
            )

    def run(self, work: Work[R], shards: Sequence[Shard], done: Told[R]) -> None:
        _Drive(self, work, shards, done).run()

    def task(self, work: Work[R], shard: Shard) -> ShardTask:
        """What the scheduler knows of a shard."""
        size = work.moved_bytes(self._group, shard)
        return ShardTask(shard.index, size, self._group.plans[shard.members[0]].shards[shard.index].name)

    def parting(self, work: Work[R], shards: Sequence[Shard], run_id: str) -> Parting:
        """The tasks of those shards; the last ones in parts where work and output allow it."""
        alone = work.divides and len(self._group.plans) == 1
        return Parting(
            {shard.index: shard for shard in shards},
            [self.task(work, shard) for shard in shards],
            self._group.plans[0],
            work.survey(0),
            parted_store(self._outputs[0].store) if alone else None,
            workers=self.slots(draining_nodes()),
            limits=self._limits,
            run_id=run_id,
        )

    def look(self, work: Work[R], shard: Shard) -> Mapping[int, R] | None:
        """The receipts of all its members, or None where one is not there."""
        found = receipts_of(work, self._outputs, shard)
        return found if len(found) == len(shard.members) else None

    @property
    def group(self) -> SharedReading:
        return self._group

    @property
    def limits(self) -> Limits:
        return self._limits

    def incidents(self, tasks: Sequence[ShardTask]) -> Incidents:
        return Incidents(tasks, self._note, self._retries.inc)

    def slots(self, draining: Container[str]) -> int:
        """Workers that the cluster holds now, within the user's limit."""
        slots = cluster_slots(self._options, draining)
        return slots if self._workers is None else min(slots, self._workers)

    def start_worker(self, group_ref: Any, number: int, run_id: str) -> Any:
        """An actor that an earlier phase left idle, or a new one."""
        if self._spare:
            return self._spare.pop()
        name = f"anabranch-{self._group.plans[0].plan_id[:8]}-{run_id}-{number}"
        return make_worker(self._options, name).remote(group_ref, self._options)

    def spare_workers(self, actors: Sequence[Any]) -> None:
        """Keep idle actors for the next phase: each has its kernels loaded and its inputs open."""
        self._spare += actors

    def going(self) -> FoldedSoFar:
        """Where to note how far tasks are."""
        return FoldedSoFar(self._meter)

    def add_usage(self, usage: Usage) -> None:
        for phase, (seconds, size, calls) in usage.items():
            total = self._meter.usage[phase]
            total.seconds, total.bytes, total.calls = total.seconds + seconds, total.bytes + size, total.calls + calls

    def add_lane(self, worker: str, step: str, began: float, usage: Usage) -> None:
        """A shard that a worker made, from when it was handed out to its answer."""
        if self._meter.lanes is not None:
            moved = usage["read"][1] + usage["write"][1]
            self._meter.lanes.add(worker, step, began, time.perf_counter(), moved)


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """A call to an actor."""

    worker: int
    task: int | None
    """None: the worker's first sign of life."""
    run: int = 0
    began: float = 0.0
    """On the clock of `time.perf_counter`."""


@dataclass(frozen=True, slots=True, eq=False)
class _Watch:
    """A question how far a call is."""

    call: _Call


class _Drive(Generic[R]):
    """One run of the scheduler over some shards.

    Args:
        runner: what workers are made of.
        work: what is done.
        shards: to which.
        done: called once per shard with its receipts.
    """

    def __init__(self, runner: RayRunner, work: Work[R], shards: Sequence[Shard], done: Told[R]) -> None:
        self._run_id = secrets.token_hex(3)
        self._parting = runner.parting(work, shards, self._run_id)
        self._scheduler = Scheduler(self._parting.tasks, limits=runner.limits)
        self._incidents = runner.incidents(self._parting.tasks)
        self._runner = runner
        self._work = work
        self._work_ref = ray.put(work)
        self._done = done
        self._finished: set[int] = set()
        self._actors: dict[int, Any] = {}
        self._nodes: dict[int, str] = {}
        """Of workers that are not leaving, the id of the node."""
        self._answers: SimpleQueue[tuple[Future[Any], _Call | _Watch | LookUp]] = SimpleQueue()
        """Those that nobody has looked at yet, each with what was asked."""
        self._busy: dict[int, _Call] = {}
        """By worker, the call that it has not answered."""
        self._watched: set[int] = set()
        """Workers that have not said how far they are since they were asked."""
        self._going = runner.going()
        self._pool = ThreadPoolExecutor(LOOKS_AT_ONCE, "look")
        self._group_ref = ray.put(runner.group)
        self._error: AnabranchError | None = None
        self._over = False

    def run(self) -> None:
        """Returns when every shard has its receipt; raises what the scheduler stops with."""
        nodes_at, watch_at = 0.0, time.monotonic() + PROGRESS_POLL_SECONDS
        try:
            while not self._over:
                if time.monotonic() >= nodes_at:
                    self._look_at_nodes()
                    nodes_at = time.monotonic() + NODES_POLL_SECONDS
                if time.monotonic() >= watch_at:
                    self._watch()
                    watch_at = time.monotonic() + PROGRESS_POLL_SECONDS
                self._wait(min(nodes_at, self._scheduler.wake_at or nodes_at))
                self._tell(Tick(time.monotonic()))
        finally:
            self._release_workers()
            self._parting.give_up()
            self._pool.shutdown(wait=False, cancel_futures=True)
        if self._error is not None:
            raise self._error

    def _look_at_nodes(self) -> None:
        draining, now = draining_nodes(), time.monotonic()
        self._tell(SlotsChanged(now, self._runner.slots(draining)))
        for worker, node in [each for each in self._nodes.items() if each[1] in draining]:
            del self._nodes[worker]
            self._tell(WorkerLeaving(now, worker, now + draining[node]))

    def _release_workers(self) -> None:
        finished = self._over and self._error is None
        self._runner.spare_workers([a for n, a in self._actors.items() if finished and n not in self._busy])
        for number, actor in self._actors.items():
            if not finished or number in self._busy:
                ray.kill(actor)

    def _wait(self, until: float) -> None:
        try:
            answer, asked = self._answers.get(timeout=max(until - time.monotonic(), 0.0))
        except Empty:
            return
        match asked:
            case LookUp():
                self._looked(answer, asked)
            case _Watch(call=call):
                self._watched.discard(call.worker)
                self._progressed(answer, call)
            case _Call(worker=worker) if self._busy.get(worker) is asked:  # else it was stopped meanwhile
                del self._busy[worker]
                self._answered(answer, asked)

    def _expect(self, answer: Future[Any], asked: _Call | _Watch | LookUp) -> None:
        """Take the answer when it comes. `ray.wait` would go through all that is open for each of them."""
        answer.add_done_callback(lambda answer: self._answers.put((answer, asked)))

    def _call(self, answer: Any, call: _Call) -> None:
        self._busy[call.worker] = call
        self._expect(answer.future(), call)

    def _watch(self) -> None:
        """Ask busy workers how far they are, unless an earlier question is still open."""
        for worker, call in self._busy.items():
            if call.task is not None and worker not in self._watched:
                self._watched.add(worker)
                self._expect(self._actors[worker].progress.remote().future(), _Watch(call))

    def _progressed(self, answer: Future[Going], call: _Call) -> None:
        with contextlib.suppress(RayError):  # a worker that died is noticed by its own call
            going = answer.result()
            if call.task is not None and self._busy.get(call.worker) is call:
                self._going.note(call.task, going.folded_bytes)
                moved = going.folded_bytes + going.written_bytes
                self._tell(TaskProgress(time.monotonic(), call.task, call.run, moved))

    # -- answers become events -----------------------------------------------------------------------------------

    def _answered(self, future: Future[Any], call: _Call) -> None:
        now = time.monotonic()
        try:
            answer = future.result()
        except RayTaskError as error:
            answer = Failed(TemporaryError(_first_line(error)) if call.task is None else _bug(error))
        except RayError as error:  # died, cannot be reached, or never started: the outcome is unknown
            self._tell(WorkerLost(now, call.worker, loss_reason(error)))
            return
        match call.task, answer:
            case None, Failed(error=reason):
                self._tell(WorkerLost(now, call.worker, reason.message))
            case None, str(node):
                self._nodes[call.worker] = node
                self._tell(WorkerJoined(now, call.worker))
            case int(task), Failed(error=reason):
                self._tell(TaskFailed(now, task, call.run, reason))
            case int(task), MadePart(record=record, usage=usage):
                self._add(call, task, usage)
                self._parting.made(task, record)
                self._tell(TaskDone(now, task, call.run))
            case int(task), Done(receipts=receipts, usage=usage):
                self._add(call, task, usage)
                self._settle(task, receipts)
                self._tell(TaskDone(now, task, call.run))

    def _add(self, call: _Call, task: int, usage: Usage) -> None:
        """Count what a worker used for a task that is done."""
        self._going.done(task)
        self._runner.add_usage(usage)
        self._runner.add_lane(f"worker {call.worker}", self._work.step, call.began, usage)

    def _looked(self, future: Future[Mapping[int, R] | None], look: LookUp) -> None:
        now = time.monotonic()
        try:
            receipts = future.result()
        except AnabranchError as error:
            self._tell(LookUpFailed(now, look.task, look.look, error))
            return
        if receipts is not None:
            self._going.done(look.task)
            self._settle(look.task, receipts)
        self._tell(LookedUp(now, look.task, look.look, receipts is not None))

    def _settle(self, task: int, receipts: Mapping[int, R]) -> None:
        """A task's shard has its receipts, and needs no other task any more."""
        shard = self._parting.shard(task).index
        if shard not in self._finished:
            self._finished.add(shard)
            self._done(shard, receipts)
            for other in reversed(self._parting.finished(shard)):  # so that none is started in between
                if other != task:
                    self._tell(LookedUp(time.monotonic(), other, 0, found=True))

    # -- actions become calls ------------------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        self._incidents.event(event)
        for action in self._scheduler.handle(event):
            self._incidents.action(action)
            self._carry_out(action)

    def _carry_out(self, action: Action) -> None:
        match action:
            case StartWorker(worker=number):
                actor = self._runner.start_worker(self._group_ref, number, self._run_id)
                self._actors[number] = actor
                self._call(actor.ready.remote(), _Call(number, None))
            case StartTask(task=task, worker=number, run=run):
                answer = self._actors[number].work.remote(self._work_ref, self._parting.errand(task))
                self._call(answer, _Call(number, task, run, time.perf_counter()))
            case StopWorker(worker=number):
                ray.kill(self._actors.pop(number))
                self._nodes.pop(number, None)
                self._busy.pop(number, None)
            case LookUp(task=task):
                shard = self._parting.shard(task)
                self._expect(self._pool.submit(self._runner.look, self._work, shard), action)
            case Stop(error=error):
                self._error, self._over = error, True
            case Finish():
                self._over = True


def loss_reason(error: RayError) -> str:
    """Why a worker is lost: of Ray's many lines the sentence that says so, with the actor's name and its node."""
    first, *more = str(error).splitlines() or [type(error).__name__]
    facts = dict(line.strip().partition(": ")[::2] for line in more if line.startswith("\t"))
    reason = next((line for line in more if not line.startswith("\t")), first).split(". ")[0].rstrip(".")
    where = f" ({facts['name']} on {facts['ip']})" if {"name", "ip"} <= facts.keys() else ""
    return reason + where


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _bug(error: RayTaskError) -> AnabranchError:
    return AnabranchError(f"a worker failed in a way that is not foreseen: {error.cause!r}", "please report this")
