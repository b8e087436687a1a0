"""One step of a run: ask the outputs what is done, have the rest done, and gather the receipts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

from ..plan import share_reading
from .protocols import Member, Progress, Runner
from .shard import Shard
from .work import R, Work


@dataclass(frozen=True, slots=True)
class Gathered(Generic[R]):
    """The receipts of a step, by place of the member and index of the shard."""

    found: Mapping[int, Mapping[int, R]]
    """Those that were there."""
    made: Mapping[int, Mapping[int, R]]
    """Those of this run."""

    def of(self, place: int) -> dict[int, R]:
        """One per shard, in their order."""
        return dict(sorted({**self.found[place], **self.made[place]}.items()))


def gather(
    work: Work[R], members: Sequence[Member], places: Sequence[int], runner: Runner, progress: Progress
) -> Gathered[R]:
    """Bring some members of a group to a receipt for every shard.

    Args:
        work: what is done.
        members: recipes that share a reading.
        places: which of them take part.
        runner: where it is done.
        progress: is told of the step and its shards.
    """
    group = share_reading([member.plan for member in members])
    indices = range(len(group.plans[0].shards))
    found = {place: work.receipts(members[place].output) for place in places}
    for place, receipts in found.items():
        for index in receipts:
            work.see(members[place].output, index)
    made: dict[int, dict[int, R]] = {place: {} for place in places}
    lacking = [Shard(index, tuple(place for place in places if index not in found[place])) for index in indices]
    shards = [shard for shard in lacking if shard.members]
    whole = work.read_bytes(group, [Shard(index, tuple(places)) for index in indices])
    progress.phase(work.step, whole, max(0, whole - work.read_bytes(group, shards)))
    open_members = {shard.index: set(shard.members) for shard in shards}

    def done(index: int, receipts: Mapping[int, R]) -> None:
        for place, receipt in receipts.items():
            made[place][index] = receipt
            work.see(members[place].output, index)
        open_members[index] -= receipts.keys()
        if not open_members[index]:
            progress.shard_done(index)

    if shards:
        runner.run(work, shards, done)
    return Gathered(found, made)
