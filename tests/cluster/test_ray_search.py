"""`anabranch search --ray`: evaluations are tasks on the nodes of a real cluster, with what goes wrong in one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet
import pytest
import torch

from ..merging import write_checkpoint, write_recipe
from .conftest import Nodes

pytestmark = pytest.mark.ray
EVALUATE = """
import os, sys, time
model = os.path.basename(sys.argv[1])
with open(f"/proc/{os.getppid()}/cmdline") as file:
    print("begun by", file.read().split("\\0")[0], flush=True)
open("evaluated", "a").write(f"{model} {os.getpid()}\\n")
if model == "00001":
    time.sleep(60)
if model == "00002":
    sys.exit(7)
print('{"a": %d}' % int(model))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four recipes over tiny models; evaluating the second takes too long, and the third fails."""
    write_checkpoint(tmp_path / "base", {"w": torch.zeros(4)})
    for i in range(2):
        write_checkpoint(tmp_path / f"m{i}", {"w": torch.eye(4)[i]})
    models = [{"model": "m0", "parameters": {"weight": {"search": {"choice": [1, 2, 3, 4]}}}}, {"model": "m1"}]
    write_recipe(tmp_path / "recipe.yml", {"merge_method": "task_arithmetic", "base_model": "base", "models": models})
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    return tmp_path


def command(address: str, *options: str) -> list[str]:
    program = [sys.executable, "-m", "anabranch.cluster.cli", "search", "recipe.yml", "out", "--sampler", "grid"]
    evaluate = f"{sys.executable} -I -S evaluate.py {{model}}"
    return [*program, "--evaluate", evaluate, "--ray", address, "--insecure-cluster", "--together", "4", *options]


def test_evaluations_are_tasks_and_fail_as_those_of_one_machine(nodes: Nodes, folder: Path) -> None:
    nodes.resize(2)
    options = ("--evaluators", "2", "--timeout", "3")
    done = subprocess.run(
        command(nodes.address, *options), cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    rows = pyarrow.parquet.read_table(folder / "out/trials.parquet").to_pylist()
    assert [row["state"] for row in rows] == ["finished", "failed", "failed", "finished"]
    assert rows[1]["failure"] == "took longer than 3 s\n    " + begun(folder, "00001")
    assert rows[2]["failure"] == "ended with exit code 7\n    " + begun(folder, "00002")
    assert all(begun(folder, f"{i:05d}").startswith("begun by ray::") for i in range(4))
    assert "kept: models/00003" in done.stdout


def begun(folder: Path, name: str) -> str:
    return (folder / f"out/logs/{name}.out").read_text().splitlines()[0]


@pytest.mark.slow
def test_an_interrupted_search_leaves_no_evaluation_behind_and_goes_on(nodes: Nodes, folder: Path) -> None:
    nodes.resize(1)
    search = subprocess.Popen(
        command(nodes.address, "--trials", "2"), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    evaluated = folder / "evaluated"
    deadline = time.monotonic() + 90
    while not (evaluated.exists() and "00001" in evaluated.read_text()):
        assert search.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    search.send_signal(signal.SIGINT)
    assert search.wait(60) == 130
    search.communicate()
    number = int(evaluated.read_text().split()[-1])
    while psutil.pid_exists(number):
        assert time.monotonic() < deadline, "the command lives on"
        time.sleep(0.05)
    again = subprocess.run(
        [*command(nodes.address, "--trials", "2"), "--timeout", "0.5"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert again.returncode == 0, again.stderr
    assert [line.split()[0] for line in evaluated.read_text().splitlines()] == ["00000", "00001", "00001"]


def test_more_gpus_than_a_node_has_are_refused_at_once(nodes: Nodes, folder: Path) -> None:
    refused = subprocess.run(
        command(nodes.address, "--evaluator-gpus", "0.5"),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert refused.returncode == 6
    assert "--evaluator-gpus 0.5: the node with the most GPUs has 0" in refused.stderr
