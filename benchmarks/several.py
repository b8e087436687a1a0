"""What several recipes of other weights cost in one reading of their inputs, and one after the other.

    python -m benchmarks.several [--size 0.1b] [--recipes 4] [--methods cabs,ties,task_arithmetic] [--repeats 3]

Both contenders run in turns, each in one process that starts once; their outputs must be equal byte for byte. The
table has medians, and medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .generate import checkpoints
from .measure import Cost, run, warm

DENSITIES = {"cabs": 0.25, "ties": 0.25, "dare_ties": 0.25, "magnitude": 0.25}
IN_TURN = """
import sys, anabranch
execution = anabranch.Execution(memory_bytes=int(sys.argv[1]))
for recipe in sys.argv[3:]:
    anabranch.merge(recipe, sys.argv[2] + "/" + recipe.rsplit("/", 1)[-1].removesuffix(".yml"), execution)
"""


def write_recipes(folder: Path, models: Sequence[Path], method: str, count: int) -> list[Path]:
    """Recipes that differ in weights only."""
    base, *others = (str(model.resolve()) for model in models)
    parameters = {"density": DENSITIES[method]} if method in DENSITIES else {}
    paths = []
    for number in range(count):
        weights = [0.4 + 0.3 * number, 1.3 - 0.2 * number]
        content = {
            "merge_method": method,
            "base_model": base,
            "models": [{"model": other, "parameters": {"weight": w}} for other, w in zip(others, weights, strict=True)],
            "parameters": parameters,
        }
        paths.append(folder / f"{method}-{number}.yml")
        paths[-1].write_text(json.dumps(content))  # JSON is YAML
    return paths


def cost(kind: str, recipes: Sequence[Path], out: Path, memory_bytes: int) -> Cost:
    """One contender, from the start of its process until its outputs are on the disk."""
    names = [str(recipe) for recipe in recipes]
    if kind == "together":
        options = [str(out), "--memory", str(memory_bytes)]
        command = [sys.executable, "-m", "anabranch.cluster.cli", "merge", *names, *options]
    else:
        command = [sys.executable, "-c", IN_TURN, str(memory_bytes), str(out), *names]
    with tempfile.TemporaryFile() as log:
        return run(command, log, out)


def shards(out: Path) -> dict[str, str]:
    """Digests of the merged files, by their place in the output."""
    digests = {}
    for path in sorted(out.rglob("*.safetensors")):
        with path.open("rb") as file:
            digests[str(path.relative_to(out))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def measure(recipes: Sequence[Path], folder: Path, memory_bytes: int) -> dict[str, Cost]:
    """One round.

    Raises:
        AssertionError: the outputs differ.
    """
    found = {}
    for kind in ("together", "in turn"):
        (folder / kind).mkdir()
        found[kind] = cost(kind, recipes, folder / kind, memory_bytes)
    merged = shards(folder / "together")
    assert merged, "something was merged"
    assert merged == shards(folder / "in turn"), "a shared reading changed a byte"
    for kind in found:
        shutil.rmtree(folder / kind)
    return found


def rows(method: str, count: int, rounds: Sequence[dict[str, Cost]]) -> list[str]:
    found = []
    for kind in ("together", "in turn"):
        costs = [each[kind] for each in rounds]
        ratio = statistics.median(each[kind].seconds / each["together"].seconds for each in rounds)
        cpu = statistics.median(each[kind].cpu_seconds / each["together"].cpu_seconds for each in rounds)
        read = statistics.median(each.read_bytes for each in costs) / 1e6
        seconds = statistics.median(each.seconds for each in costs)
        cpu_seconds = statistics.median(each.cpu_seconds for each in costs)
        peak = max(each.peak_bytes for each in costs) >> 20
        found.append(
            f"| {method} | {count} | {kind} | {seconds:.1f} | {ratio:.2f} | {cpu_seconds:.1f} | {cpu:.2f} "
            f"| {read:,.0f} | {peak} |"
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure recipes that share a reading of their inputs.")
    parser.add_argument("--size", default="0.1b")
    parser.add_argument("--recipes", type=int, default=4)
    parser.add_argument("--methods", default="cabs,ties,task_arithmetic")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-mib", type=int, default=2048)
    options = parser.parse_args(arguments)
    models = checkpoints(options.size, 2)
    folder = Path(tempfile.mkdtemp(prefix="anabranch-several-", dir=".bench" if Path(".bench").is_dir() else None))
    lines = [
        "| method | recipes | how | seconds | x together | CPU s | x together | read MB | peak MiB |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    others = []
    try:
        for method in options.methods.split(","):
            recipes = write_recipes(folder, models, method, options.recipes)
            warm([path for model in models for path in model.glob("*.safetensors")])
            measure(recipes[:2], folder, options.memory_mib << 20)  # kernels and programs into their caches
            rounds = [measure(recipes, folder, options.memory_mib << 20) for _ in range(options.repeats)]
            others += [each.others_cores for found in rounds for each in found.values()]
            lines += rows(method, options.recipes, rounds)
    finally:
        shutil.rmtree(folder)
    where = f"{options.size}, 2 models, Python {platform.python_version()}, {os.cpu_count()} cores"
    print(f"{where}, rounds: {options.repeats}; everything else used {statistics.mean(others):.1f} cores meanwhile\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
