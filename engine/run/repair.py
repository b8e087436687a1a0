"""Damaged outputs made right again from their inputs, by the way on which every output is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..models import Opened, Room
from ..output import OutputDirectory, Problem, Verification, open_outputs, verify_outputs, withdraw_damaged
from ..plan import inputs_of_parts, open_inputs
from ..recipe import load_recipe
from ..storage import open_store
from .commands import merge_jobs
from .execution import Execution
from .machine import available_cores
from .meter import Meter
from .prepare import out_of, prepare
from .protocols import Progress


@dataclass(frozen=True)
class Repair:
    """What was wrong with an output, and how it is now."""

    damaged: tuple[Problem, ...]
    """What was found before; files that were made again among them."""
    result: Verification
    """Of the repaired output, every byte read again."""


def repair(
    recipe: str | Path,
    out: str | Path,
    execution: Execution | None = None,
    *,
    progress: Progress | None = None,
    meter: Meter | None = None,
) -> Repair:
    """Make what is damaged or missing in an output again from the inputs, and read every byte of the result.

    Args:
        recipe: what the output was merged from; the inputs must be what they were.
        out: the output, or the folder of the parts of EMR-Merging.
        execution: as for a merge.
        progress: is told of the merge.
        meter: gets seconds and bytes of the merge.

    Raises:
        OutputConflictError: recipe or inputs are others than those of the output, which stays as it is.
        AnabranchError: what stopped the merge of what is missing; the same call goes on from there.
    """
    execution = execution or Execution()
    threads = execution.workers or available_cores()
    path, damaged = Path(recipe), []
    opened = Opened(room=Room(execution.memory_bytes))
    for part in inputs_of_parts(open_inputs(load_recipe(path), path.parent, opened)):
        output = OutputDirectory(part.plan, open_store(out_of(part.plan, out), own=True))
        name = "" if part.plan.part is None else f"{part.plan.part.name}/"
        damaged += [replace(each, file=f"{name}{each.file}") for each in withdraw_damaged(output, threads)]
    merge_jobs(prepare(recipe, out, execution, opened), execution, progress, meter)
    return Repair(tuple(damaged), verify_outputs(open_outputs(out), threads))
