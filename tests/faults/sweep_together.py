"""As sweep.py, for recipes that share a reading: kills at the changes of one output while others are under way.

Run as `python -m tests.faults.sweep_together STEP FOLDER RECIPE...`, for a kill at every STEP-th change, where
FOLDER/expected/<recipe's name> holds what each recipe gives alone; ends with 0 when every resumed output is right.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from anabranch.engine.storage.local import LocalStore
from anabranch.engine.storage.protocol import Store
from anabranch.engine.storage.retry import Fault, FaultStore

from ..merging import merge_together
from .sweep import files_of, finished, in_child


def merge(recipes: Sequence[Path], stores: Sequence[Store]) -> None:
    merge_together(dict(zip(recipes, stores, strict=True)))


def outputs(recipes: Sequence[Path], folder: Path) -> list[Path]:
    return [folder / recipe.stem for recipe in recipes]


def local(recipes: Sequence[Path], folder: Path) -> list[Store]:
    return [LocalStore(str(out), create=True) for out in outputs(recipes, folder)]


def kill_and_resume(recipes: Sequence[Path], folder: Path, victim: int, fault: Fault) -> bool:
    """Whether the kill came before the end; the next run must go on with every output and finish all of them."""
    stores = local(recipes, folder)
    stores[victim] = FaultStore(stores[victim], fault)
    child = in_child(lambda: merge(recipes, stores))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    before = [finished(out) for out in outputs(recipes, folder)]
    child = in_child(lambda: merge(recipes, local(recipes, folder)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the run after the kill failed"
    for recipe, out, old in zip(recipes, outputs(recipes, folder), before, strict=True):
        new = finished(out)
        assert {name: new[name] for name in old} == old, f"{out}: a finished shard was made again"
        assert files_of(out) == files_of(folder.parent / "expected" / recipe.stem), out
    shutil.rmtree(folder)
    return code != 0


def main() -> None:
    step, folder, recipes = int(sys.argv[1]), Path(sys.argv[2]), [Path(argument) for argument in sys.argv[3:]]
    warm = folder / "warm"
    merge(recipes, local(recipes, warm))  # loads compiled kernels for all children
    for recipe, out in zip(recipes, outputs(recipes, warm), strict=True):
        assert files_of(out) == files_of(folder / "expected" / recipe.stem), out
    kills = 0
    for verb in ("create", "replace", "writer", "write", "commit"):
        for number in range(1, 1000, step):
            fault = Fault(verb, number, action=lambda: os.kill(os.getpid(), signal.SIGKILL))
            if not kill_and_resume(recipes, folder / f"{verb}-{number}", number % len(recipes), fault):
                break
            kills += 1
    print("kills:", kills)


if __name__ == "__main__":
    main()
