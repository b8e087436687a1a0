"""Work on shards: merging them, or taking statistics of them. Each piece leaves a receipt in the outputs.

Work says how its receipt is found, what it moves, and how one process does it. Whoever carries it out (this process, or
a cluster) only decides where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from ..kernels import Kernels
from ..output import OutputDirectory
from ..plan import Receipt, Round, SharedReading, Survey, SurveyPart
from ..storage import Store
from .folded_bytes import round_bytes, shared_fold_bytes
from .memory import MemoryPlan
from .meter import Meter
from .shard import Shard, ShardWorker
from .survey_worker import SurveyWorker

R = TypeVar("R")
"""A receipt."""
Step = Literal["survey", "check", "merge", "commit"]
Done = Callable[[int, Mapping[int, R]], None]
"""Is told of a shard, and by member of the receipts that it has now."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What one process works with."""

    group: SharedReading
    stores: Sequence[Store]
    """One per source of the group."""
    outputs: Sequence[OutputDirectory]
    """One per plan of the group."""
    memory: MemoryPlan
    kernels: Kernels


class Work(Protocol[R]):
    """One kind of work on the shards of a group; members are places in the group."""

    @property
    def step(self) -> Step:
        """Which step of a run it is."""

    @property
    def divides(self) -> bool:
        """Whether several workers may do parts of one shard."""

    def survey(self, member: int) -> Survey | None:
        """What whole models decided that it goes by, for that plan of the group."""

    def receipt(self, output: OutputDirectory, index: int) -> R | None:
        """What an output has of a shard; None where the work is still to be done."""

    def receipts(self, output: OutputDirectory) -> dict[int, R]:
        """As `receipt`, for all shards that have one."""

    def see(self, output: OutputDirectory, index: int) -> None:
        """A shard has its receipt now: remember what it must still be at the end of the run."""

    def read_bytes(self, group: SharedReading, shards: Iterable[Shard]) -> int:
        """Bytes of inputs that it looks at."""

    def moved_bytes(self, group: SharedReading, shard: Shard) -> int:
        """Bytes that it looks at or writes for one shard."""

    def do(self, worker: Worker, meter: Meter, shards: Sequence[Shard], done: Done[R]) -> None:
        """Work on each shard for its members, publish their receipts, then call `done` with them.

        Raises:
            InputError, ResourceError, TemporaryError: nothing of the failing shard is left behind, in no output.
        """


def receipts_of(work: Work[R], outputs: Sequence[OutputDirectory], shard: Shard) -> dict[int, R]:
    """By member, the receipts of a shard that are there."""
    found = {member: work.receipt(outputs[member], shard.index) for member in shard.members}
    return {member: receipt for member, receipt in found.items() if receipt is not None}


@dataclass(frozen=True, slots=True)
class MergeWork:
    """Writing shards."""

    surveys: tuple[Survey | None, ...]
    """Per plan, what whole models decided, where it asks for it."""
    step: Step = "merge"

    @property
    def divides(self) -> bool:
        return True

    def survey(self, member: int) -> Survey | None:
        return self.surveys[member]

    def receipt(self, output: OutputDirectory, index: int) -> Receipt | None:
        return output.receipt(index)

    def receipts(self, output: OutputDirectory) -> dict[int, Receipt]:
        return output.receipts()

    def see(self, output: OutputDirectory, index: int) -> None:
        output.see(index)

    def read_bytes(self, group: SharedReading, shards: Iterable[Shard]) -> int:
        return shared_fold_bytes(group, shards)

    def moved_bytes(self, group: SharedReading, shard: Shard) -> int:
        files = [group.plans[member].shards[shard.index] for member in shard.members]
        return self.read_bytes(group, [shard]) + sum(file.size for file in files)

    def do(self, worker: Worker, meter: Meter, shards: Sequence[Shard], done: Done[Receipt]) -> None:
        """Shards follow each other without a gap: while one is made durable the next is folded."""
        merging = ShardWorker(worker.group, worker.stores, worker.outputs, worker.memory, worker.kernels, meter)
        merging.merge(shards, self.surveys, lambda member, receipt: done(receipt.shard, {member: receipt}))


@dataclass(frozen=True, slots=True)
class SurveyWork:
    """A round of a survey, for members whose statistics are the same numbers."""

    round: Round
    step: Step = "survey"

    @property
    def divides(self) -> bool:
        return False

    def survey(self, member: int) -> None:
        """None: it is what decides."""

    def receipt(self, output: OutputDirectory, index: int) -> list[SurveyPart] | None:
        return output.survey_parts(self.round, index)

    def receipts(self, output: OutputDirectory) -> dict[int, list[SurveyPart]]:
        found = {index: self.receipt(output, index) for index in range(len(output.plan.shards))}
        return {index: parts for index, parts in found.items() if parts is not None}

    def see(self, output: OutputDirectory, index: int) -> None:
        """Statistics are in memory from now on: nothing that happens to their file matters."""

    def read_bytes(self, group: SharedReading, shards: Iterable[Shard]) -> int:
        return sum(round_bytes(group.plans[shard.members[0]], shard.index, self.round.kind) for shard in shards)

    def moved_bytes(self, group: SharedReading, shard: Shard) -> int:
        return self.read_bytes(group, [shard])

    def do(self, worker: Worker, meter: Meter, shards: Sequence[Shard], done: Done[list[SurveyPart]]) -> None:
        for shard in shards:
            first, group = shard.members[0], worker.group
            stores = [worker.stores[place] for place in group.places[first]]
            statistics = SurveyWorker(group.plans[first], stores, worker.memory, worker.kernels, meter)
            parts = statistics.survey(shard.index, self.round)
            for member in shard.members:
                worker.outputs[member].publish_survey_parts(self.round, parts)
            done(shard.index, dict.fromkeys(shard.members, parts))
