"""What lies beside the masks of EMR-Merging: the scale of a task, and a README for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..json_text import readable_json
from ..models import BIT_ORDER, PART_FORMAT, PART_NAME, PART_VERSION, base_files, public_id
from ..plan import ElectedRow, Plan, Receipt
from ..recipe import UNIFIED

README_NAME = "README.md"


@dataclass(frozen=True, slots=True)
class Scale:
    """The factor of one task: sum |t| of its own changes over sum |t| of what its mask keeps of the unified vector."""

    changes: float
    selected: float

    @property
    def value(self) -> float:
        """1 where the mask keeps nothing, so that there is nothing to scale."""
        return self.changes / self.selected if self.selected > 0 else 1.0


def task_scale(task: int, receipts: Sequence[Receipt]) -> Scale:
    """Sums over all merged tensors, rounded once: they do not depend on the order of tensors or shards."""
    rows: list[ElectedRow] = []
    for receipt in receipts:
        for row in receipt.tensors:
            model = row.models[task] if row.models else None
            if isinstance(model, ElectedRow):
                rows.append(model)
    return Scale(math.fsum(row.l1 or 0.0 for row in rows), math.fsum(row.selected for row in rows))


def with_scale(plan: Plan, receipts: Sequence[Receipt], summary: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The manifest's summary per model; of a task's masks that of its own model, with its scale."""
    task = plan.masks_of
    if task is None:
        return [dict(row) for row in summary]
    scale = task_scale(task, receipts).value
    # What it shares with other tasks is in the table; their own masks are not, so there are no shares.
    return [{**row, "overlap": {}, "scale": scale} for row in summary if row["model"] == task]


def part_files(plan: Plan, receipts: Sequence[Receipt]) -> dict[str, bytes]:
    """The small files of a part, by name; nothing for a plan that is no part."""
    if plan.part is None:
        return {}
    base: dict[str, Any] = {"url": plan.base.url, "files": base_files(plan.inputs[0])}
    content: dict[str, Any] = {"format": PART_FORMAT, "version": PART_VERSION, "base": base}
    task = plan.masks_of
    if task is None:
        content |= {"part": UNIFIED, "plan_id": plan.plan_id}
        content["tasks"] = list(plan.terms.task_names)
        return {PART_NAME: readable_json(content), README_NAME: _unified_readme(plan).encode()}
    scale = task_scale(task, receipts)
    content |= {"part": "task", "task": plan.part.name, "unified": plan.part.unified_id, "bits": BIT_ORDER}
    content |= {"scale": scale.value, "changes": scale.changes, "selected": scale.selected}
    return {PART_NAME: readable_json(content), README_NAME: _task_readme(plan, plan.part.name, scale).encode()}


def _unified_readme(plan: Plan) -> str:
    tasks = ", ".join(f"`{name}`" for name in plan.terms.task_names)
    return f"""# A unified task vector

This is no model. The tensors are the unified task vector of EMR-Merging (arXiv 2405.17461): differences to the base
{_base_of(plan)}. The model of a task is the base plus, where the task's mask has a 1, the task's scale times these
values. Masks and scales of {tasks} lie in folders of these names beside this one.
Tensors that are not here are the base's own.
"""


def _base_of(plan: Plan) -> str:
    """What a README calls the base: never a place that is no one else's business."""
    name = public_id(plan.base.url)
    return f"`{name}`" if name else f"that `{PART_NAME}` names"


def _task_readme(plan: Plan, name: str, scale: Scale) -> str:
    return f"""# The masks of one task

This is no model. The tensors are the masks of the task `{name}` of EMR-Merging (arXiv 2405.17461), one bit
per element: {BIT_ORDER}.
The shapes of the tensors are in the metadata of the files.

The model of the task is the base {_base_of(plan)}
plus, where the mask has a 1, {scale.value!r} times the unified task vector, which is expected in the folder
`{UNIFIED}` beside this one. Tensors that are not here are the base's own.
To merge the model or write it, name it in a recipe as BASE+FOLDER.
"""
