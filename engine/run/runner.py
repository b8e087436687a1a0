"""Runs plans to their manifests: surveys, shards, commit; a runner decides where the work is done."""

from __future__ import annotations

from collections.abc import Sequence

from ..plan import check_changes
from .gather import gather
from .machine import host_id
from .meter import Meter
from .protocols import Member, Outcome, Progress, Runner
from .resumed import check_inputs, check_resumed
from .surveys import check_surveyed, take_surveys
from .work import MergeWork


def run(
    members: Sequence[Member],
    runner: Runner,
    progress: Progress,
    meter: Meter | None = None,
    trust_sizes: bool = False,
) -> list[Outcome]:
    """Bring the output directories of recipes that share a reading to their manifests, whatever is already there.

    Args:
        members: the recipes.
        runner: where the work is done.
        progress: is told what happens.
        meter: gets the bytes of shards that are read again.
        trust_sizes: take shards of an earlier run for finished when their sizes fit.

    Returns:
        One outcome per member.

    Raises:
        OutputConflictError: a directory belongs to another plan.
        InputError: a model changes nothing and the recipe does not allow it.
        InputError, ResourceError, TemporaryError: what stopped the run, for all; the same command goes on from there.
    """
    outcomes: dict[int, Outcome] = {}
    while len(outcomes) < len(members):
        for place, member in enumerate(members):
            if place not in outcomes and (finished := member.output.finished()) is not None:
                member.output.clean(finished)
                shards = tuple(range(len(member.plan.shards)))
                outcomes[place] = Outcome(finished, (), shards, already_complete=True)
        missing = [place for place in range(len(members)) if place not in outcomes]
        try:
            if missing:
                outcomes |= _run(members, missing, runner, progress, None if trust_sizes else meter or Meter())
        except FileNotFoundError:
            # A twin may have finished the same plan and removed our unfinished files: its bytes are ours.
            if all(members[place].output.manifest() is None for place in missing):
                raise
    return [outcomes[place] for place in range(len(members))]


def _run(
    members: Sequence[Member], missing: Sequence[int], runner: Runner, progress: Progress, checking: Meter | None
) -> dict[int, Outcome]:
    """Bring those members of a group to their manifests whose outputs are not finished.

    `checking` counts the shards that are read again before they are taken for finished; None: none is.
    """
    for place in missing:
        members[place].inputs.check_side_files()
    for place in missing:
        members[place].output.open()
        if not members[place].output.bind_inputs(host_id(), members[place].inputs.local_identity()):
            check_inputs(members[place].output)
    if checking is not None:
        check_resumed(members, missing, checking, progress)
    surveys = take_surveys(members, missing, runner, progress)
    shards = gather(MergeWork(tuple(surveys)), members, missing, runner, progress)
    for place in missing:
        members[place].inputs.check_unchanged()
        check_surveyed(members[place].output, shards.of(place), surveys[place])
        check_changes(members[place].plan, shards.of(place))
    progress.phase("commit", 0, 0)
    outcomes = {}
    for place in missing:
        member = members[place]
        manifest = member.output.finish(shards.of(place), surveys[place], member.inputs.side_files())
        member.output.clean(manifest)
        made, resumed = (tuple(sorted(each[place])) for each in (shards.made, shards.found))
        outcomes[place] = Outcome(manifest, made, resumed, already_complete=False)
    return outcomes
