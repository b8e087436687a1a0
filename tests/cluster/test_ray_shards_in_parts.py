"""Shards that several workers of a real Ray cluster write in parts: whatever is lost, the bytes of one process."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from ..merging import merge, write_checkpoint, write_recipe
from .conftest import Case, Nodes, assert_same_output

pytestmark = pytest.mark.ray

LARGEST = "model-00001-of-00004.safetensors"
SMALL_PARTS = """
import sys
from functools import partial
from anabranch.cluster.ray import driver
driver.Limits = partial(driver.Limits, least_part_bytes=16 << 20)
from anabranch.cluster.cli import main
sys.exit(main())
"""
"""The command, for shards that are smaller than those that are worth a part each."""


@dataclass
class SmallParts(Case):
    """Parts of 16 MB that are read and written instead of 200."""

    def command(self, out: Path, address: str, *options: str) -> list[str]:
        whole = super().command(out, address, *options)
        return [sys.executable, "-c", SMALL_PARTS, *whole[whole.index("merge") :]]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> SmallParts:
    """Four shards of one tensor each, the first much larger than the others."""
    folder = tmp_path_factory.mktemp("cluster-large")
    torch.manual_seed(0)
    rows = {"embedding": 8192, "layers.0.weight": 3072, "layers.1.weight": 3072, "layers.2.weight": 3000}
    base = {name: torch.randn(count, 4096).to(torch.bfloat16) for name, count in rows.items()}
    write_checkpoint(folder / "base", base)
    for i in range(2):
        noise = 0.02 * torch.randn(8192, 4096).to(torch.bfloat16)
        write_checkpoint(folder / f"model{i}", {name: t + noise[: len(t)] for name, t in base.items()})
    recipe = {
        "merge_method": "cabs",
        "parameters": {"density": 0.25},
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / f"model{i}")} for i in range(2)],
        "output": {"shard_size": 30_000_000},
    }
    path = write_recipe(folder / "recipe.yml", recipe)
    merge(path, folder / "expected")
    return SmallParts(path, folder / "expected")


def written(out: Path, name: str = LARGEST) -> int:
    """Bytes of disk that the unfinished file of a shard takes."""
    with contextlib.suppress(FileNotFoundError):
        return max((p.stat().st_blocks * 512 for p in out.glob(f".anabranch-{name}-*")), default=0)
    return 0


def disturbed(case: Case, nodes: Nodes, out: Path, disturb: Callable[[subprocess.Popen[str]], None]) -> tuple[int, str]:
    """The exit code and messages of a merge that is disturbed while its largest shard is written."""
    driver = case.start(out, nodes.address)
    deadline = time.monotonic() + 120
    while written(out) < 16 << 20:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, "the largest shard is not written in parts"
        time.sleep(0.01)
    disturb(driver)
    _, errors = driver.communicate(timeout=240)
    return driver.returncode, errors


@pytest.mark.slow
def test_parts_give_the_bytes_of_one_process(nodes: Nodes, large: Case, tmp_path: Path) -> None:
    nodes.resize(2)
    code, errors = disturbed(large, nodes, tmp_path / "out", lambda _: None)
    assert code == 0, errors
    assert_same_output(tmp_path / "out", large.expected)


def test_a_worker_that_is_killed_while_it_writes_a_part_costs_that_part(
    nodes: Nodes, large: Case, tmp_path: Path
) -> None:
    nodes.resize(2)
    code, errors = disturbed(large, nodes, tmp_path / "out", lambda _: nodes.workers()[0].kill())
    assert code == 0, errors
    assert_same_output(tmp_path / "out", large.expected)
    assert re.search(r"^worker \d was lost with model-\S+, part \d: ", errors, flags=re.MULTILINE), errors


@pytest.mark.slow
def test_a_killed_driver_is_resumed_and_nothing_of_its_parts_stays(nodes: Nodes, large: Case, tmp_path: Path) -> None:
    nodes.resize(2)
    out = tmp_path / "out"

    def kill(driver: subprocess.Popen[str]) -> None:
        """The command, and its child that talks to Ray, without a chance to clean up."""
        processes = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children()]
        for process in processes:
            process.suspend()
        for process in processes:
            process.kill()

    code, _ = disturbed(large, nodes, out, kill)
    assert code == -9
    assert not (out / LARGEST).exists()
    assert written(out)
    nodes.resize(1)
    done = large.run(out, nodes.address)
    assert done.returncode == 0, done.stderr
    assert_same_output(out, large.expected)


@pytest.mark.slow
def test_a_part_of_a_worker_that_hangs_is_written_by_a_twin(nodes: Nodes, large: Case, tmp_path: Path) -> None:
    nodes.resize(2)
    hung: list[psutil.Process] = []

    def hang(_: subprocess.Popen[str]) -> None:
        hung.append(nodes.workers()[0])
        hung[0].suspend()

    try:
        code, errors = disturbed(large, nodes, tmp_path / "out", hang)
    finally:
        for process in hung:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    assert code == 0, errors
    assert_same_output(tmp_path / "out", large.expected)
    told = r"^model-\S+, part \d is given to worker \d; worker \d is slow"
    assert re.search(told, errors, flags=re.MULTILINE), errors


@pytest.mark.slow
def test_two_drivers_write_parts_of_one_output(nodes: Nodes, large: Case, tmp_path: Path) -> None:
    nodes.resize(2)
    out = tmp_path / "out"
    drivers = [large.start(out, nodes.address) for _ in range(2)]
    for driver in drivers:
        _, errors = driver.communicate(timeout=240)
        assert driver.returncode == 0, errors
    assert_same_output(out, large.expected)
