"""What the shards of a run cost to fold, and what surrounds a worker of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..plan import Plan, SharedReading, passes_over, share_reading
from ..storage import Store, crosses_network
from .memory import Surroundings
from .protocols import Member
from .shard import Shard


def fold_bytes(plan: Plan, shards: Iterable[int]) -> int:
    """Bytes of inputs that the passes over these shards look at."""
    return shared_fold_bytes(share_reading([plan]), [Shard(index, (0,)) for index in shards])


def shared_fold_bytes(group: SharedReading, shards: Iterable[Shard]) -> int:
    """As `fold_bytes`, for plans that share a reading."""
    passes: dict[tuple[int, bool], int] = {}  # most tensors share their settings
    total = 0
    for shard in shards:
        for position in group.plans[0].shards[shard.index].tasks:
            turns = 0
            for member in shard.members:
                task = group.plans[member].tasks[position]
                kind = (id(task.settings), task.is_double)
                if kind not in passes:
                    passes[kind] = passes_over(task.settings, task.is_double)
                turns = max(turns, passes[kind])
            total += group.folded_bytes(position, shard.members) * turns
    return total


def surroundings(members: Sequence[Member], ray: bool = False, cuda: bool = False) -> Surroundings:
    """What a worker of this merge holds in memory besides the merge itself."""
    inputs = any(member.inputs.is_remote for member in members)
    return Surroundings(inputs, any(crosses_network(member.output.store.url) for member in members), ray, cuda)


def shared_stores(group: SharedReading, members: Sequence[Member]) -> list[Store]:
    """Where the bytes of each of the group's sources are."""
    stores = {
        place: store
        for member, places in zip(members, group.places, strict=True)
        for place, store in zip(places, member.inputs.stores, strict=True)
    }
    return [stores[place] for place in range(len(group.sources))]
