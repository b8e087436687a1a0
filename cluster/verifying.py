"""What `anabranch verify` does besides reading: repairing, and its answer as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..engine.output import InputsVerification, Loading, Problem, Verification
from ..engine.run import Execution, Meter, Repair, repair
from .progress import folded_bytes, open_progress
from .streams import tell


def repaired_output(recipe: str, out: str, workers: int | None, memory: int, as_json: bool) -> Repair:
    """Make what is damaged again, and say what it was."""
    meter = Meter()
    with open_progress(folded_bytes(meter), as_json) as progress:
        done = repair(recipe, out, Execution(workers, memory), progress=progress, meter=meter)
    for problem in () if as_json else done.damaged:
        tell(f"{problem.file}: {problem.text}")
    if not as_json:
        tell("what was damaged or missing is made again" if done.damaged else "nothing to repair")
    return done


def verification_json(
    found: Verification,
    loading: Loading | None,
    problems: list[Problem],
    repaired: Repair | None,
    read: InputsVerification | None,
) -> dict[str, Any]:
    """Everything; `repaired` and `inputs` are there where they were asked for, and were not kept from being done."""
    answer: dict[str, Any] = {
        "outcome": "damaged" if problems else "whole",
        "plan_id": found.plan_id,
        "files": found.files,
        "bytes": found.size_bytes,
        "problems": [asdict(problem) for problem in problems],
        "architecture": loading.architecture if loading else None,
        "loaded_tensors": loading.tensors if loading else None,
        "tied": loading.tied if loading else None,
        "modules": loading.modules if loading else None,
    }
    if repaired is not None:
        answer["repaired"] = [asdict(problem) for problem in repaired.damaged]
    if read is not None:
        answer["inputs"] = {
            "outcome": "other" if read.problems else "same",
            "files": read.files,
            "bytes": read.size_bytes,
            "problems": [asdict(problem) for problem in read.problems],
        }
    return answer
