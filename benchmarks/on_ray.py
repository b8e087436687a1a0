"""What a Ray cluster costs: starting, each shard, and how two workers compare with one.

    python -m benchmarks.on_ray [--repeats 3]

One node of this machine with two cores. All contenders run in turns; the table has medians of whole commands and of
the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import ray
from ray.cluster_utils import Cluster
from safetensors.numpy import save_file

from .generate import checkpoints

MANY = 400
"""Shards of 8 KiB: what they cost is not their bytes."""
LARGE = "0.5b"
LARGE_SHARD = "48MB"
MEMORY = "600MiB"
NODE_MEMORY_BYTES = 2 << 30


def small_checkpoints(folder: Path, tensors: int) -> list[Path]:
    """A base and two models of equal small tensors."""
    paths = []
    for seed, name in enumerate(("base", "first", "second")):
        random = np.random.default_rng(seed)
        path = folder / name
        path.mkdir(parents=True)
        weights = {f"layers.{i}.weight": random.standard_normal((64, 64)).astype(np.float16) for i in range(tensors)}
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text("{}")
        paths.append(path)
    return paths


def recipe(path: Path, models: Sequence[Path], shard_size: int | str) -> Path:
    base, *others = (str(model.resolve()) for model in models)
    content = {
        "merge_method": "cabs",
        "base_model": base,
        "models": [{"model": other} for other in others],
        "parameters": {"density": 0.25},
        "output": {"shard_size": shard_size},
    }
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def seconds(recipe_path: Path, *options: str) -> float:
    """A whole command, from start to exit."""
    with tempfile.TemporaryDirectory(dir=recipe_path.parent) as out:
        program = [sys.executable, "-m", "anabranch.cluster.cli", "merge", str(recipe_path), f"{out}/out"]
        command = [*program, "--memory", MEMORY, "--json", *options]
        begin = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - begin


def measure(folder: Path, address: str, repeats: int) -> list[dict[str, float]]:
    one = recipe(folder / "one.yml", small_checkpoints(folder / "one", 1), 8192)
    many = recipe(folder / "many.yml", small_checkpoints(folder / "many", MANY), 8192)
    large = recipe(folder / "large.yml", checkpoints(LARGE, 2), LARGE_SHARD)
    cluster = ("--ray", address, "--insecure-cluster", "--workers")
    contenders: Mapping[str, tuple[Path, tuple[str, ...]]] = {
        "one local": (one, ("--workers", "1")),
        "one embedded": (one, ("--ray", "local", "--workers", "1")),
        "one cluster": (one, (*cluster, "1")),
        "many local": (many, ("--workers", "1")),
        "many cluster": (many, (*cluster, "1")),
        "large local 1": (large, ("--workers", "1")),
        "large local 2": (large, ("--workers", "2")),
        "large cluster 1": (large, (*cluster, "1")),
        "large cluster 2": (large, (*cluster, "2")),
    }
    for name in ("one cluster", "large local 1"):  # kernels, programs and inputs into their caches
        seconds(contenders[name][0], *contenders[name][1])
    return [{name: seconds(path, *options) for name, (path, options) in contenders.items()} for _ in range(repeats)]


def table(rounds: Sequence[Mapping[str, float]]) -> str:
    def median(name: str, less: str = "") -> float:
        return statistics.median(r[name] - (r[less] if less else 0.0) for r in rounds)

    def ratio(above: tuple[str, str], below: tuple[str, str]) -> float:
        return statistics.median((r[above[0]] - r[above[1]]) / (r[below[0]] - r[below[1]]) for r in rounds)

    def shard(kind: str) -> float:
        return 1000 * median(f"many {kind}", f"one {kind}") / (MANY - 1)

    local_1, local_2 = ("large local 1", "one local"), ("large local 2", "one local")
    cluster_1, cluster_2 = ("large cluster 1", "one cluster"), ("large cluster 2", "one cluster")
    rows = [
        ("one shard of 8 KiB, no Ray: whole command", f"{median('one local'):.1f} s"),
        ("the same with `--ray local`: extra", f"{median('one embedded', 'one local'):.1f} s"),
        ("the same on a running cluster: extra", f"{median('one cluster', 'one local'):.1f} s"),
        (f"each of {MANY} shards of 8 KiB, no Ray", f"{shard('local'):.1f} ms"),
        (f"each of {MANY} shards of 8 KiB, one worker on a cluster", f"{shard('cluster'):.1f} ms"),
        ("large shards: two workers against one, start-up taken off", f"{ratio(cluster_1, cluster_2):.2f} x"),
        ("large shards: two threads against one, no Ray", f"{ratio(local_1, local_2):.2f} x"),
        ("large shards: one worker against one thread without Ray", f"{ratio(local_1, cluster_1):.2f} x"),
    ]
    return "\n".join(["| what | median |", "|---|---:|", *(f"| {what} | {value} |" for what, value in rows)])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure what a Ray cluster costs.")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "memory": NODE_MEMORY_BYTES, "include_dashboard": False},
    )
    folder = Path(tempfile.mkdtemp(prefix="anabranch-on-ray-", dir=".bench" if Path(".bench").is_dir() else None))
    try:
        rounds = measure(folder, cluster.address, options.repeats)
    finally:
        shutil.rmtree(folder)
        cluster.shutdown()
    where = f"Ray {ray.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores"
    print(f"{where}, load {os.getloadavg()[0]:.1f}, rounds: {options.repeats}\n")
    print(table(rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
