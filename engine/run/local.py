"""All work of a run in this process."""

from __future__ import annotations

from collections.abc import Sequence

from ..kernels import Kernels
from ..plan import SharedReading, share_reading
from ..storage import Store
from .memory import MemoryPlan
from .meter import Meter
from .protocols import Member
from .shard import Shard
from .work import Done, R, Work, Worker


class LocalRunner:
    """All work in this process.

    Args:
        members: recipes that share a reading.
        memory: this process's share of memory; see `worker_memory`.
        kernels: where the arithmetic runs.
        meter: gets seconds and bytes.
    """

    def __init__(self, members: Sequence[Member], memory: MemoryPlan, kernels: Kernels, meter: Meter) -> None:
        self._members = members
        self._group = share_reading([member.plan for member in members])
        self._kernels = kernels
        self._meter = meter
        self.memory = memory

    def run(self, work: Work[R], shards: Sequence[Shard], done: Done[R]) -> None:
        outputs = [member.output for member in self._members]
        worker = Worker(self._group, _stores(self._group, self._members), outputs, self.memory, self._kernels)
        work.do(worker, self._meter, shards, done)


def _stores(group: SharedReading, members: Sequence[Member]) -> list[Store]:
    """Where the bytes of each of the group's sources are."""
    stores = {
        place: store
        for member, places in zip(members, group.places, strict=True)
        for place, store in zip(places, member.inputs.stores, strict=True)
    }
    return [stores[place] for place in range(len(group.sources))]
