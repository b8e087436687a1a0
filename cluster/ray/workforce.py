"""The workers of a run: asked for, idle or busy; how many more to ask for, and when to give up hope. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from ...engine.errors import TemporaryError
from .limits import Limits


@dataclass(slots=True)
class Member:
    """One worker, from when it is asked for until it is lost or stopped."""

    joined: bool = False
    leaving: bool = False
    deadline: float = inf
    """When it will be taken away."""
    run: int | None = None
    bytes_per_second: float = 0.0
    """Its best run so far."""


class Workforce:
    """Which workers there are.

    Args:
        limits: see Limits.
        seed: of the jitter of backoffs.
        wake: asks for a look at the workers at that time.
    """

    def __init__(self, limits: Limits, seed: int, wake: Callable[[float], None]) -> None:
        self._limits = limits
        self._seed = seed
        self._wake = wake
        self.slots = 0
        """Workers that the cluster holds."""
        self.members: dict[int, Member] = {}
        self.joined = 0
        """Members that are ready or busy."""
        self._staying = 0
        self._idle: OrderedDict[int, None] = OrderedDict()  # longest idle first
        self._failed_starts = 0
        self._start_after = -inf
        self._empty_since: float | None = None
        self._loss = "none has started"
        self._last = 0

    def join(self, number: int) -> None:
        """A worker that was asked for is ready."""
        member = self.members.get(number)
        if member is None or member.joined:
            return
        member.joined = True
        self.joined += 1
        self._idle[number] = None
        self._failed_starts = 0

    def lose(self, number: int, reason: str, now: float) -> int | None:
        """Forget a member that was lost; returns the run that it had."""
        member = self.members[number]
        self._loss = reason
        if not member.joined:
            self._failed_starts += 1
            self._start_after = now + self._limits.wait_seconds(self._failed_starts, f"{self._seed}/workers")
            self._wake(self._start_after)
        self.forget(number)
        return member.run

    def forget(self, number: int) -> None:
        """Count a member no more."""
        member = self.members.pop(number)
        self.joined -= member.joined
        self._staying -= not member.leaving
        self._idle.pop(number, None)

    def leave(self, number: int, deadline: float) -> None:
        """A member will be taken away then: it gets no other run."""
        member = self.members[number]
        self._staying -= not member.leaving
        member.leaving, member.deadline = True, deadline

    @property
    def has_idle(self) -> bool:
        return bool(self._idle)

    def occupy(self, run: int) -> int:
        """Give the run to the member that has been idle longest; returns its number."""
        number, _ = self._idle.popitem(last=False)
        self.members[number].run = run
        return number

    def free(self, number: int) -> None:
        """A member's run is over."""
        self.members[number].run = None
        if not self.members[number].leaving:
            self._idle[number] = None

    def grow(self, unfinished: int, now: float) -> range:
        """Numbers of members to start: as many as there is room and use for, and one for a twin of the last task."""
        # Those that leave are no use for what comes, and the room that they have is none of the slots any more.
        missing = min(self.slots, unfinished + 1) - self._staying if now >= self._start_after else 0
        started = range(self._last + 1, self._last + 1 + max(missing, 0))
        self.members.update((number, Member()) for number in started)
        self._staying += len(started)
        self._last += len(started)
        if self.joined:
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = now
            self._wake(now + self._limits.no_worker_seconds)
        return started

    def given_up(self, now: float) -> TemporaryError | None:
        """What to end with when there has been no worker for too long."""
        if self._empty_since is None or now < self._empty_since + self._limits.no_worker_seconds:
            return None
        return TemporaryError(
            f"no worker for {self._limits.no_worker_seconds:.0f} s (room for {self.slots}); last loss: {self._loss}",
            hint="Run the same command again when the cluster has room: it goes on where it stopped.",
        )
