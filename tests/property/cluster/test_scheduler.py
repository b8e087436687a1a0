"""The scheduler against a model of a cluster: whatever the order of crashes, delays, doubled and lost answers,
no finished task is started again, no worker has two tasks, and all ends with one Finish or one Stop.

The model holds the truth (receipts, who runs what); the scheduler sees only the events that get delivered.
Each action is checked when it is taken, so a failing seed shows the first wrong one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from math import inf

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from anabranch.cluster.ray.events import (
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
from anabranch.cluster.ray.limits import Limits
from anabranch.cluster.ray.scheduler import Scheduler
from anabranch.engine.errors import AnabranchError, InputError, ResourceError, TemporaryError

MB = 1_000_000
LIMITS = Limits(attempts=4)

Message = Callable[[float], Event]  # an event on its way: it gets its time when it is delivered


class World:
    """Workers, an output with receipts, and a network that may delay, repeat and lose."""

    def __init__(self, sizes: list[int], limits: Limits = LIMITS, seed: int = 0) -> None:
        # Every third task waits for the one before it, every seventh for two.
        waits = [tuple(range(i - (i % 3 == 2) - (i % 7 == 6), i)) for i in range(len(sizes))]
        self.tasks = [ShardTask(i, size, f"shard {i}", waits[i]) for i, size in enumerate(sizes)]
        self.limits = limits
        self.make = partial(Scheduler, self.tasks, limits=limits, seed=seed)
        self.scheduler = self.make()
        self.now = 100.0
        self.receipts: set[int] = set()
        self.alive: dict[int, StartTask | None] = {}  # processes that exist, and what they really run
        self.starting: list[int] = []
        self.network: list[Message] = []
        self.sent: list[Message] = []
        self.store_is_down = False
        # What the scheduler may know, by the events that were delivered.
        self.usable: dict[int, StartTask | None] = {}
        self.asked: set[int] = set()
        self.leaving: set[int] = set()
        self.known_done: set[int] = set()
        self.starts = dict.fromkeys(range(len(sizes)), 0)
        self.excuses: list[type[AnabranchError]] = []  # why it may stop
        self.log: list[tuple[Event, list[Action]]] = []
        self.end: Finish | Stop | None = None
        self.give(SlotsChanged(self.now, 3))

    # The network.

    def give(self, event: Event) -> None:
        self._learn(event)
        actions = self.scheduler.handle(event)
        self.log.append((event, actions))
        assert not (self.end and actions), "actions after the end"
        for action in actions:
            self._take(action)
        self.check()

    def deliver(self, index: int) -> None:
        if self.network:
            self.give(self.network.pop(index % len(self.network))(self.now))

    def deliver_again(self, index: int) -> None:
        if self.sent:
            self.give(self.sent[index % len(self.sent)](self.now))

    def send(self, make: Callable[..., Event], *args: object) -> None:
        message = partial(_at, make, args)
        self.network.append(message)
        self.sent.append(message)

    def tick(self, seconds: float | None = None) -> None:
        """Let time pass, or sleep until the scheduler wants to be woken."""
        wake_at = self.scheduler.wake_at
        if seconds is None and wake_at is not None:
            self.now = max(self.now, wake_at)
        else:
            self.now += seconds or 1.0
        self.give(Tick(self.now))

    # What the scheduler can know.

    def _learn(self, event: Event) -> None:
        match event:
            case WorkerJoined(worker=worker) if worker in self.asked:
                self.asked.discard(worker)
                self.usable[worker] = None
            case WorkerLost(worker=worker):
                self.asked.discard(worker)
                self.usable.pop(worker, None)
            case TaskDone(task=task, run=run) | TaskFailed(task=task, run=run):
                for worker, start in self.usable.items():
                    if start and start.run == run:
                        self.usable[worker] = None
                if isinstance(event, TaskDone):
                    self.known_done.add(task)
                elif isinstance(event.error, InputError) and task not in self.known_done:
                    self.excuses.append(InputError)
            case WorkerLeaving(worker=worker):
                self.leaving.add(worker)
            case LookedUp(task=task, found=True):
                self.known_done.add(task)

    def _take(self, action: Action) -> None:
        assert self.end is None, "the end is the last action"
        match action:
            case StartWorker(worker=worker):
                assert worker not in self.asked | self.usable.keys() | self.alive.keys()
                self.asked.add(worker)
                self.starting.append(worker)
            case StartTask(task=task, worker=worker):
                assert task not in self.known_done, "a finished task was started again"
                assert self.known_done.issuperset(self.tasks[task].after), "it began before what it waits for"
                assert worker in self.usable.keys() - self.leaving, "a lost or leaving worker was given a task"
                assert self.usable[worker] is None, "a busy worker was given a second task"
                self.usable[worker] = action
                self.starts[task] += 1
                if worker in self.alive:
                    self.alive[worker] = action
            case StopWorker(worker=worker):
                assert worker in self.asked | self.usable.keys(), "a lost or stopped worker was stopped"
                self.asked.discard(worker)
                self.usable.pop(worker, None)
                self.alive.pop(worker, None)
                if worker in self.starting:
                    self.starting.remove(worker)
            case LookUp(task=task, look=look):
                assert task not in self.known_done
                self._look_up(task, look)
            case Finish() | Stop():
                self.end = action

    def _look_up(self, task: int, look: int) -> None:
        if self.store_is_down:
            self.send(LookUpFailed, task, look, TemporaryError("the store is down"))
        else:
            self.send(LookedUp, task, look, task in self.receipts)

    def check(self) -> None:
        """What must hold after each step, whatever has happened."""
        copies: dict[int, int] = {}
        for start in self.usable.values():
            if start:
                copies[start.task] = copies.get(start.task, 0) + 1
        assert all(count <= 2 for count in copies.values()), "more than a run and its twin"
        assert not (self.end is None and copies.keys() & self.known_done), "a useless run goes on"
        assert all(count <= self.limits.attempts + 1 for count in self.starts.values())
        assert self.known_done <= self.receipts, "done without a receipt"
        assert len((self.usable.keys() | self.asked) - self.leaving) <= 8
        if isinstance(self.end, Finish):
            assert self.receipts == set(self.starts)
        if isinstance(self.end, Stop) and not isinstance(self.end.error, TemporaryError):
            assert type(self.end.error) in self.excuses

    # What can happen. Every choice is a number that is taken modulo what there is.

    def running(self, index: int) -> int | None:
        busy = [worker for worker, start in self.alive.items() if start]
        return busy[index % len(busy)] if busy else None

    def join(self, index: int) -> None:
        if self.starting:
            worker = self.starting.pop(index % len(self.starting))
            self.alive[worker] = None
            self.send(WorkerJoined, worker)

    def fail_to_join(self, index: int) -> None:
        if self.starting:
            self.send(WorkerLost, self.starting.pop(index % len(self.starting)), "did not start")

    def finish(self, index: int, *, answer: bool = True) -> None:
        worker = self.running(index)
        if worker is not None:
            start = self.alive[worker]
            assert start
            self.receipts.add(start.task)
            self.alive[worker] = None
            if answer:
                self.send(TaskDone, start.task, start.run)

    def fail(self, index: int, error: AnabranchError) -> None:
        worker = self.running(index)
        if worker is not None:
            start = self.alive[worker]
            assert start
            self.alive[worker] = None
            self.excuses += [ResourceError] * isinstance(error, ResourceError)
            self.send(TaskFailed, start.task, start.run, error)

    def crash(self, index: int, *, receipt: bool) -> None:
        """The worker dies, just after or some time before its receipt."""
        if self.alive:
            worker = list(self.alive)[index % len(self.alive)]
            start = self.alive.pop(worker)
            if start and receipt:
                self.receipts.add(start.task)
            self.send(WorkerLost, worker, "crashed")

    def lose_touch(self, index: int) -> None:
        """The worker cannot be reached, but goes on, and its answers may still come through."""
        if self.alive:
            self.send(WorkerLost, list(self.alive)[index % len(self.alive)], "unreachable")

    def drain(self, index: int, seconds: float) -> None:
        if self.usable:
            worker = list(self.usable)[index % len(self.usable)]
            was_idle = self.usable[worker] is None
            self.give(WorkerLeaving(self.now, worker, self.now + seconds))
            assert self.end or (worker in self.usable) != was_idle, "an idle one is stopped at once"

    def report(self, index: int, percent: int) -> None:
        worker = self.running(index)
        if worker is not None:
            start = self.alive[worker]
            assert start
            done = self.tasks[start.task].size_bytes * percent // 100
            self.send(TaskProgress, start.task, start.run, done)

    def hang(self, index: int) -> None:
        """The worker never answers, nor does it leave a receipt."""
        worker = self.running(index)
        if worker is not None:
            self.alive[worker] = None

    def slots(self, count: int) -> None:
        self.give(SlotsChanged(self.now, count))

    # The end.

    def calm_down(self) -> None:
        """Nothing fails any more (what hangs, hangs): the run must come to an end within few steps."""
        self.store_is_down = False
        self.slots(3)
        for _ in range(100 * (len(self.tasks) + 5)):
            if self.end:
                break
            while self.starting:
                self.join(0)
            while self.running(0) is not None:
                self.finish(0)
            if self.network:
                self.deliver(0)
            else:
                assert self.scheduler.wake_at is not None, "waits for nothing"
                self.tick()
        assert self.end, "no end"
        assert not self.scheduler.handle(Tick(self.now + 1e6))
        self.replay()

    def replay(self) -> None:
        """The same events give the same actions."""
        again = self.make()
        for event, actions in self.log:
            assert repr(again.handle(event)) == repr(actions)


def _at(make: Callable[..., Event], args: tuple[object, ...], now: float) -> Event:
    return make(now, *args)


INPUT_ERROR = InputError("model.safetensors: a value is not finite")


class Cluster(RuleBasedStateMachine):
    """Hypothesis looks for the shortest wrong story."""

    index = st.integers(0, 7)

    @initialize(sizes=st.lists(st.sampled_from([0, 1, 500 * MB, 500 * MB, 4000 * MB]), max_size=6))
    def begin(self, sizes: list[int]) -> None:
        self.world = World(sizes)

    @rule(index=index)
    def join(self, index: int) -> None:
        self.world.join(index)
        self.world.deliver(-1)

    @rule(index=index)
    def fail_to_join(self, index: int) -> None:
        self.world.fail_to_join(index)

    @rule(index=index)
    def deliver(self, index: int) -> None:
        self.world.deliver(index)

    @rule(index=index)
    def deliver_again(self, index: int) -> None:
        self.world.deliver_again(index)

    @rule(index=index, answer=st.booleans())
    def finish(self, index: int, answer: bool) -> None:
        self.world.finish(index, answer=answer)

    @rule(index=index)
    def fail_for_now(self, index: int) -> None:
        self.world.fail(index, TemporaryError("slow down"))

    @rule(index=index)
    def run_out_of_disk(self, index: int) -> None:
        self.world.fail(index, ResourceError("disk full"))

    @rule(index=index)
    def fail_for_good(self, index: int) -> None:
        if index == 0:
            self.world.fail(index, INPUT_ERROR)

    @rule(index=index, receipt=st.booleans())
    def crash(self, index: int, receipt: bool) -> None:
        self.world.crash(index, receipt=receipt)

    @rule(index=index)
    def lose_touch(self, index: int) -> None:
        self.world.lose_touch(index)

    @rule(index=index, seconds=st.sampled_from([-1.0, 0.0, 30.0, inf]))
    def drain(self, index: int, seconds: float) -> None:
        self.world.drain(index, seconds)

    @rule(index=index)
    def hang(self, index: int) -> None:
        self.world.hang(index)

    @rule(index=index, percent=st.sampled_from([0, 1, 50, 100, 200]))
    def report(self, index: int, percent: int) -> None:
        self.world.report(index, percent)

    @rule(count=st.integers(0, 5))
    def slots(self, count: int) -> None:
        self.world.slots(count)

    @rule(seconds=st.sampled_from([None, 0.5, 12.0, 90.0]))
    def tick(self, seconds: float | None) -> None:
        self.world.tick(seconds)

    @rule()
    def break_or_repair_the_store(self) -> None:
        self.world.store_is_down = not self.world.store_is_down

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.calm_down()


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    stateful_step_count=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)

STEPS: list[tuple[int, Callable[[World, random.Random], None]]] = [
    (8, lambda w, r: w.join(r.randrange(99))),
    (24, lambda w, r: w.deliver(r.randrange(99))),
    (12, lambda w, r: w.finish(r.randrange(99))),
    (4, lambda w, r: w.tick(r.choice([None, 0.5, 12.0, 90.0]))),
    (2, lambda w, r: w.deliver_again(r.randrange(999))),
    (1, lambda w, r: w.finish(r.randrange(99), answer=False)),
    (2, lambda w, r: w.crash(r.randrange(99), receipt=r.random() < 0.3)),
    (1, lambda w, r: w.lose_touch(r.randrange(99))),
    (1, lambda w, r: w.hang(r.randrange(99))),
    (2, lambda w, r: w.fail(r.randrange(99), TemporaryError("slow down"))),
    (4, lambda w, r: w.report(r.randrange(99), r.choice([0, 1, 50, 100]))),
    (1, lambda w, r: w.fail_to_join(r.randrange(99))),
    (1, lambda w, r: w.drain(r.randrange(99), r.choice([0.0, 30.0, inf]))),
    (1, lambda w, r: w.slots(r.randrange(6))),
]


def wander(seed: int) -> World:
    """One random story: 150 steps of trouble, then calm."""
    chance = random.Random(seed)
    world = World([chance.choice([1, 200, 500, 500, 4000]) * MB for _ in range(chance.randrange(1, 13))], seed=seed)
    weights = [weight for weight, _ in STEPS]
    for _ in range(150):
        if world.end:
            break
        (_, step), *_ = chance.choices(STEPS, weights)
        step(world, chance)
        if chance.random() < 0.005:
            world.fail(chance.randrange(99), chance.choice([ResourceError("disk full"), INPUT_ERROR]))
        if chance.random() < 0.02:
            world.store_is_down = not world.store_is_down
    world.calm_down()
    return world


def wander_all(seeds: range) -> None:
    ends = {Finish: 0, Stop: 0}
    for seed in seeds:
        try:
            ends[type(wander(seed).end)] += 1
        except AssertionError as error:
            pytest.fail(f"seed {seed}: {error!r}")
    # Mostly it gets through, so the stories above are not all cut short.
    assert ends[Finish] > ends[Stop] > 0


@pytest.mark.parametrize("first", range(0, 3000, 1000))
def test_thousands_of_event_orders(first: int) -> None:
    wander_all(range(first, first + 1000))


@pytest.mark.slow
def test_many_more_event_orders() -> None:
    wander_all(range(10_000, 30_000))
