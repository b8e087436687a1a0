"""Surveys before a merge: which statistics of whole models recipes need, each kind taken once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..errors import InputError
from ..output import OutputDirectory
from ..plan import (
    Plan,
    Receipt,
    Round,
    Survey,
    SurveyPart,
    TensorTask,
    decide_densities,
    narrow_thresholds,
    ranges_digest,
    threshold_searches,
)
from .gather import gather
from .protocols import Member, Progress, Runner
from .work import SurveyWork


def take_surveys(
    members: Sequence[Member], missing: Sequence[int], runner: Runner, progress: Progress
) -> list[Survey | None]:
    """Take the statistics of whole models that plans ask for; finished parts are not taken again.

    Args:
        members: recipes that share a reading.
        missing: those that are not finished, by place.
        runner: where the statistics are taken.
        progress: is told of every round.

    Returns:
        Per member, what whole models decided; None where nothing was asked.
    """
    surveys: list[Survey | None] = [None] * len(members)
    for alike in _alike(members, missing):
        survey = _Survey(members, alike, runner, progress)
        for place, found in zip(alike, survey.take(), strict=True):
            surveys[place] = replace(found, read={shard: frozenset(read) for shard, read in survey.read.items()})
    return surveys


def check_surveyed(output: OutputDirectory, receipts: Mapping[int, Receipt], survey: Survey | None) -> None:
    """Compare what statistics were taken from with what was merged; called when nobody writes receipts any more.

    Raises:
        InputError: they are not the same bytes. Everything is to be made again, as nobody knows which are right.
    """
    tasks = output.plan.tasks
    for shard, read in survey.read.items() if survey is not None else ():
        merged = zip(output.plan.shards[shard].tasks, receipts[shard].tensors, strict=True)
        ranges = [part for i, row in merged if tasks[i].has_task_vectors for part in row.inputs]
        if read != {ranges_digest(ranges)}:
            name = output.plan.shards[shard].name
            output.start_over("statistics were taken from other bytes of the inputs than those that were merged")
            raise InputError(
                f"{output.store.url}/{name}: its inputs changed between the reading for statistics and the merge",
                "Something writes there, or memory, disk or network change bytes. When that has stopped, run the same "
                "command again: it makes everything again.",
            )


def _alike(members: Sequence[Member], missing: Sequence[int]) -> list[list[int]]:
    """Members that ask for a survey, those together whose statistics are the same numbers."""
    groups: list[list[int]] = []
    for place in missing:
        plan = members[place].plan
        if not plan.survey_kind:
            continue
        found = next((group for group in groups if _same_statistics(members[group[0]].plan, plan)), None)
        if found is None:
            groups.append([place])
        else:
            found.append(place)
    return groups


def _same_statistics(a: Plan, b: Plan) -> bool:
    if (a.survey_kind, a.terms.keep_base_where_nonfinite) != (b.survey_kind, b.terms.keep_base_where_nonfinite):
        return False
    if [source.url for source in a.sources] != [source.url for source in b.sources]:
        return False
    for mine, other in zip(a.tasks, b.tasks, strict=True):
        if mine.has_task_vectors != other.has_task_vectors:
            return False
        if not mine.has_task_vectors:
            continue
        if (mine.origins, mine.sources) != (other.origins, other.sources):
            return False
        # A threshold's second round looks where the density says.
        if a.survey_kind == "threshold" and _densities(mine) != _densities(other):
            return False
    return True


def _densities(task: TensorTask) -> Sequence[object]:
    return () if task.method is None else task.method.densities


class _Survey:
    """The rounds of one kind of survey for members whose statistics are the same."""

    def __init__(self, members: Sequence[Member], alike: Sequence[int], runner: Runner, progress: Progress) -> None:
        self._members = members
        self._alike = alike
        self._plans = [members[place].plan for place in alike]
        self._runner = runner
        self._progress = progress
        self.read: dict[int, set[str]] = defaultdict(set)
        """By shard, digests of what the rounds read."""

    def take(self) -> list[Survey]:
        """One survey per member: the statistics are the same, what follows from them need not be."""
        plan = self._plans[0]
        if plan.survey_kind != "threshold":
            parts = self._round(Round(plan.survey_kind))
            return [decide_densities(each, parts) for each in self._plans]
        searches = threshold_searches(plan)
        narrow_thresholds(plan, searches, self._round(Round("high")))
        low = Round("low", tuple(search.prefix for search in searches))
        narrow_thresholds(plan, searches, self._round(low))
        thresholds = tuple(search.prefix for search in searches)
        rows = tuple({"model": i, "threshold_key": key} for i, key in enumerate(thresholds))
        return [Survey({}, thresholds, rows)] * len(self._plans)

    def _round(self, round_: Round) -> list[SurveyPart]:
        gathered = gather(SurveyWork(round_), self._members, self._alike, self._runner, self._progress)
        parts = [part for parts in gathered.of(self._alike[0]).values() for part in parts]
        for part in parts:
            self.read[part.shard].add(part.read)
        return parts
