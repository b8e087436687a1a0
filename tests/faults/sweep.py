"""A warm process whose children merge and are killed: hundreds of kills in the time that a few cold starts take.

Run as `python -m tests.faults.sweep RECIPE EXPECTED FOLDER STEP KILLS SEED`, for a kill at every STEP-th change and so
many at random moments; ends with 0 when every resumed output is right.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.output.commit import OutputDirectory
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run.execution import Execution, worker_memory
from anabranch.engine.run.local import LocalRunner
from anabranch.engine.run.meter import Meter
from anabranch.engine.run.protocols import Member, Silent
from anabranch.engine.run.runner import run
from anabranch.engine.storage.local import LocalStore
from anabranch.engine.storage.protocol import Store
from anabranch.engine.storage.retry import Fault, FaultStore


def merge(recipe: Path, store: Store) -> None:
    inputs = open_inputs(load_recipe(recipe), recipe.parent)
    members = [Member(inputs, OutputDirectory(inputs.plan, store))]
    memory = worker_memory(members, Execution(2, 1 << 30))
    run(members, LocalRunner(members, memory, CpuKernels(), Meter()), Silent())


def in_child(work: Callable[[], None]) -> int:
    """Start `work` in a forked process; returns its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def files_of(out: Path) -> dict[str, bytes | None]:
    """Every file by name; Parquet tables without their bytes, as the manifest vouches for their rows."""
    files = (p for p in out.rglob("*") if p.is_file())
    return {str(p.relative_to(out)): None if p.suffix == ".parquet" else p.read_bytes() for p in files}


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Shards with a receipt: inode and modification time."""
    names = [p.name.removesuffix(".json") for p in (out / ".anabranch/receipts").glob("model*.json")]
    return {name: ((out / name).stat().st_ino, (out / name).stat().st_mtime_ns) for name in names}


def resume_and_compare(recipe: Path, out: Path, expected: dict[str, bytes | None], what: str) -> None:
    manifest = out / "anabranch.manifest.json"
    if manifest.exists():
        names = set(files_of(out))
        assert set(expected) <= names, f"{what}: a manifest without {set(expected) - names}"
    before = finished(out)
    child = in_child(lambda: merge(recipe, LocalStore(str(out), create=True)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, f"{what}: the run after the kill failed"
    after = finished(out)
    assert {name: after[name] for name in before} == before, f"{what}: a finished shard was made again"
    found = files_of(out)
    assert found.keys() == expected.keys(), f"{what}: {found.keys() ^ expected.keys()}"
    assert found == expected, f"{what}: other bytes in {[n for n in expected if found[n] != expected[n]]}"
    shutil.rmtree(out)


def kill_at_operations(recipe: Path, folder: Path, expected: dict[str, bytes | None], step: int) -> int:
    """Kill before every single change of the output, or every so many."""
    kills = 0
    for verb in ("create", "replace", "writer", "write", "commit", "delete"):
        for number in range(1, 1000, step):
            out = folder / f"{verb}-{number}"
            die = Fault(verb, number, action=lambda: os.kill(os.getpid(), signal.SIGKILL))
            work = FaultStore(LocalStore(str(out), create=True), die)
            child = in_child(lambda store=work: merge(recipe, store))
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert code in (0, -signal.SIGKILL), code
            if code == 0:
                shutil.rmtree(out)
                break
            resume_and_compare(recipe, out, expected, f"{verb} {number}")
            kills += 1
    return kills


def kill_at_times(recipe: Path, folder: Path, expected: dict[str, bytes | None], kills: int, seed: int) -> int:
    """Kill at random moments, one to three times in a row on one output."""
    chance = random.Random(seed)
    begin = time.monotonic()
    os.waitpid(in_child(lambda: merge(recipe, LocalStore(str(folder / "timed"), create=True))), 0)
    usual_seconds = time.monotonic() - begin
    hits = 0
    for number in range(kills):
        out = folder / f"time-{number}"
        for _ in range(chance.randint(1, 3)):
            child = in_child(lambda out=out: merge(recipe, LocalStore(str(out), create=True)))
            time.sleep(chance.uniform(0, usual_seconds))
            os.kill(child, signal.SIGKILL)
            hits += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        resume_and_compare(recipe, out, expected, f"random kill {number} of seed {seed}")
    return hits


def main() -> None:
    recipe, expected_out, folder = (Path(argument) for argument in sys.argv[1:4])
    step, kills, seed = map(int, sys.argv[4:7])
    expected = files_of(expected_out)
    merge(recipe, LocalStore(str(folder / "warm"), create=True))  # loads compiled kernels for all children
    assert files_of(folder / "warm") == expected
    print("kills at operations:", kill_at_operations(recipe, folder, expected, step))
    print("kills at times:", kill_at_times(recipe, folder, expected, kills, seed))


if __name__ == "__main__":
    main()
