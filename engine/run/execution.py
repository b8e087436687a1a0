"""How a merge is carried out: threads, memory, device, and where; none of it changes a byte of the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from ..plan import share_reading
from ..storage import client_bytes, crosses_network
from .machine import available_cores
from .memory import MemoryPlan, Surroundings, plan_shared_memory
from .meter import Meter
from .protocols import Member, Runner

Device = Literal["cpu", "cuda"]
DEFAULT_MEMORY_BYTES = 2 << 30


class Place(Protocol):
    """Where shards are made if not in this process, such as a cluster."""

    @property
    def worker_bytes(self) -> int:
        """Memory that each of its workers holds besides the merge."""

    def open(
        self,
        members: Sequence[Member],
        memory: MemoryPlan,
        execution: Execution,
        meter: Meter,
        note: Callable[[str], None],
    ) -> AbstractContextManager[Runner]:
        """Bring the place up for the time of a merge.

        Args:
            members: recipes that share a reading.
            memory: of each worker.
            execution: how many workers, and their device.
            meter: gets seconds and bytes of all workers.
            note: gets a line for each thing that a user should know.
        """


@dataclass(frozen=True, slots=True)
class Execution:
    """How a merge is carried out."""

    workers: int | None = None
    """Fold threads, or workers of `place`; None: as many as the machine or the place has room for."""
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    """Limit of one worker process."""
    device: Device = "cpu"
    place: Place | None = None
    """Where shards are made; None: in this process."""
    trust_sizes: bool = False
    """Take shards of an earlier run for finished when their sizes fit, without reading them again."""

    @property
    def threads(self) -> int:
        """Fold threads of one process."""
        return 1 if self.place is not None else self.workers or available_cores()


def worker_memory(members: Sequence[Member], execution: Execution) -> MemoryPlan:
    """How a worker of recipes that share a reading spends its memory.

    Raises:
        ResourceError: the limit cannot hold the smallest worker.
    """
    outputs = [member.output.store.url for member in members]
    around = Surroundings(
        remote_inputs=any(member.inputs.is_remote for member in members),
        remote_output=any(map(crosses_network, outputs)),
        client_bytes=client_bytes([*outputs, *(store.url for member in members for store in member.inputs.stores)]),
        place_bytes=execution.place.worker_bytes if execution.place is not None else 0,
        cuda=execution.device == "cuda",
    )
    group = share_reading([member.plan for member in members])
    return plan_shared_memory(group, execution.memory_bytes, execution.threads, around)
