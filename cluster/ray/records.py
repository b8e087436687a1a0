"""What the scheduler knows of each task and of each run."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from ...engine.errors import AnabranchError
from .events import ShardTask


@dataclass(slots=True)
class Run:
    """A task that was handed to a worker and is not settled."""

    task: int
    worker: int
    started: float
    done_bytes: int = 0
    projected_seconds: float = 0.0
    late: bool = False
    overdue: bool = False
    looked: bool = False


Entry = tuple[bool, int, int]
"""(yields to others, -bytes up to the end of what follows, id): the longest way first."""


@dataclass(slots=True)
class TaskState:
    """What is known of one task.

    `entry` is its place in the ready heap, or in the timers until `not_before`; another entry of the task in
    the heap is stale. `look` is the open look-up, 0 for none.
    """

    task: ShardTask
    runs: list[int] = field(default_factory=list)
    done: bool = False
    failures: int = 0
    resource_failures: int = 0
    timeouts: int = 0
    not_before: float = -inf
    entry: Entry | None = None
    look: int = 0
    error: AnabranchError | None = None
    awaited: int = 0
    """Tasks that must be done before it and are not."""
    followers: list[int] = field(default_factory=list)
    """Tasks that wait for it."""
