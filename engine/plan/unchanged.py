"""A model that changes nothing is a mistake, unless the recipe says `allow_unchanged: true`.

Two ways to find out: no tensor of a model takes part, which the plan knows; or every task vector of a model is zero,
which the rows of the receipts say. Methods that take no sums of task vectors (averages and the like) are told the
first only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..errors import InputError, some_names
from ..models import Checkpoint
from ..recipe import Recipe
from .blueprint import Blueprint
from .plan import Plan
from .records import Receipt
from .task import TensorTask

MEANT = "or set `allow_unchanged: true` in the recipe if this is meant"


def check_taking_part(recipe: Recipe, blueprint: Blueprint, tasks: Iterable[TensorTask]) -> None:
    """Refuse a model none of whose tensors is merged, and whose tensors are not the ones that are copied.

    A recipe that excludes everything that a model shares with the reference means it.

    Raises:
        InputError: which model it is, and why it takes no part.
    """
    if recipe.allow_unchanged:
        return
    taking: set[int] = set()
    for task in tasks:
        merged = task.models if task.method is not None else ()
        taking.add(task.origins[0])
        taking.update(origin for origin, source in zip(task.origins[1:], merged, strict=False) if source is not None)
    urls = {blueprint.sources[number].url for number in taking}
    for model in blueprint.models:
        if model.url in urls:
            continue
        shared = _shared_with_reference(blueprint, model)
        if not shared or not all(map(recipe.excludes, shared)):
            raise _takes_no_part(recipe, blueprint, model, shared)


def _shared_with_reference(blueprint: Blueprint, model: Checkpoint) -> set[str]:
    return {
        tensor.name
        for tensor in blueprint.tensors
        for number, name in zip(blueprint.origins[tensor.group][1:], tensor.names[1:], strict=True)
        if blueprint.sources[number].url == model.url and name in model.tensors
    }


def _takes_no_part(recipe: Recipe, blueprint: Blueprint, model: Checkpoint, shared: set[str]) -> InputError:
    if not shared:
        return InputError(
            f"{model.url}: no tensor of it takes part: none of its names fits. "
            f"It has {some_names([*model.tensors])}; "
            f"{blueprint.reference_name} has {some_names([*blueprint.sources[0].tensors])}",
            f"name a model of the same architecture and with the same names of tensors, {MEANT}",
        )
    excluded = sum(recipe.excludes(name) for name in shared)
    return InputError(
        f"{model.url}: no tensor of it takes part: "
        f"of the {len(shared)} that it shares with {blueprint.reference_name}, "
        f"{excluded} are excluded and {len(shared) - excluded} are empty or no floating-point numbers",
        f"leave the model out, change `exclude`, {MEANT}",
    )


def check_changes(plan: Plan, receipts: Mapping[int, Receipt]) -> None:
    """Refuse a merge in which every task vector of a model is zero.

    Args:
        plan: what was merged.
        receipts: of all shards, by their number.

    Raises:
        InputError: which models change nothing.
    """
    if plan.terms.allow_unchanged:
        return
    zero: dict[str, int] = {}
    changing: set[str] = set()
    for number, shard in enumerate(plan.shards):
        for place, row in zip(shard.tasks, receipts[number].tensors, strict=True):
            task = plan.tasks[place]
            for position, model in enumerate(row.models):
                if model is None:
                    continue
                url = plan.models[task.model_of(position)].url
                # Methods that select without task vectors have no l1, but know how much they took.
                if model.l1 == 0 or (model.l1 is None and model.kept == 0):
                    zero[url] = zero.get(url, 0) + 1
                else:
                    changing.add(url)
    if unchanged := [url for url in zero if url not in changing]:
        raise _changes_nothing(plan, unchanged, zero)


def _changes_nothing(plan: Plan, unchanged: Sequence[str], zero: Mapping[str, int]) -> InputError:
    shown = "; ".join(f"{url} ({zero[url]} tensors)" for url in unchanged[:3])
    more = f" and {len(unchanged) - 3} more models" if len(unchanged) > 3 else ""
    what = "changes nothing: all its tensors that were merged equal" if len(unchanged) == 1 else "change nothing: equal"
    return InputError(
        f"{shown}{more} {what} those of the base, {plan.base.url}",
        "it may be a copy of the base, or an adapter that was never trained; leave it out and use another output "
        f"directory, {MEANT}: the same command then finishes this output without merging again",
    )
