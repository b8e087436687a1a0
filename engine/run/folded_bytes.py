"""How many bytes of inputs fold threads look at: in the shards of a merge, and in those of a survey before it."""

from __future__ import annotations

from collections.abc import Iterable

from ..plan import Plan, SharedReading, passes_over, share_reading
from .memory import QUANTILES_PASSES
from .shard import Shard

ROUNDS = {"": (), "moments": ("moments",), "quantiles": ("quantiles",), "threshold": ("high", "low")}
"""What is taken one after the other, by what a plan must know of whole models."""


def fold_bytes(plan: Plan, shards: Iterable[int]) -> int:
    """Bytes of inputs that the passes of a merge over these shards look at."""
    return shared_fold_bytes(share_reading([plan]), [Shard(index, (0,)) for index in shards])


def shared_fold_bytes(group: SharedReading, shards: Iterable[Shard]) -> int:
    """As `fold_bytes`, for plans that share a reading."""
    passes: dict[tuple[int, bool], int] = {}  # most tensors share their method
    total = 0
    for shard in shards:
        for position in group.plans[0].shards[shard.index].tasks:
            turns = 0
            for member in shard.members:
                task = group.plans[member].tasks[position]
                kind = (id(task.method), task.is_double)
                if kind not in passes:
                    passes[kind] = passes_over(task.method, task.is_double)
                turns = max(turns, passes[kind])
            total += group.folded_bytes(position, shard.members) * turns
    return total


def survey_bytes(plan: Plan) -> int:
    """Bytes of inputs that all rounds of the plan's survey look at."""
    return sum(round_bytes(plan, i, kind) for kind in ROUNDS[plan.survey_kind] for i in range(len(plan.shards)))


def round_bytes(plan: Plan, shard: int, kind: str) -> int:
    """Bytes of inputs that a round of a survey looks at in one shard; `kind` as in `Round`."""
    passes = QUANTILES_PASSES if kind == "quantiles" else 1
    tasks = (plan.tasks[i] for i in plan.shards[shard].tasks)
    return sum(passes * task.folded_bytes for task in tasks if task.has_task_vectors)
