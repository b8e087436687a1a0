"""Which worker does which task next: a pure state machine, (state, event) -> actions.

No Ray, no clock, no I/O: time enters as `event.now`, the caller carries out the actions and reports what came
of them. An unknown outcome (worker lost, no answer) is settled by a look at the task's receipt in the output.
Nothing is kept here that a rerun could not rebuild from those receipts.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from math import inf
from typing import assert_never

from ...engine.errors import AnabranchError, ResourceError, TemporaryError
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
from .lateness import judge, note_progress
from .limits import Limits, Pace
from .records import Entry, Run, TaskState
from .workforce import Workforce

# Timers: (when, what, id). All due ones fire in this order.
_RETRY, _LOOK, _CHECK, _WORKERS = range(4)


class Scheduler:
    """Hands tasks to workers, the longest way to an end first, until each has a receipt or the run has failed.

    Call `handle` with each event, first SlotsChanged, and carry out the actions it returns; all is over with
    Finish or Stop, later events are ignored. Between events wait until `wake_at`, then send Tick. The same
    events give the same actions. Late, doubled and reordered answers do no harm.

    Args:
        tasks: what is still to be done (tasks with a valid receipt left out).
        limits: see Limits.
        seed: of the jitter of backoffs.
    """

    def __init__(self, tasks: Iterable[ShardTask], *, limits: Limits | None = None, seed: int = 0) -> None:
        self._limits = limits or Limits()
        self._seed = seed
        self._states = {task.id: TaskState(task) for task in tasks}
        self._pace = Pace(self._limits, max((s.task.size_bytes for s in self._states.values()), default=0))
        self._unfinished = len(self._states)
        self._workforce = Workforce(self._limits, seed, lambda when: self._at(when, _WORKERS, 0))
        self._runs: dict[int, Run] = {}
        self._ready: list[Entry] = []
        self._timers: list[tuple[float, int, int]] = []
        self._now = -inf
        self._last_run = self._last_look = 0
        self._actions: list[Action] = []
        self._over = False
        for state in self._states.values():
            state.awaited = len(state.task.after)
            for before in state.task.after:
                self._states[before].followers.append(state.task.id)
            if not state.awaited:
                self._queue(state, yields=False)

    @property
    def wake_at(self) -> float | None:
        """When the next Tick is due; None: nothing to wait for but events."""
        return self._timers[0][0] if self._timers and not self._over else None

    @property
    def done_tasks(self) -> int:
        """Tasks that have a receipt."""
        return len(self._states) - self._unfinished

    def handle(self, event: Event) -> list[Action]:
        """Take one event in and say what to do."""
        if self._over:
            return []
        self._actions = []
        self._now = max(self._now, event.now)
        self._apply(event)
        self._fire_timers()
        self._go_on()
        return self._actions

    def _apply(self, event: Event) -> None:
        match event:
            case TaskDone():
                self._task_done(event)
            case TaskFailed():
                self._task_failed(event)
            case TaskProgress():
                self._task_progress(event)
            case LookedUp():
                self._looked_up(event)
            case LookUpFailed():
                self._look_up_failed(event)
            case WorkerJoined(worker=number):
                self._workforce.join(number)
            case WorkerLost(worker=number, reason=reason):
                self._worker_lost(number, reason)
            case WorkerLeaving(worker=number, deadline=deadline):
                self._worker_leaving(number, deadline)
            case SlotsChanged(slots=slots):
                self._workforce.slots = slots
            case Tick():
                pass
            case _:
                assert_never(event)

    def _go_on(self) -> None:
        if self._unfinished == 0:
            self._end(Finish())
        if not self._over:
            self._start_tasks()
            self._start_workers()
            self._drop_stale_timers()

    # Answers about tasks.

    def _task_done(self, event: TaskDone) -> None:
        run = self._end_run(event.run)
        state = self._states[event.task]
        if run is not None:
            rate = self._pace.learn(state.task.size_bytes, self._now - run.started)
            if (worker := self._workforce.members.get(run.worker)) is not None:
                worker.bytes_per_second = max(worker.bytes_per_second, rate)
        self._set_done(state)

    def _set_done(self, state: TaskState) -> None:
        """Take a receipt as proof, whoever brings it and however late; other runs of the task are stopped."""
        if state.done:
            return
        state.done, state.entry, state.look = True, None, 0
        self._unfinished -= 1
        self._release(state.followers)
        for run in tuple(state.runs):
            worker = self._runs[run].worker
            self._end_run(run)
            self._stop_worker(worker)

    def _release(self, followers: Iterable[int]) -> None:
        for follower in map(self._states.__getitem__, followers):
            follower.awaited -= 1
            if not follower.awaited and not follower.done:
                self._queue(follower, yields=False)

    def _task_failed(self, event: TaskFailed) -> None:
        state = self._states[event.task]
        if not isinstance(event.error, TemporaryError | ResourceError):
            if not state.done:
                self._end(Stop(event.error))
            return
        run = self._end_run(event.run)
        if run is None:
            return
        if isinstance(event.error, ResourceError):
            # The next try must be another process, if possible on another node.
            self._stop_worker(run.worker)
            state.resource_failures += 1
        self._count_failure(state, event.error)
        state.not_before = self._now + self._backoff(state.failures, state.task.name)
        if state.resource_failures >= self._limits.resource_attempts:
            self._end(Stop(event.error))
        else:
            self._settle(state)

    def _task_progress(self, event: TaskProgress) -> None:
        run = self._runs.get(event.run)
        if run is None:
            return
        if note_progress(run, self._states[run.task].task.size_bytes, event.done_bytes, self._pace, self._now):
            self._judge(event.run)

    def _looked_up(self, event: LookedUp) -> None:
        state = self._states[event.task]
        if event.found:
            self._set_done(state)
        elif event.look == state.look:
            state.look = 0
            self._settle(state)

    def _look_up_failed(self, event: LookUpFailed) -> None:
        state = self._states[event.task]
        if event.look != state.look:
            return
        if not isinstance(event.error, TemporaryError):
            self._end(Stop(event.error))
        elif state.runs:
            # Somebody still works on it, the look was only to save a twin.
            state.look = 0
            self._settle(state)
        else:
            self._count_failure(state, event.error)
            if state.failures >= self._limits.attempts:
                self._give_up(state)
            else:
                self._at(self._now + self._backoff(state.failures, state.task.name), _LOOK, state.task.id)

    def _count_failure(self, state: TaskState, error: AnabranchError) -> None:
        state.failures += 1
        state.error = error
        state.entry = None  # if it waited for a twin, `_settle` decides anew

    def _settle(self, state: TaskState) -> None:
        """Queue the task if it needs a run, or a twin because its only run is late."""
        if state.done or state.look:
            return
        assert state.entry is None
        spent = state.failures >= self._limits.attempts
        if not state.runs:
            if spent:
                self._give_up(state)
            else:
                self._queue(state, yields=False)
        elif len(state.runs) == 1 and self._runs[state.runs[0]].late and not spent:
            self._queue(state, yields=not self._runs[state.runs[0]].overdue)

    def _queue(self, state: TaskState, *, yields: bool) -> None:
        state.entry = (yields, -max(state.task.size_bytes, state.task.path_bytes), state.task.id)
        if state.not_before > self._now:
            self._at(state.not_before, _RETRY, state.task.id)
        else:
            heappush(self._ready, state.entry)

    def _give_up(self, state: TaskState) -> None:
        last = state.error.message if state.error else "unknown"
        self._end(
            Stop(
                TemporaryError(
                    f"{state.task.name}: failed {state.failures} times; last: {last}",
                    hint="Run the same command again: it goes on where it stopped.",
                )
            )
        )

    # Workers.

    def _worker_leaving(self, number: int, deadline: float) -> None:
        worker = self._workforce.members.get(number)
        if worker is None:
            return
        self._workforce.leave(number, deadline)
        if worker.run is None:
            self._stop_worker(number)
        else:
            self._judge(worker.run)

    def _worker_lost(self, number: int, reason: str) -> None:
        if number not in self._workforce.members:
            return
        run = self._workforce.lose(number, reason, self._now)
        if run is not None:
            state = self._states[self._runs[run].task]
            self._end_run(run)
            self._lose_run(state, f"worker {number} was lost: {reason}")

    def _start_workers(self) -> None:
        self._actions += map(StartWorker, self._workforce.grow(self._unfinished, self._now))

    def _stop_worker(self, number: int) -> None:
        if number in self._workforce.members:
            self._workforce.forget(number)
            self._actions.append(StopWorker(number))

    # Runs.

    def _start_tasks(self) -> None:
        while self._workforce.has_idle and self._ready:
            entry = heappop(self._ready)
            state = self._states[entry[2]]
            if state.entry != entry:
                continue
            if state.runs:
                self._judge(state.runs[0])
                if state.entry != entry:
                    continue  # it was late by a measure that has changed
            state.entry = None
            self._stop_if_hopeless(state)
            self._last_run += 1
            worker = self._workforce.occupy(self._last_run)
            self._runs[self._last_run] = Run(state.task.id, worker, self._now)
            state.runs.append(self._last_run)
            self._at(self._now + self._pace.floor_seconds(state.task.size_bytes), _CHECK, self._last_run)
            self._actions.append(StartTask(state.task.id, worker, self._last_run))

    def _stop_if_hopeless(self, state: TaskState) -> None:
        """Before its twin starts, stop a run that would surely lose: its worker has better things to do."""
        for number in tuple(state.runs):
            run = self._runs[number]
            left = run.started + run.projected_seconds - self._now
            if left > self._limits.hopeless_factor * self._pace.expected_seconds(state.task.size_bytes):
                self._end_run(number)
                self._stop_worker(run.worker)
                self._count_failure(state, TemporaryError(f"worker {run.worker} was too slow"))

    def _end_run(self, number: int) -> Run | None:
        """Close a run and free its worker; None if it was closed before (a late or doubled answer)."""
        run = self._runs.pop(number, None)
        if run is None:
            return None
        self._states[run.task].runs.remove(number)
        worker = self._workforce.members.get(run.worker)
        if worker is not None:
            self._workforce.free(run.worker)
            if worker.leaving:
                self._stop_worker(run.worker)
        return run

    def _lose_run(self, state: TaskState, what: str) -> None:
        self._count_failure(state, TemporaryError(what))
        self._look_up(state)

    def _check_run(self, number: int) -> None:
        """Look at a run's age from time to time; a hung one is given up."""
        run = self._runs[number]
        state = self._states[run.task]
        hung = run.started + self._pace.hung_seconds(state.task.size_bytes, state.timeouts)
        if self._now >= hung:
            state.timeouts += 1
            self._end_run(number)
            self._stop_worker(run.worker)
            self._lose_run(state, f"worker {run.worker} gave no answer in {self._now - run.started:.0f} s")
            return
        again = min(self._judge(number), hung, self._now + self._pace.floor_seconds(state.task.size_bytes))
        self._at(again, _CHECK, number)

    def _judge(self, number: int) -> float:
        """Look at the receipt of a run that has become late, and see to a twin; returns when to judge it again."""
        run = self._runs[number]
        state = self._states[run.task]
        before = run.late, run.overdue
        again = judge(run, state.task.size_bytes, self._workforce.members[run.worker], self._pace, self._now)
        if run.late and not run.looked:
            run.looked = True
            self._look_up(state)  # perhaps only the answer was lost
        elif (run.late, run.overdue) != before:
            state.entry = None
            self._settle(state)
        return again

    def _look_up(self, state: TaskState) -> None:
        self._last_look += 1
        state.look = self._last_look
        self._actions.append(LookUp(state.task.id, state.look))

    # Time.

    def _at(self, when: float, what: int, key: int) -> None:
        heappush(self._timers, (when, what, key))

    def _fire_timers(self) -> None:
        while not self._over and self._timers and self._timers[0][0] <= self._now:
            _, what, key = heappop(self._timers)
            if what == _CHECK and key in self._runs:
                self._check_run(key)
            elif what == _RETRY:
                self._retry(self._states[key])
            elif what == _LOOK and self._states[key].look:
                self._look_up(self._states[key])
            elif what == _WORKERS:
                self._check_workers()

    def _retry(self, state: TaskState) -> None:
        if state.entry and state.not_before <= self._now:
            heappush(self._ready, state.entry)

    def _check_workers(self) -> None:
        error = self._workforce.given_up(self._now)
        if error is not None:
            self._end(Stop(error))

    def _drop_stale_timers(self) -> None:
        while self._timers and self._timers[0][1] == _CHECK and self._timers[0][2] not in self._runs:
            heappop(self._timers)

    def _backoff(self, failures: int, what: str) -> float:
        return self._limits.wait_seconds(failures, f"{self._seed}/{what}")

    def _end(self, action: Stop | Finish) -> None:
        if not self._over:
            self._over = True
            self._actions.append(action)
