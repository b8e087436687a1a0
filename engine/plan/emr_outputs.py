"""The outputs of EMR-Merging: a unified task vector, and per task a mask and a scale. Pure: no I/O.

One plan becomes several that are laid out alike, so that one reading of the inputs makes all of them. Each is an output
of its own, with a folder, receipts and a manifest.
"""

from __future__ import annotations

import json
from dataclasses import replace

from ..errors import InputError
from ..methods import Elect
from ..models import BIT_ORDER
from ..recipe import UNIFIED
from .layout import OutputShard, cut_shards, layout, make_shard
from .plan import NUMERICS, Plan, TaskOutput, plan_id
from .task import TensorTask


def cut_parts(plan: Plan) -> tuple[Plan, ...]:
    """The outputs of a plan: the unified task vector and one part per task for EMR-Merging, else the plan itself.

    Raises:
        InputError: tensors that EMR-Merging cannot merge, or none that it can; a base that is more than one folder.
    """
    if not plan.terms.task_names:
        return (plan,)
    _check(plan)
    tasks = tuple(replace(task, stored="values") if task.method else _left_out(task) for task in plan.tasks)
    sizes = [(t.name, t.out_dtype, t.out_shape if t.method else (0,)) for t in tasks]
    cut = cut_shards(sizes, plan.terms.shard_size_bytes)
    metadata = {"format": "pt", "anabranch": "EMR-Merging: a task vector, no model; add it to its base"}
    shards = tuple(make_shard(tasks, members, i, len(cut), metadata) for i, members in enumerate(cut))
    unified = _part(plan, TaskOutput(UNIFIED), tasks, shards)
    return (unified, *(_task(unified, i, name) for i, name in enumerate(plan.terms.task_names)))


def _check(plan: Plan) -> None:
    if len(plan.base.folders) > 1:
        raise InputError(
            f"emr: its base {plan.base.url} is a model with an adapter or masks, on which no masks can be named",
            "write that model first (passthrough), and take the result as the base of all",
        )
    doubles = [task.name for task in plan.tasks if task.method is not None and task.is_double]
    if doubles:
        raise InputError(
            f"tensor {doubles[0]!r} is F64 in one of the models, which emr does not take",
            "exclude it, or convert the model",
        )
    if not any(task.method for task in plan.tasks):
        raise InputError("emr has no tensor to merge: all would be copied from the base")


def _left_out(task: TensorTask) -> TensorTask:
    """What every task's model has as its base has it; where models may differ they are still compared."""
    reason = f"{task.reason}; not stored, the base has it"
    return replace(task, stored="nothing", reason=reason, read_bytes=task.read_bytes if any(task.models) else 0)


def _task(unified: Plan, position: int, name: str) -> Plan:
    """The masks of one task, in files that are cut and ordered as those of the unified task vector."""
    tasks = []
    for task in unified.tasks:
        if isinstance(task.method, Elect):
            own = replace(task.method, task=position)
            task = replace(task, method=own, stored="bits", out_dtype="U8")
        tasks.append(task)
    shards = []
    for i, shard in enumerate(unified.shards):
        shapes = {tasks[j].name: list(tasks[j].base.info.shape) for j in shard.tasks if tasks[j].method}
        metadata = {
            "format": "pt",
            "anabranch": f"EMR-Merging: masks of one task as bits; {BIT_ORDER}",
            "shapes": json.dumps(shapes, separators=(",", ":"), ensure_ascii=False),
        }
        shards.append(make_shard(tasks, shard.tasks, i, len(unified.shards), metadata, keep_order=True))
    return _part(unified, TaskOutput(name, position, unified.plan_id), tuple(tasks), tuple(shards))


def _part(plan: Plan, part: TaskOutput, tasks: tuple[TensorTask, ...], shards: tuple[OutputShard, ...]) -> Plan:
    described = {**plan.canonical_recipe, "part": part.describe()}
    identity = plan_id(NUMERICS, described, plan.inputs, layout(shards))
    return replace(plan, tasks=tasks, shards=shards, canonical_recipe=described, plan_id=identity, part=part)


# -- what a part says of itself --------------------------------------------------------------------------------------
