"""The outputs of EMR-Merging: a unified task vector, and per task a mask and a scale. Pure: no I/O.

One plan becomes several that are laid out alike, so that one reading of the inputs makes all of them. Each is an output
of its own, with a folder, receipts and a manifest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from ..methods.stages import Elect
from ..output.manifest import ElectedRow, Receipt, readable_json
from ..recipe.schema import UNIFIED, task_name
from .layout import OutputShard, cut_shards, make_shard
from .plan import OutputPart, Plan, plan_id
from .task import TensorSettings, TensorTask

PART_NAME = "anabranch.emr.json"
"""What a part is, in its folder."""
README_NAME = "README.md"
PART_FORMAT = "anabranch.emr"
PART_VERSION = 1
BIT_ORDER = "element i of the flattened tensor is bit i % 8, counted from the least significant one, of byte i // 8"


def cut_parts(plan: Plan) -> tuple[Plan, ...]:
    """The outputs of a plan: the unified task vector and one part per task for EMR-Merging, else the plan itself.

    Raises:
        InputError: tensors that EMR-Merging cannot merge, or none that it can; a base that is more than one folder.
    """
    if plan.recipe.merge_method != "emr":
        return (plan,)
    _check(plan)
    tasks = tuple(replace(task, stored="values") if task.settings else _left_out(task) for task in plan.tasks)
    sizes = [(t.name, t.out_dtype, t.out_shape if t.settings else (0,)) for t in tasks]
    cut = cut_shards(sizes, plan.recipe.output.shard_size_bytes)
    metadata = {"format": "pt", "anabranch": "EMR-Merging: a task vector, no model; add it to its base"}
    shards = tuple(make_shard(tasks, members, i, len(cut), metadata) for i, members in enumerate(cut))
    unified = _part(plan, OutputPart(UNIFIED), tasks, shards)
    return (unified, *(_task(unified, i, task_name(entry)) for i, entry in enumerate(plan.recipe.models)))


def _check(plan: Plan) -> None:
    if len(plan.base.folders) > 1:
        raise InputError(
            f"emr: its base {plan.base.url} is a model with an adapter or masks, on which no masks can be named",
            "write that model first (passthrough), and take the result as the base of all",
        )
    doubles = [task.name for task in plan.tasks if task.settings is not None and task.is_double]
    if doubles:
        raise InputError(
            f"tensor {doubles[0]!r} is F64 in one of the models, which emr does not take",
            "exclude it, or convert the model",
        )
    if not any(task.settings for task in plan.tasks):
        raise InputError("emr has no tensor to merge: all would be copied from the base")


def _left_out(task: TensorTask) -> TensorTask:
    """What every task's model has as its base has it; where models may differ they are still compared."""
    reason = f"{task.reason}; not stored, the base has it"
    return replace(task, stored="nothing", reason=reason, read_bytes=task.read_bytes if any(task.models) else 0)


def _task(unified: Plan, position: int, name: str) -> Plan:
    """The masks of one task, in files that are cut and ordered as those of the unified task vector."""
    own: dict[int, TensorSettings] = {}
    tasks = []
    for task in unified.tasks:
        if task.settings is not None:
            settings = own.setdefault(id(task.settings), replace(task.settings, method=Elect(position)))
            task = replace(task, settings=settings, stored="bits", out_dtype="U8")
        tasks.append(task)
    shards = []
    for i, shard in enumerate(unified.shards):
        shapes = {tasks[j].name: list(tasks[j].base.info.shape) for j in shard.tasks if tasks[j].settings}
        metadata = {
            "format": "pt",
            "anabranch": f"EMR-Merging: masks of one task as bits; {BIT_ORDER}",
            "shapes": json.dumps(shapes, separators=(",", ":"), ensure_ascii=False),
        }
        shards.append(make_shard(tasks, shard.tasks, i, len(unified.shards), metadata, keep_order=True))
    return _part(unified, OutputPart(name, position, unified.plan_id), tuple(tasks), tuple(shards))


def _part(plan: Plan, part: OutputPart, tasks: tuple[TensorTask, ...], shards: tuple[OutputShard, ...]) -> Plan:
    described = {**plan.canonical_recipe, "part": part.describe()}
    identity = plan_id(described, plan.inputs, shards)
    return replace(plan, tasks=tasks, shards=shards, canonical_recipe=described, plan_id=identity, part=part)


# -- what a part says of itself --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scale:
    """The factor of one task: sum |t| of its own changes over sum |t| of what its mask keeps of the unified vector."""

    changes: float
    selected: float

    @property
    def value(self) -> float:
        """1 where the mask keeps nothing, so that there is nothing to scale."""
        return self.changes / self.selected if self.selected > 0 else 1.0


def task_scale(plan: Plan, receipts: Sequence[Receipt]) -> Scale:
    """Sums over all merged tensors, rounded once: they do not depend on the order of tensors or shards."""
    assert plan.part is not None and plan.part.task is not None
    rows: list[ElectedRow] = []
    for receipt in receipts:
        for row in receipt.tensors:
            model = row.models[plan.part.task] if row.models else None
            if isinstance(model, ElectedRow):
                rows.append(model)
    return Scale(math.fsum(row.l1 or 0.0 for row in rows), math.fsum(row.selected for row in rows))


def with_scale(plan: Plan, receipts: Sequence[Receipt], summary: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The manifest's summary per model; of a task's masks that of its own model, with its scale."""
    task = plan.part.task if plan.part is not None else None
    if task is None:
        return [dict(row) for row in summary]
    scale = task_scale(plan, receipts).value
    # What it shares with other tasks is in the table; their own masks are not, so there are no shares.
    return [{**row, "overlap": {}, "scale": scale} for row in summary if row["model"] == task]


def part_files(plan: Plan, receipts: Sequence[Receipt]) -> dict[str, bytes]:
    """The small files of a part, by name; nothing for a plan that is no part."""
    if plan.part is None:
        return {}
    base: dict[str, Any] = {"url": plan.base.url, "files": base_files(plan.inputs[0])}
    content: dict[str, Any] = {"format": PART_FORMAT, "version": PART_VERSION, "base": base}
    if plan.part.task is None:
        content |= {"part": UNIFIED, "plan_id": plan.plan_id}
        content["tasks"] = [task_name(entry) for entry in plan.recipe.models]
        return {PART_NAME: readable_json(content), README_NAME: _unified_readme(plan).encode()}
    scale = task_scale(plan, receipts)
    content |= {"part": "task", "task": plan.part.name, "unified": plan.part.unified_id, "bits": BIT_ORDER}
    content |= {"scale": scale.value, "changes": scale.changes, "selected": scale.selected}
    return {PART_NAME: readable_json(content), README_NAME: _task_readme(plan, scale).encode()}


def base_files(identity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a copy of the base still has in common with it: sizes and headers of its files, from its identity."""
    return [{"size": file["size"], "header_sha256": file["header_sha256"]} for file in identity["files"]]


def _unified_readme(plan: Plan) -> str:
    tasks = ", ".join(f"`{task_name(entry)}`" for entry in plan.recipe.models)
    return f"""# A unified task vector

This is no model. The tensors are the unified task vector of EMR-Merging (arXiv 2405.17461): differences to the base
`{plan.base.url}`. The model of a task is the base plus, where the task's mask has a 1, the task's scale times these
values. Masks and scales of {tasks} lie in folders of these names beside this one.
Tensors that are not here are the base's own.
"""


def _task_readme(plan: Plan, scale: Scale) -> str:
    assert plan.part is not None
    return f"""# The masks of one task

This is no model. The tensors are the masks of the task `{plan.part.name}` of EMR-Merging (arXiv 2405.17461), one bit
per element: {BIT_ORDER}.
The shapes of the tensors are in the metadata of the files.

The model of the task is the base `{plan.base.url}`
plus, where the mask has a 1, {scale.value!r} times the unified task vector, which is expected in the folder
`{UNIFIED}` beside this one. Tensors that are not here are the base's own.
To merge the model or write it, name it in a recipe as BASE+FOLDER.
"""
