"""Shards that several workers write: which parts there are, what a worker is told of its part, what has come back."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from ...engine.errors import AnabranchError
from ...engine.plan import Plan, Survey
from ...engine.run import Part, PartRecord, Place, Places, Shard, begin_shard
from ...engine.storage import PartedStore, Store
from .cuts import Stretch, cut_last, parted_tasks
from .events import ShardTask
from .limits import Limits


@dataclass(frozen=True, slots=True)
class PartErrand:
    """What a worker is asked for: a part, with the record of the one ahead of it where that is finished."""

    shard: Shard
    part: Part
    before: PartRecord | None


@dataclass(frozen=True, slots=True)
class EndErrand:
    """What a worker is asked for: to make a shard visible of which all parts are there."""

    shard: Shard
    records: Sequence[PartRecord]


BEGUN_AT_ONCE = 8
"""Files that are begun, or given up, at the same time: each is a request where they lie in an object store."""
BEGUN_AHEAD = 16
"""Files that are begun before anybody asks for them, so that the driver does not wait."""
Errand = Shard | PartErrand | EndErrand
"""What a task is to a worker."""


@dataclass(slots=True)
class _Parted:
    """A shard in parts."""

    name: str
    stretches: list[tuple[Place, Place]]
    waits: list[bool]
    tasks: list[int]
    """Of its parts in the order of the file, then of its end."""
    token: Future[str] | None = None
    """Of the unfinished file, once that is being begun."""
    records: dict[int, PartRecord] = field(default_factory=dict)
    """By task."""


def parted_store(store: Store) -> PartedStore | None:
    """The store where several workers may write one file of it, else None."""
    return store if isinstance(store, PartedStore) and store.takes_ranges else None


class Parting:
    """The tasks of a run in which the last shards are written in parts.

    Args:
        shards: what is wanted, by task.
        tasks: one for each of them.
        plan: of the run's first recipe.
        survey: what whole models decided for it.
        store: where several may write one file of it; None: no shard is cut.
        workers: how many there will be.
        limits: see Limits.
        run_id: letters and digits that mark unfinished files.
    """

    def __init__(
        self,
        shards: Mapping[int, Shard],
        tasks: Sequence[ShardTask],
        plan: Plan,
        survey: Survey | None,
        store: PartedStore | None,
        *,
        workers: int,
        limits: Limits,
        run_id: str,
    ) -> None:
        self._shards = dict(shards)
        self._plan = plan
        self._survey = survey
        self._store = store
        self._run_id = run_id
        self._parted: dict[int, _Parted] = {}
        """By index of the shard."""
        self._pool = ThreadPoolExecutor(BEGUN_AT_ONCE, "begin")
        self._number = max(self._shards, default=-1)
        cuts = cut_last(tasks, workers, limits) if store is not None else {}
        self.tasks = [each for task in tasks for each in self._cut(task, cuts.get(task.id, ()))]
        sizes = {self._shards[task.id].index: task.size_bytes for task in tasks}
        self._next = deque(sorted(self._parted, key=lambda index: -sizes[index]))
        """Shards whose files may not be begun, about as they will be asked for."""
        self._ahead: set[int] = set()
        """Those whose files were begun before anybody asked for them."""

    def _cut(self, task: ShardTask, stretches: Sequence[Stretch]) -> list[ShardTask]:
        """The tasks of a shard that is cut near those shares; the task itself where it has no such places."""
        if not stretches or self._store is None:
            return [task]
        index = self._shards[task.id].index
        places = Places(self._plan, index, self._survey)
        least_bytes = self._store.range_rules(self._plan.shards[index].size).least_bytes
        found = places.stretches([(stretch.begin, stretch.waits) for stretch in stretches], least_bytes)
        if len(found) < 2:
            return [task]
        waits = [waits for _, _, waits in found]
        lengths = [places.byte(end) - places.byte(begin) for begin, end, _ in found]
        made = parted_tasks(task, lengths, waits, self._number + 1)
        self._number += len(found)
        numbers = [each.id for each in made]
        self._shards.update(dict.fromkeys(numbers, self._shards[task.id]))
        self._parted[index] = _Parted(task.name, [(begin, end) for begin, end, _ in found], waits, numbers)
        return made

    def shard(self, task: int) -> Shard:
        """The shard of which a task is a part, or all."""
        return self._shards[task]

    def errand(self, task: int) -> Errand:
        """What a worker is asked for, when all that the task waits for is done.

        Raises:
            ResourceError, TemporaryError: the file cannot be begun.
        """
        shard = self._shards[task]
        parted = self._parted.get(shard.index)
        if parted is None:
            return shard
        place = parted.tasks.index(task)
        if place == len(parted.stretches):
            return EndErrand(shard, [parted.records[number] for number in parted.tasks[:-1]])
        part = Part(shard.index, *parted.stretches[place], self._token(shard.index, parted))
        return PartErrand(shard, part, parted.records[parted.tasks[place - 1]] if parted.waits[place] else None)

    def _token(self, index: int, parted: _Parted) -> str:
        """Of the shard's file; those that will be asked for next are begun meanwhile."""
        self._ahead.discard(index)
        token = parted.token or self._begin(index, parted)
        while self._next and len(self._ahead) < BEGUN_AHEAD:
            following = self._next.popleft()
            if following in self._parted and self._parted[following].token is None:
                self._begin(following, self._parted[following])
                self._ahead.add(following)
        return token.result()

    def _begin(self, index: int, parted: _Parted) -> Future[str]:
        assert self._store is not None, "a shard was cut"
        parted.token = self._pool.submit(begin_shard, self._plan, index, self._store, self._run_id)
        return parted.token

    def made(self, task: int, record: PartRecord) -> None:
        """A part is there."""
        parted = self._parted.get(self._shards[task].index)
        if parted is not None:
            parted.records[task] = record

    def finished(self, index: int) -> list[int]:
        """A shard has its receipt; returns all tasks of one that was cut, and none of others."""
        self._ahead.discard(index)
        parted = self._parted.pop(index, None)
        return parted.tasks if parted is not None else []

    def give_up(self) -> None:
        """Leave nothing of unfinished shards; what cannot be removed is left to `gc`."""
        for parted in self._parted.values():
            if parted.token is not None and not parted.token.cancel():
                self._pool.submit(self._remove, parted.name, parted.token)
        self._pool.shutdown()

    def _remove(self, name: str, token: Future[str]) -> None:
        assert self._store is not None, "a shard was cut"
        with contextlib.suppress(AnabranchError, OSError):
            self._store.give_up(name, token.result())
