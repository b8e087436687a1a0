"""Plans that are carried out together: which of them can share one reading of their inputs, and what it reads. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..models import Checkpoint, TensorLocation
from .plan import Plan


@dataclass(frozen=True)
class SharedReading:
    """Plans whose outputs hold the same tensors in the same order and files, so that one reading feeds all of them."""

    plans: tuple[Plan, ...]
    sources: tuple[Checkpoint, ...]
    """The distinct inputs of all plans."""
    places: tuple[tuple[int, ...], ...]
    """Per plan, which of these each of its own sources is."""

    def reads(self, position: int, members: Iterable[int]) -> list[tuple[int, TensorLocation]]:
        """What these plans read for the task at that position, each once: the source and the tensor in it."""
        found: dict[tuple[int, TensorLocation], None] = {}
        for member in members:
            task, places = self.plans[member].tasks[position], self.places[member]
            for origin, location in zip(task.origins, task.sources, strict=True):
                if location is not None:
                    found[places[origin], location] = None
        return list(found)

    def read_bytes(self, position: int, members: Sequence[int]) -> int:
        """Stored bytes that reading the inputs of the task at that position once needs."""
        if len(members) == 1:
            return self.plans[members[0]].tasks[position].read_bytes
        return sum(location.read_bytes for _, location in self.reads(position, members))

    def folded_bytes(self, position: int, members: Sequence[int]) -> int:
        """As `read_bytes`, in windows: see `TensorTask.folded_bytes`."""
        if len(members) == 1:
            return self.plans[members[0]].tasks[position].folded_bytes
        return sum(location.info.nbytes for _, location in self.reads(position, members))

    @cached_property
    def most_reads(self) -> int:
        """The largest number of tensors that are read for one of the output."""
        if len(self.plans) == 1:
            return self.plans[0].most_models + 1
        members = range(len(self.plans))
        return max(len(self.reads(position, members)) for position in range(len(self.plans[0].tasks)))


def share_reading(plans: Sequence[Plan]) -> SharedReading:
    """Plans that may share a reading (see `why_apart`), with their distinct inputs; one plan is a group, too."""
    sources: list[Checkpoint] = []
    places = []
    for plan in plans:
        free = list(range(len(sources)))
        own = []
        for checkpoint in plan.sources:
            place = next((i for i in free if _identity(sources[i]) == _identity(checkpoint)), None)
            if place is None:
                place = len(sources)
                sources.append(checkpoint)
            else:
                free.remove(place)  # a recipe that names a model twice reads it twice, as it does alone
            own.append(place)
        places.append(tuple(own))
    return SharedReading(tuple(plans), tuple(sources), tuple(places))


def why_apart(plans: Sequence[Plan], other: Plan) -> str:
    """Why `other` cannot share a reading with these plans, which share one; empty when it can."""
    first = plans[0]
    known = {_identity(checkpoint) for plan in plans for checkpoint in plan.sources}
    if not any(_identity(checkpoint) in known for checkpoint in other.sources):
        return "it has no input in common with them"
    if [(task.name, task.numel) for task in first.tasks] != [(task.name, task.numel) for task in other.tasks]:
        return "its output has other tensors, or the same in another order"
    if [shard.tasks for shard in first.shards] != [shard.tasks for shard in other.shards]:
        return "its output is cut into other files: `shard_size`, or the bytes of `out_dtype`, differ"
    return ""


def _identity(checkpoint: Checkpoint) -> Hashable:
    return checkpoint.url, checkpoint.files, repr(checkpoint.decoding)
