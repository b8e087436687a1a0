"""Replay plans of 405 B and 1 T parameters through the real scheduler on 1 to 256 modelled workers.

    python -m benchmarks.scale [--quick]

Real: the shard cut, which shards are written in parts, the scheduler, its CPU time and memory. Modelled: workers with a
bandwidth of their own (the store behind them never saturates), how long starts, parts, looks and bad news take, and
faults at given rates.
Efficiency is (all work / bandwidth of all workers) / makespan: start-up, lost work, stragglers, the tail, what parts
cost and what is read again for them all count against it.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

from anabranch.cluster.ray.cuts import cut_last, parted_tasks
from anabranch.cluster.ray.events import (
    Action,
    Event,
    Finish,
    LookedUp,
    LookUp,
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
    WorkerLost,
)
from anabranch.cluster.ray.limits import Limits
from anabranch.cluster.ray.scheduler import Scheduler
from anabranch.engine.errors import TemporaryError
from anabranch.engine.plan.layout import cut_shards

SHARD_BYTES = 2_000_000_000  # the default of recipes
TRAFFIC = 4  # bytes moved per output byte: base and two models read, one output written
WORKER_BYTES_PER_SECOND = 200e6
WORKERS_PER_NODE = 8
START_SECONDS = 3.0  # process, imports, kernels from their cache, inputs opened; 2.7 to the first bytes, measured
NODE_BACK_SECONDS = 60.0
NODES_POLL_SECONDS = 1.0
LOST_NOTICED_SECONDS = 2.5
LOOK_SECONDS = 0.05
PROGRESS_SECONDS = 5.0
PART_SECONDS = 0.04  # of a part or end beside its bytes, measured once on two cores: threads start, and a sync
RAY_CALL_SECONDS = 0.0005
"""Of the driver's thread for a call to an actor and its answer: measured once on two cores, with few calls open. With
256 open, beside other work, it was 0.4 ms, and 0.7 when `ray.wait` went through all of them for each answer."""

Tensors = list[tuple[str, str, tuple[int, ...]]]


# Plans.


def llama_405b() -> Tensors:
    """Llama 3.1 405B, in the order of its names."""
    hidden, ffn, kv, vocab = 16384, 53248, 8 * 128, 128256
    tensors: Tensors = [("lm_head.weight", "BF16", (vocab, hidden)), ("embed_tokens", "BF16", (vocab, hidden))]
    layer = (
        ("input_layernorm", (hidden,)),
        ("mlp.down_proj", (hidden, ffn)),
        ("mlp.gate_proj", (ffn, hidden)),
        ("mlp.up_proj", (ffn, hidden)),
        ("post_attention_layernorm", (hidden,)),
        ("self_attn.k_proj", (kv, hidden)),
        ("self_attn.o_proj", (hidden, hidden)),
        ("self_attn.q_proj", (hidden, hidden)),
        ("self_attn.v_proj", (kv, hidden)),
    )
    tensors += [(f"layers.{number}.{name}", "BF16", shape) for number in range(126) for name, shape in layer]
    return [*tensors, ("norm", "BF16", (hidden,))]


def experts_1t() -> Tensors:
    """A mixture of 384 experts in 60 layers, about 1.03 T parameters (the shapes of Kimi K2, in bf16)."""
    hidden, ffn, dense, vocab, heads = 7168, 2048, 18432, 163840, 64
    attention = (
        ("kv_a_proj", (576, hidden)),
        ("kv_b_proj", (heads * 256, 512)),
        ("o_proj", (hidden, heads * 128)),
        ("q_a_proj", (1536, hidden)),
        ("q_b_proj", (heads * 192, 1536)),
    )
    tensors: Tensors = [("embed_tokens", "BF16", (vocab, hidden)), ("lm_head", "BF16", (vocab, hidden))]
    for number in range(61):
        blocks = ["mlp"] if number == 0 else [*(f"experts.{e}" for e in range(384)), "shared_experts"]
        for block in blocks:
            width = dense if number == 0 else ffn
            for name, shape in (("down", (hidden, width)), ("gate", (width, hidden)), ("up", (width, hidden))):
                tensors.append((f"layers.{number}.{block}.{name}_proj", "BF16", shape))
        tensors += [(f"layers.{number}.self_attn.{name}", "BF16", shape) for name, shape in attention]
    return tensors


@cache
def plan(model: str, shard_bytes: int = SHARD_BYTES) -> tuple[ShardTask, ...]:
    """One task per output shard; its size is the bytes that a worker moves for it."""
    tensors = {"405B": llama_405b, "1T": experts_1t}[model]()
    sizes = [2 * math.prod(shape) for _, _, shape in tensors]
    shards = cut_shards(tensors, shard_bytes)
    return tuple(
        ShardTask(number, TRAFFIC * sum(sizes[i] for i in members), f"shard {number}")
        for number, members in enumerate(shards)
    )


def in_parts(tasks: Sequence[ShardTask], workers: int) -> list[ShardTask]:
    """The tasks with the last shards cut as the driver does, and tensors that can be cut anywhere."""
    cuts, made = cut_last(tasks, workers, Limits()), []
    number = len(tasks)
    for task in tasks:
        if task.id not in cuts:
            made.append(task)
            continue
        stretches = cuts[task.id]
        lengths = [round((stretch.end - stretch.begin) * task.size_bytes) for stretch in stretches]
        made += parted_tasks(task, lengths, [stretch.waits for stretch in stretches], number)
        number += len(stretches)
    return made


def ceiling(sizes: Sequence[int], workers: int) -> float:
    """Efficiency of equal, flawless workers that take the tasks in this order."""
    loads = [0] * workers
    for size in sizes:
        heapq.heapreplace(loads, loads[0] + size)
    return sum(sizes) / workers / max(loads)


# Faults.


@dataclass(frozen=True, slots=True)
class Faults:
    """Rates per hour of a worker or node, shares of runs."""

    crashes_per_worker_hour: float = 0.0
    losses_per_node_hour: float = 0.0
    temporary_share: float = 0.0
    straggler_share: float = 0.0
    hung_share: float = 0.0
    unanswered_share: float = 0.0
    """The receipt is written, its answer never comes."""
    straggler_factor: float = 4.0
    spread: float = 0.1
    """Standard deviation of the logarithm of a run's time; half of it again between nodes."""


FAULTS = {
    "none": Faults(),
    "usual": Faults(0.01, 0.01, 0.002, 0.01, 0.0002, 0.0002),
    "spot": Faults(0.1, 0.25, 0.01, 0.03, 0.002, 0.002),
}


# The model of a cluster.


@dataclass(slots=True)
class Outcome:
    """What one replay came to; times in modelled seconds unless they say CPU."""

    efficiency: float = 0.0
    makespan: float = 0.0
    tail: float = 0.0
    """From handing out the last task to the end."""
    failures: int = 0
    """Runs ended by crashes, temporary errors and hangs, or because they were hopelessly slow."""
    lost_seconds: float = 0.0
    """What these had worked."""
    twin_seconds: float = 0.0
    """Work of runs whose task was done by another."""
    calls: int = 0
    cpu_seconds: float = 0.0
    done: int = 0


@dataclass(slots=True)
class _Run:
    start: StartTask
    began: float
    seconds: float
    """What it takes if all goes well."""


@dataclass(slots=True)
class _Node:
    pace: float
    alive: bool = True
    workers: set[int] = field(default_factory=set)


class Replay:
    """A modelled clock, nodes, workers and an output, driven by the scheduler's actions."""

    def __init__(
        self,
        tasks: Sequence[ShardTask],
        workers: int,
        faults: Faults,
        seed: int,
        *,
        reports: bool = True,
        parts: bool = False,
        bytes_per_second: float = WORKER_BYTES_PER_SECOND,
    ) -> None:
        self._bytes_per_second = bytes_per_second
        self._reports = reports
        self.outcome = Outcome()
        self._work_bytes = sum(task.size_bytes for task in tasks)
        self._whole = {task.id: task.size_bytes for task in tasks}
        tasks = in_parts(tasks, workers) if parts else tasks
        self._tasks = {task.id: task for task in tasks}
        self._scheduler = Scheduler(tasks, seed=seed)
        self._workers = workers
        self._per_node = min(workers, WORKERS_PER_NODE)
        self._faults = faults
        self._chance = random.Random(seed)
        self._now = 0.0
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._wake_at = math.inf
        self._nodes = [_Node(self._scatter(0.5)) for _ in range(workers // self._per_node)]
        self._where: dict[int, _Node] = {}  # living workers
        self._waiting: list[int] = []  # asked for while no node has room
        self._running: dict[int, _Run] = {}
        self._receipts: set[int] = set()
        self._fresh = set(self._tasks)
        self._last_fresh = 0.0
        self._over = False

    def run(self) -> Outcome:
        for node in self._nodes:
            self._doom_node(node)
        self._tell(SlotsChanged(0.0, self._workers))
        while not self._over:
            self._now, _, happen = heapq.heappop(self._later)
            happen()
        capacity = sum(self._per_node * self._bytes_per_second / node.pace for node in self._nodes)
        ideal = self._work_bytes / capacity
        self.outcome.makespan = self._now
        self.outcome.efficiency = ideal / self._now
        self.outcome.tail = self._now - self._last_fresh
        self.outcome.done = len(self._receipts)
        return self.outcome

    def _in(self, seconds: float, happen: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._later, (self._now + seconds, self._order, happen))

    def _scatter(self, share: float) -> float:
        """A random factor with mean 1."""
        sigma = self._faults.spread * share
        return self._chance.lognormvariate(-sigma * sigma / 2, sigma)

    # The driver.

    def _tell(self, event: Event) -> None:
        began = time.process_time_ns()
        actions = self._scheduler.handle(event)
        wake_at = self._scheduler.wake_at
        self.outcome.cpu_seconds += (time.process_time_ns() - began) / 1e9
        for action in actions:
            self._carry_out(action)
        if wake_at is not None and wake_at < self._wake_at:
            self._wake_at = wake_at
            self._in(wake_at - self._now, self._tick)

    def _tick(self) -> None:
        self._wake_at = math.inf
        self._tell(Tick(self._now))

    def _carry_out(self, action: Action) -> None:
        self.outcome.calls += not isinstance(action, LookUp)
        match action:
            case StartWorker(worker=worker):
                self._waiting.append(worker)
                self._place()
            case StopWorker(worker=worker):
                self._stop(worker)
            case StartTask():
                self._begin(action)
            case LookUp(task=task, look=look):
                found = task in self._receipts and self._is_whole(task)  # a part's record is in its answer alone
                self._in(LOOK_SECONDS, lambda: self._tell(LookedUp(self._now, task, look, found)))
            case Finish():
                self._over = True
            case Stop(error=error):
                raise error

    # Workers and nodes.

    def _place(self) -> None:
        for node in self._nodes:
            while node.alive and self._waiting and len(node.workers) < self._per_node:
                worker = self._waiting.pop(0)
                node.workers.add(worker)
                self._where[worker] = node
                self._in(START_SECONDS * self._chance.uniform(0.8, 1.2), lambda w=worker: self._join(w))  # type: ignore[misc]

    def _join(self, worker: int) -> None:
        if worker in self._where:
            self._doom(self._faults.crashes_per_worker_hour, lambda: self._crash(worker))
            self._tell(WorkerJoined(self._now, worker))

    def _doom(self, per_hour: float, happen: Callable[[], None]) -> None:
        if per_hour:
            self._in(self._chance.expovariate(per_hour / 3600), happen)

    def _doom_node(self, node: _Node) -> None:
        self._doom(self._faults.losses_per_node_hour, lambda: self._lose_node(node))

    def _remove(self, worker: int) -> _Run | None:
        self._where.pop(worker).workers.discard(worker)
        return self._running.pop(worker, None)

    def _crash(self, worker: int) -> None:
        if worker in self._where:
            self._count_loss(self._remove(worker))
            self._in(LOST_NOTICED_SECONDS, lambda: self._tell(WorkerLost(self._now, worker, "crashed")))
            self._place()

    def _lose_node(self, node: _Node) -> None:
        node.alive = False
        for worker in sorted(node.workers):
            self._crash(worker)
        self._in(NODES_POLL_SECONDS, self._poll)
        self._in(NODE_BACK_SECONDS, lambda: self._return_node(node))

    def _return_node(self, node: _Node) -> None:
        node.alive = True
        self._doom_node(node)
        self._place()
        self._in(NODES_POLL_SECONDS, self._poll)

    def _poll(self) -> None:
        slots = self._per_node * sum(node.alive for node in self._nodes)
        self._tell(SlotsChanged(self._now, slots))

    def _stop(self, worker: int) -> None:
        if worker in self._waiting:
            self._waiting.remove(worker)
        if worker in self._where:
            run = self._remove(worker)
            if run and run.start.task in self._receipts:
                self.outcome.twin_seconds += self._now - run.began
            else:
                self._count_loss(run)  # hung, or asked for too much
            self._place()

    def _count_loss(self, run: _Run | None) -> None:
        if run and run.start.task not in self._receipts:
            self.outcome.failures += 1
            self.outcome.lost_seconds += self._now - run.began

    # Runs.

    def _begin(self, start: StartTask) -> None:
        assert start.task not in self._receipts or start.task not in self._fresh
        if start.task in self._fresh:
            self._fresh.discard(start.task)
            self._last_fresh = self._now
        if start.worker not in self._where:
            return  # dead, the news is on its way
        faults, chance = self._faults, self._chance
        pace = self._where[start.worker].pace * self._scatter(1.0)
        size = self._tasks[start.task].size_bytes
        seconds = size / self._bytes_per_second * pace
        if not self._is_whole(start.task):
            seconds += PART_SECONDS
        if chance.random() < faults.straggler_share:
            seconds *= faults.straggler_factor
        run = self._running[start.worker] = _Run(start, self._now, seconds)
        if self._reports:
            self._in(PROGRESS_SECONDS, lambda: self._report(run))
        if chance.random() < faults.temporary_share:
            self._in(seconds * chance.random(), lambda: self._fail(start))
        elif chance.random() < faults.hung_share:
            run.seconds = math.inf
        else:
            answered = chance.random() >= faults.unanswered_share
            self._in(seconds, lambda: self._complete(start, answered))

    def _is_whole(self, task: int) -> bool:
        return self._tasks[task].size_bytes == self._whole.get(task)

    def _is_running(self, start: StartTask) -> bool:
        run = self._running.get(start.worker)
        return run is not None and run.start is start

    def _report(self, run: _Run) -> None:
        """Ask the worker how far it is, as long as it runs this."""
        if self._running.get(run.start.worker) is run:
            self._in(PROGRESS_SECONDS, lambda: self._report(run))
            self.outcome.calls += 1
            task = self._tasks[run.start.task]
            done = int(task.size_bytes * (self._now - run.began) / run.seconds)
            self._tell(TaskProgress(self._now, task.id, run.start.run, done))

    def _fail(self, start: StartTask) -> None:
        if self._is_running(start):
            self._count_loss(self._running.pop(start.worker))
            self._tell(TaskFailed(self._now, start.task, start.run, TemporaryError("slow down")))

    def _complete(self, start: StartTask, answered: bool) -> None:
        if self._is_running(start):
            self._receipts.add(start.task)
            if answered:
                del self._running[start.worker]
                self._tell(TaskDone(self._now, start.task, start.run))


# The table.


@dataclass(frozen=True, slots=True)
class Case:
    """One row: a plan on a cluster; medians of some seeds."""

    model: str
    workers: int
    faults: str
    shard_bytes: int = SHARD_BYTES
    reports: bool = True
    parts: bool = True
    seeds: int = 7


# The promises are about these. Single runs scatter by 1.4 %, so that seven would not tell 95 from 96.
PROMISES = {Case("405B", 64, "usual", seeds=40): 0.95, Case("1T", 256, "usual", seeds=20): 0.9}

FULL = (
    *(Case("405B", workers, "usual") for workers in (1, 8, 32)),
    *PROMISES,
    *(Case("405B", workers, "usual", parts=False) for workers in (64, 256)),
    Case("405B", 128, "usual"),
    Case("405B", 256, "usual", seeds=40),
    Case("405B", 256, "none"),
    Case("405B", 64, "none"),
    Case("405B", 64, "usual", reports=False, seeds=40),
    Case("405B", 64, "usual", shard_bytes=SHARD_BYTES // 2),
    Case("405B", 64, "spot"),
    Case("405B", 256, "spot"),
    *(Case("1T", workers, "usual") for workers in (1, 64)),
    Case("1T", 256, "usual", parts=False),
    Case("1T", 256, "none"),
    Case("1T", 256, "spot"),
)
QUICK = (Case("405B", 64, "usual", seeds=1), Case("405B", 256, "spot", seeds=1))

HEADINGS = (
    "plan",
    "shards",
    "workers",
    "faults",
    "efficiency",
    "worst",
    "flawless",
    "plan order",
    "makespan s",
    "tail s",
    "failures",
    "lost/failure",
    "twins %",
    "driver ms",
    "busy %",
)


def measure(case: Case) -> list[Outcome]:
    tasks = plan(case.model, case.shard_bytes)
    faults = FAULTS[case.faults]
    seeds = range(case.seeds)
    return [Replay(tasks, case.workers, faults, seed, reports=case.reports, parts=case.parts).run() for seed in seeds]


def busy(outcome: Outcome) -> float:
    """Share of the makespan that the driver computes or calls actors."""
    return (outcome.cpu_seconds + outcome.calls * RAY_CALL_SECONDS) / outcome.makespan


def row(case: Case, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    sizes = [task.size_bytes for task in plan(case.model, case.shard_bytes)]

    def middle(value: Callable[[Outcome], float]) -> float:
        return statistics.median(map(value, outcomes))

    failures = sum(outcome.failures for outcome in outcomes)
    mean_task = statistics.mean(sizes) / WORKER_BYTES_PER_SECOND
    lost = sum(outcome.lost_seconds for outcome in outcomes) / mean_task / failures if failures else 0.0
    return (
        case.model,
        f"{len(sizes)} of {case.shard_bytes / 1e9:g} GB",
        str(case.workers),
        case.faults + ("" if case.reports else ", no progress") + ("" if case.parts else ", whole shards"),
        f"{100 * middle(lambda o: o.efficiency):.1f}",
        f"{100 * min(outcome.efficiency for outcome in outcomes):.1f}",
        f"{100 * ceiling(sorted(sizes, reverse=True), case.workers):.1f}",
        f"{100 * ceiling(sizes, case.workers):.1f}",
        f"{middle(lambda o: o.makespan):.0f}",
        f"{middle(lambda o: o.tail):.0f}",
        f"{failures / len(outcomes):.1f}",
        f"{lost:.2f}",
        f"{100 * middle(lambda o: o.twin_seconds / o.makespan / case.workers):.1f}",
        f"{1000 * middle(lambda o: o.cpu_seconds):.0f}",
        f"{100 * middle(busy):.2f}",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rows, one seed")
    options = parser.parse_args(arguments)
    print("| " + " | ".join(HEADINGS) + " |")
    print("|" + "---|" * len(HEADINGS))
    missed = []
    for case in QUICK if options.quick else FULL:
        outcomes = measure(case)
        print("| " + " | ".join(row(case, outcomes)) + " |", flush=True)
        efficiency = statistics.median(outcome.efficiency for outcome in outcomes)
        if efficiency < PROMISES.get(case, 0.0):
            missed.append(f"efficiency {efficiency:.3f} in {case}, expected {PROMISES[case]}")
        if max(map(busy, outcomes)) > 0.05:
            missed.append(f"driver busy {max(map(busy, outcomes)):.3f} in {case}, expected 0.05")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"\nMemory of this process at its peak: {peak_mib} MiB.")
    if peak_mib > 1024:
        missed.append(f"{peak_mib} MiB, expected 1024")
    print(*(f"Missed: {what}" for what in missed), sep="\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
