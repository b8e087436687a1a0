"""What the scheduler is told (events) and what it asks for (actions).

All are plain values: `now` is seconds on any clock that does not go back; tasks, workers, runs and looks are
integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from ...engine.errors import AnabranchError


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One unit of work that leaves one receipt: an output shard, a part or the end of one, or one piece of the survey.

    Args:
        id: unique in the run.
        size_bytes: bytes read plus bytes written; only ratios between tasks matter.
        name: what the user knows it as (the shard's file name), for messages.
        after: tasks that must be done before.
        path_bytes: what it and the tasks that can only follow it one after the other move, if that is more.
    """

    id: int
    size_bytes: int
    name: str
    after: tuple[int, ...] = ()
    path_bytes: int = 0


# Events: what happened.


@dataclass(frozen=True, slots=True)
class SlotsChanged:
    """The cluster can hold `slots` workers now (user's limit included). The first event of a run."""

    now: float
    slots: int


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker that was asked for by StartWorker is ready."""

    now: float
    worker: int


@dataclass(frozen=True, slots=True)
class WorkerLeaving:
    """The worker's node is being drained: let the present run end, give it no other.

    A run that will not end before `deadline`, when the node is taken away, gets a twin at once.
    """

    now: float
    worker: int
    deadline: float = inf
    """On the clock of `now`; inf where nobody has said when."""


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """The worker died, did not start or cannot be reached: what it ran may or may not be done."""

    now: float
    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class TaskDone:
    """The worker returned the task's receipt."""

    now: float
    task: int
    run: int


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """The worker returned an error. TemporaryError and ResourceError are tried again, any other ends all."""

    now: float
    task: int
    run: int
    error: AnabranchError


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """The run has moved that much of the task's `size_bytes`.

    Optional: with it every few seconds a slow run is known long before it is late, without it only by its age.
    """

    now: float
    task: int
    run: int
    done_bytes: int


@dataclass(frozen=True, slots=True)
class LookedUp:
    """Answer to LookUp: whether the output holds a valid receipt (with its shard) of the task."""

    now: float
    task: int
    look: int
    found: bool


@dataclass(frozen=True, slots=True)
class LookUpFailed:
    """The output could not be read."""

    now: float
    task: int
    look: int
    error: AnabranchError


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; due at the latest at `Scheduler.wake_at`."""

    now: float


Event = (
    SlotsChanged
    | WorkerJoined
    | WorkerLeaving
    | WorkerLost
    | TaskDone
    | TaskFailed
    | TaskProgress
    | LookedUp
    | LookUpFailed
    | Tick
)


# Actions: what the caller has to do, in this order.


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Start a worker under this number, used only once. Answer: WorkerJoined or WorkerLost."""

    worker: int


@dataclass(frozen=True, slots=True)
class StopWorker:
    """Kill the worker, whatever it does; no answer is expected and a late one does no harm."""

    worker: int


@dataclass(frozen=True, slots=True)
class StartTask:
    """Hand the task to the worker. Answer: TaskDone, TaskFailed (both name `run`) or WorkerLost."""

    task: int
    worker: int
    run: int


@dataclass(frozen=True, slots=True)
class LookUp:
    """See whether the output holds the task's receipt. Answer: LookedUp or LookUpFailed (naming `look`)."""

    task: int
    look: int


@dataclass(frozen=True, slots=True)
class Stop:
    """The run has failed: kill the workers and raise `error`."""

    error: AnabranchError


@dataclass(frozen=True, slots=True)
class Finish:
    """Every task has a receipt: kill the workers and go on."""


Action = StartWorker | StopWorker | StartTask | LookUp | Stop | Finish
