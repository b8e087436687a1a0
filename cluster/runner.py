"""Runs plans to their manifests: surveys, shards, commit; a runner decides where the work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..engine.kernels.protocol import Kernels
from ..engine.output.commit import Output
from ..engine.output.manifest import Manifest, Receipt, SurveyPart
from ..engine.plan.demands import passes_over
from ..engine.plan.inputs import Inputs
from ..engine.plan.plan import Plan
from ..engine.plan.shared_reading import Group, make_group
from ..engine.run.memory import Surroundings, crosses_network, plan_group_memory
from ..engine.run.meter import Meter
from ..engine.run.shard import Shard, ShardWorker
from ..engine.run.survey import Round, Survey, SurveyWorker
from ..engine.storage.protocol import Store
from .surveys import take_surveys

Phase = Literal["survey", "merge", "commit"]


@dataclass(frozen=True)
class Member:
    """One recipe of a run: its inputs, and the output directory that it fills."""

    inputs: Inputs
    output: Output

    @property
    def plan(self) -> Plan:
        return self.inputs.plan


class Runner(Protocol):
    """Where the shards of a group of recipes are surveyed and merged; members are places in the group."""

    def survey(self, shards: Sequence[int], round_: Round, members: Sequence[int], done: Callable[[int], None]) -> None:
        """Take the statistics that these members agree on, publish each shard's parts for all, then call `done`."""

    def merge(
        self, shards: Sequence[Shard], surveys: Sequence[Survey | None], done: Callable[[int, Receipt], None]
    ) -> None:
        """Write each shard of its members, publish their receipts, then call `done` with each."""


class Progress(Protocol):
    """Is told what happens; sizes are bytes of inputs looked at."""

    def phase(self, name: Phase, total_bytes: int, done_bytes: int) -> None: ...

    def shard_done(self, shard: int) -> None: ...

    def note(self, text: str) -> None:
        """Something happened that a user should know, such as the loss of a worker."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run did."""

    manifest: Manifest
    merged_shards: tuple[int, ...]
    """Shards that this run made."""
    resumed_shards: tuple[int, ...]
    """Shards that were already there."""
    already_complete: bool


def run(members: Sequence[Member], runner: Runner, progress: Progress) -> list[Outcome]:
    """Bring the output directories of recipes that share a reading to their manifests, whatever is already there.

    Returns:
        One outcome per member.

    Raises:
        OutputConflictError: a directory belongs to another plan.
        InputError, ResourceError, TemporaryError: what stopped the run, for all; the same command goes on from there.
    """
    outcomes: dict[int, Outcome] = {}
    while len(outcomes) < len(members):
        for place, member in enumerate(members):
            if place not in outcomes and (finished := member.output.manifest()) is not None:
                member.output.clean(finished)
                shards = tuple(range(len(member.plan.shards)))
                outcomes[place] = Outcome(finished, (), shards, already_complete=True)
        missing = [place for place in range(len(members)) if place not in outcomes]
        try:
            if missing:
                outcomes |= _Run(members, missing, runner, progress).run()
        except FileNotFoundError:
            # A twin may have finished the same plan and removed our unfinished files: its bytes are ours.
            if all(members[place].output.manifest() is None for place in missing):
                raise
    return [outcomes[place] for place in range(len(members))]


class _Run:
    """Those members of a group whose outputs are not finished."""

    def __init__(self, members: Sequence[Member], missing: Sequence[int], runner: Runner, progress: Progress) -> None:
        self._members = members
        self._missing = missing
        self._runner = runner
        self._progress = progress
        self._group = make_group([member.plan for member in members])
        self._receipts: dict[int, dict[int, Receipt]] = {}

    def run(self) -> dict[int, Outcome]:
        missing = {place: self._members[place] for place in self._missing}
        for member in missing.values():
            member.inputs.check_config()
        for member in missing.values():
            member.output.open()
        surveys = take_surveys(self._members, self._missing, self._runner, self._progress)
        self._receipts = {place: member.output.receipts() for place, member in missing.items()}
        resumed = {place: tuple(sorted(receipts)) for place, receipts in self._receipts.items()}
        self._merge(surveys)
        self._progress.phase("commit", 0, 0)
        outcomes = {}
        for place, member in missing.items():
            manifest = member.output.finish(self._receipts[place], surveys[place], member.inputs.side_files())
            member.output.clean(manifest)
            made = tuple(sorted(self._receipts[place].keys() - set(resumed[place])))
            outcomes[place] = Outcome(manifest, made, resumed[place], already_complete=False)
        return outcomes

    def _merge(self, surveys: Sequence[Survey | None]) -> None:
        indices = range(len(self._group.plans[0].shards))
        lacking = {i: tuple(m for m in self._missing if i not in self._receipts[m]) for i in indices}
        shards = [Shard(index, members) for index, members in lacking.items() if members]
        whole = group_fold_bytes(self._group, [Shard(index, tuple(self._missing)) for index in indices])
        self._progress.phase("merge", whole, max(0, whole - group_fold_bytes(self._group, shards)))

        def done(place: int, receipt: Receipt) -> None:
            self._receipts[place][receipt.shard] = receipt
            if all(receipt.shard in self._receipts[other] for other in self._missing):
                self._progress.shard_done(receipt.shard)

        if shards:
            self._runner.merge(shards, surveys, done)


def fold_bytes(plan: Plan, shards: Iterable[int]) -> int:
    """Bytes of inputs that the passes over these shards look at."""
    return group_fold_bytes(make_group([plan]), [Shard(index, (0,)) for index in shards])


def group_fold_bytes(group: Group, shards: Iterable[Shard]) -> int:
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


def group_stores(group: Group, members: Sequence[Member]) -> list[Store]:
    """Where the bytes of each of the group's sources are."""
    stores = {
        place: store
        for member, places in zip(members, group.places, strict=True)
        for place, store in zip(places, member.inputs.stores, strict=True)
    }
    return [stores[place] for place in range(len(group.sources))]


class LocalRunner:
    """All work in this process.

    Args:
        members: recipes that share a reading.
        threads: fold threads at most; the memory limit may hold fewer.
        limit_bytes: memory limit of this process.
        kernels: where the arithmetic runs.
        meter: gets seconds and bytes.
        cuda: whether the kernels run on a CUDA device.
    """

    def __init__(
        self,
        members: Sequence[Member],
        threads: int,
        limit_bytes: int,
        kernels: Kernels,
        meter: Meter,
        cuda: bool = False,
    ) -> None:
        self._members = members
        self._kernels = kernels
        self._meter = meter
        self._group = make_group([member.plan for member in members])
        self.memory = plan_group_memory(self._group, limit_bytes, threads, surroundings(members, cuda=cuda))

    def survey(self, shards: Sequence[int], round_: Round, members: Sequence[int], done: Callable[[int], None]) -> None:
        def publish(parts: Sequence[SurveyPart]) -> None:
            for member in members:
                self._members[member].output.publish_survey_parts(round_, parts)
            done(parts[0].shard)

        inputs = self._members[members[0]].inputs
        worker = SurveyWorker(inputs.plan, inputs.stores, self.memory, self._kernels, self._meter)
        worker.survey(shards, round_, publish)

    def merge(
        self, shards: Sequence[Shard], surveys: Sequence[Survey | None], done: Callable[[int, Receipt], None]
    ) -> None:
        worker = ShardWorker(
            self._group,
            group_stores(self._group, self._members),
            [member.output for member in self._members],
            self.memory,
            self._kernels,
            self._meter,
        )
        worker.merge(shards, surveys, done)
