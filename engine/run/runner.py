"""Runs plans to their manifests: surveys, shards, commit; a runner decides where the work is done."""

from __future__ import annotations

from collections.abc import Sequence

from ..plan import Receipt, Survey, share_reading
from .protocols import Member, Outcome, Progress, Runner
from .shard import Shard
from .surveys import take_surveys
from .work_items import shared_fold_bytes


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
        self._group = share_reading([member.plan for member in members])
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
        whole = shared_fold_bytes(self._group, [Shard(index, tuple(self._missing)) for index in indices])
        self._progress.phase("merge", whole, max(0, whole - shared_fold_bytes(self._group, shards)))

        def done(place: int, receipt: Receipt) -> None:
            self._receipts[place][receipt.shard] = receipt
            if all(receipt.shard in self._receipts[other] for other in self._missing):
                self._progress.shard_done(receipt.shard)

        if shards:
            self._runner.merge(shards, surveys, done)
