"""A real Ray cluster of several nodes inside this machine, and checkpoints of many small shards."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from ..merging import merge, write_checkpoint, write_recipe

PREEMPTION = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
SHARDS = 14
ROWS, COLUMNS = 2048, 2048
"""Of a shard's one tensor: work enough that what a test does in the middle of a merge comes in the middle."""
NODE_MEMORY_BYTES = 2 << 30
HEALTH = {"health_check_period_ms": 500, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 0}
"""A killed node is noticed after about two seconds instead of half a minute."""


class Nodes:
    """A cluster whose head takes no work and whose workers come and go."""

    def __init__(self) -> None:
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": HEALTH, "include_dashboard": False}
        )
        self.members: list[Any] = []

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def resize(self, count: int) -> None:
        """Have so many members, of which none still runs a worker of an earlier merge."""
        while len(self.members) < count:
            self.add()
        while len(self.members) > count:
            self.remove()
        deadline = time.monotonic() + 30  # actors end a moment after the driver that started them
        while self._processes("MergeWorker"):  # those that are still being made, too: `ray::NAME:MergeWorker.__init__`
            assert time.monotonic() < deadline, "workers of an earlier merge do not end"
            time.sleep(0.05)

    def add(self) -> None:
        self.members.append(self._cluster.add_node(num_cpus=1, memory=NODE_MEMORY_BYTES))

    def remove(self) -> None:
        """Take a node's processes away without a word, as a lost machine does."""
        self._cluster.remove_node(self.members.pop(), allow_graceful=False)

    def drain(self, seconds: float = 120.0) -> None:
        """Say that the last node will be taken away in so many seconds, as clouds do."""
        client = GcsClient(address=self.address)
        deadline_ms = int((time.time() + seconds) * 1000)
        accepted, why = client.drain_node(self.members[-1].node_id, PREEMPTION, "spot", deadline_ms)
        assert accepted, why

    def workers(self) -> list[psutil.Process]:
        """Processes of the cluster that take shards at this moment."""
        return self._processes("ray::MergeWorker")

    def last_workers(self) -> list[psutil.Process]:
        """Those of them on the last node."""
        (raylet,) = self.members[-1].all_processes["raylet"]
        return [process for process in self.workers() if process.ppid() == raylet.process.pid]

    @staticmethod
    def _processes(title: str) -> list[psutil.Process]:
        """Those of this cluster's living nodes with this in their title; another Ray may run on the machine."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                shown = " ".join(process.cmdline())  # empty for a process that has ended
                if shown.startswith("ray::") and title in shown:
                    found.append(process)
        return found

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    cluster = Nodes()
    yield cluster
    cluster.shutdown()


@dataclass
class Case:
    """One recipe over small checkpoints, and what an undisturbed run in one process made of it."""

    recipe: Path
    expected: Path
    more: tuple[Path, ...] = ()
    """Recipes that are merged with it, each into a folder of its name."""

    def command(self, out: Path, address: str, *options: str) -> list[str]:
        recipes = [str(recipe) for recipe in (self.recipe, *self.more)]
        program = [sys.executable, "-m", "anabranch.cluster.cli", "merge", *recipes, str(out)]
        return [*program, "--ray", address, "--insecure-cluster", "--memory", "600MiB", *options]

    def run(self, out: Path, address: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(out, address, *options), capture_output=True, text=True, timeout=240, check=False
        )

    def finish(self, out: Path) -> None:
        """Go on without Ray, which starts sooner: an output does not know who made its shards."""
        recipes = [str(recipe) for recipe in (self.recipe, *self.more)]
        program = [sys.executable, "-m", "anabranch.cluster.cli", "merge", *recipes, str(out)]
        subprocess.run(program, capture_output=True, timeout=240, check=True)

    def start(self, out: Path, address: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(out, address), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
        )


RECIPES: dict[str, dict[str, Any]] = {
    "cabs": {"merge_method": "cabs", "parameters": {"density": 0.25}},
    "tadrop": {"merge_method": "ties", "parameters": {"density": {"tadrop": {"mean": 0.3}}}},
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `model0` and `model1`."""
    folder = tmp_path_factory.mktemp("cluster-checkpoints")
    torch.manual_seed(0)
    base = {f"layers.{i}.weight": torch.randn(ROWS, COLUMNS).to(torch.bfloat16) for i in range(SHARDS)}
    write_checkpoint(folder / "base", base, shards=3)
    for i in range(2):
        tuned = {n: t + 0.02 * torch.randn(ROWS, COLUMNS).to(torch.bfloat16) for n, t in base.items()}
        write_checkpoint(folder / f"model{i}", tuned, shards=2 + i)
    return folder


@pytest.fixture(scope="session")
def case(request: Any, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _case(checkpoints, tmp_path_factory, request.param)


@pytest.fixture(scope="session")
def cabs(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _case(checkpoints, tmp_path_factory, "cabs")


def _case(checkpoints: Path, factory: pytest.TempPathFactory, name: str) -> Case:
    folder = factory.mktemp(f"cluster-{name}")
    recipe = RECIPES[name] | {
        "base_model": str(checkpoints / "base"),
        "models": [{"model": str(checkpoints / f"model{i}")} for i in range(2)],
        "output": {"shard_size": 2 * ROWS * COLUMNS},
    }
    path = write_recipe(folder / "recipe.yml", recipe)
    merge(path, folder / "expected")
    return Case(path, folder / "expected")


@dataclass
class When:
    """Does something once, as soon as an output holds so many receipts."""

    out: Path
    receipts: int
    action: Callable[[], None]
    finished_before: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Inode and modification time of the shards that were finished when the action ran."""
    happened: bool = False

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.is_set():
            finished = receipts(self.out)
            if len(finished) >= self.receipts:
                self.finished_before = {name: identity(self.out / name) for name in finished}
                self.action()
                self.happened = True
                return
            time.sleep(0.02)

    def join(self) -> None:
        self._stop.set()
        self._thread.join(30)


def receipts(out: Path) -> list[str]:
    """Names of finished shards."""
    return sorted(p.name.removesuffix(".json") for p in (out / ".anabranch/receipts").glob("*.json"))


def identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def assert_same_output(found: Path, expected: Path) -> None:
    """Every file but Parquet tables is equal byte for byte, and nothing else is there."""
    names = {str(p.relative_to(expected)) for p in expected.rglob("*") if p.is_file()}
    assert {str(p.relative_to(found)) for p in found.rglob("*") if p.is_file()} == names
    for name in names:
        if not name.endswith(".parquet"):
            assert (found / name).read_bytes() == (expected / name).read_bytes(), name
