"""What goes wrong on a cluster, in a line each for people, and counted: the scheduler itself says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

from ...engine.errors import AnabranchError, ResourceError, TemporaryError
from ...engine.run import counted
from .events import (
    Action,
    Event,
    LookedUp,
    ShardTask,
    SlotsChanged,
    StartTask,
    StopWorker,
    TaskDone,
    TaskFailed,
    WorkerLeaving,
    WorkerLost,
)


class Incidents:
    """Follows one run of the scheduler; what goes well is not its business.

    Args:
        tasks: those of the run.
        note: gets each line.
        retried: called each time a task is handed out again.
    """

    def __init__(self, tasks: Iterable[ShardTask], note: Callable[[str], None], retried: Callable[[], None]) -> None:
        self._names = {task.id: task.name for task in tasks}
        self._note = note
        self._retried = retried
        self._slots: int | None = None
        self._tried: set[int] = set()
        self._done: set[int] = set()
        self._leaving: set[int] = set()
        self._runs: dict[int, tuple[int, int]] = {}  # run: task, worker

    def event(self, event: Event) -> None:
        """Call with each event before the scheduler handles it."""
        match event:
            case SlotsChanged(slots=slots) if slots != self._slots:
                self._slots = slots
                self._note(f"room for {counted(slots, 'worker')}")
            case WorkerLeaving(worker=worker, deadline=deadline, now=now):
                self._leaving.add(worker)
                when = f" and goes in {deadline - now:.0f} s" if deadline < inf else ""
                self._note(f"worker {worker} gets no more shards: its node is being drained{when}")
            case WorkerLost(worker=worker, reason=reason):
                names = self._close(worker)
                doing = f" with {', '.join(names)}" if names else ""
                self._note(f"worker {worker} was lost{doing}: {reason}")
            case TaskFailed(task=task, run=run, error=error):
                self._runs.pop(run, None)
                self._failed(task, error)
            case TaskDone(task=task, run=run):
                self._runs.pop(run, None)
                self._done.add(task)
            case LookedUp(task=task, found=True):
                self._done.add(task)
            case _:
                pass

    def action(self, action: Action) -> None:
        """Call with each action of the scheduler, in their order."""
        match action:
            case StartTask(task=task, worker=worker, run=run):
                if task in self._tried:
                    self._again(task, worker)
                self._tried.add(task)
                self._runs[run] = task, worker
            case StopWorker(worker=worker):
                finished = [self._names[t] for t, w in self._runs.values() if w == worker and t in self._done]
                for name in self._close(worker):
                    why = "another worker has finished it" if name in finished else "it takes too long"
                    self._note(f"worker {worker} is stopped with {name}: {why}")
            case _:
                pass

    def _failed(self, task: int, error: AnabranchError) -> None:
        # Any other error ends the run and is what the user sees of it.
        if task not in self._done and isinstance(error, TemporaryError | ResourceError):
            self._note(f"{self._names[task]} failed: {error.message}")

    def _again(self, task: int, worker: int) -> None:
        self._retried()
        others = [w for t, w in self._runs.values() if t == task]
        why = "will be gone before it is done" if self._leaving.intersection(others) else "is slow with it"
        still = f"; worker {', '.join(map(str, others))} {why}" if others else ""
        self._note(f"{self._names[task]} is given to worker {worker}{still}")

    def _close(self, worker: int) -> list[str]:
        """Forget the runs of a worker; returns the names of their tasks."""
        closed = [run for run, (_, w) in self._runs.items() if w == worker]
        return [self._names[self._runs.pop(run)[0]] for run in closed]
