"""Merges on real Ray nodes: the same bytes as one process, whatever is lost on the way."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from ..merging import merge, write_checkpoint, write_recipe
from .conftest import SHARDS, Case, Nodes, When, assert_same_output, identity, receipts

pytestmark = pytest.mark.ray


def assert_kept(watch: When) -> None:
    """Shards that were finished before the disturbance were not written again."""
    assert watch.happened, "the disturbance came too late to disturb anything"
    assert len(watch.finished_before) < SHARDS
    for name, before in watch.finished_before.items():
        assert identity(watch.out / name) == before, f"{name} was made again"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("case", ["cabs", "tadrop"], indirect=True)
def test_any_number_of_nodes_gives_the_bytes_of_one_process(
    nodes: Nodes, case: Case, tmp_path: Path, count: int
) -> None:
    nodes.resize(count)
    done = case.run(tmp_path / "out", nodes.address, "--json")
    assert done.returncode == 0, done.stderr
    assert_same_output(tmp_path / "out", case.expected)


def test_a_killed_worker_costs_only_its_shard(nodes: Nodes, cabs: Case, tmp_path: Path) -> None:
    nodes.resize(2)
    out = tmp_path / "out"

    def kill_one() -> None:
        nodes.workers()[0].kill()

    watch = When(out, 2, kill_one)
    done = cabs.run(out, nodes.address)
    watch.join()
    assert done.returncode == 0, done.stderr
    assert_kept(watch)
    assert_same_output(out, cabs.expected)
    lost = re.findall(r"^worker \d was lost with model-\S+: .*died \(anabranch-", done.stderr, flags=re.MULTILINE)
    assert len(lost) == 1, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("case", ["cabs", "tadrop"], indirect=True)
def test_a_node_removed_in_the_middle_is_survived(nodes: Nodes, case: Case, tmp_path: Path) -> None:
    nodes.resize(2)
    out = tmp_path / "out"
    watch = When(out, 3, nodes.remove)
    done = case.run(out, nodes.address)
    watch.join()
    assert done.returncode == 0, done.stderr
    assert_kept(watch)
    assert_same_output(out, case.expected)
    assert done.stdout.startswith("merged into"), "something of Ray is between the lines"


def test_a_worker_on_a_drained_node_ends_its_shard_and_gets_no_other(nodes: Nodes, cabs: Case, tmp_path: Path) -> None:
    nodes.resize(2)
    out = tmp_path / "out"
    watch = When(out, 2, nodes.drain)
    done = cabs.run(out, nodes.address)
    watch.join()
    nodes.remove()
    assert done.returncode == 0, done.stderr
    assert_kept(watch)
    assert_same_output(out, cabs.expected)
    told = r"^worker \d gets no more shards: its node is being drained and goes in \d+ s$"
    assert re.search(told, done.stderr, flags=re.MULTILINE)
    assert "was lost" not in done.stderr


@pytest.mark.slow
def test_a_shard_that_a_drained_node_cannot_end_in_time_is_not_waited_for(
    nodes: Nodes, cabs: Case, tmp_path: Path
) -> None:
    nodes.resize(2)
    out = tmp_path / "out"
    hung: list[psutil.Process] = []

    def hold_and_drain() -> None:
        while not hung:
            hung.extend(nodes.last_workers())
        hung[0].suspend()
        time.sleep(0.5)  # were it between two shards, it gets one
        nodes.drain(1.0)

    watch = When(out, 2, hold_and_drain)
    done = cabs.run(out, nodes.address)
    watch.join()
    for process in hung:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    nodes.remove()
    assert done.returncode == 0, done.stderr
    assert_kept(watch)
    assert_same_output(out, cabs.expected)
    assert re.search(r"its node is being drained and goes in \d s$", done.stderr, flags=re.MULTILINE), done.stderr
    assert re.search(r"worker \d will be gone before it is done$", done.stderr, flags=re.MULTILINE), done.stderr
    assert "is slow with it" not in done.stderr


def test_recipes_that_share_a_reading_survive_the_loss_of_a_node(nodes: Nodes, cabs: Case, tmp_path: Path) -> None:
    nodes.resize(2)
    content = yaml.safe_load(cabs.recipe.read_text())
    lighter = [dict(entry, parameters={"weight": 0.2}) for entry in content["models"]]
    surveyed = {"merge_method": "ties", "parameters": {"density": {"tadrop": {"mean": 0.3}}}}
    more = (
        write_recipe(tmp_path / "lighter.yml", content | {"models": lighter}),
        write_recipe(tmp_path / "surveyed.yml", content | surveyed),
    )
    out = tmp_path / "out"
    watch = When(out / "recipe", 3, nodes.remove)
    done = replace(cabs, more=more).run(out, nodes.address, "--json")
    watch.join()
    assert done.returncode == 0, done.stderr
    assert watch.happened
    merges = json.loads(done.stdout)["merges"]
    assert merges[0]["read_with"] == [str(recipe) for recipe in more]
    for recipe in (cabs.recipe, *more):
        merge(recipe, tmp_path / "expected" / recipe.stem)
        assert_same_output(out / recipe.stem, tmp_path / "expected" / recipe.stem)


@pytest.mark.slow
def test_a_hung_worker_is_overtaken_by_a_node_that_joins(nodes: Nodes, cabs: Case, tmp_path: Path) -> None:
    nodes.resize(1)
    out = tmp_path / "out"
    driver = cabs.start(out, nodes.address)
    deadline = time.monotonic() + 120
    while not receipts(out) and time.monotonic() < deadline:
        time.sleep(0.02)
    hung = nodes.workers()
    for process in hung:
        process.suspend()
    before = {name: identity(out / name) for name in receipts(out)}
    nodes.add()  # Ray sets signal handlers here, so not in a thread
    try:
        _, errors = driver.communicate(timeout=240)
    finally:
        for process in hung:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    assert driver.returncode == 0, errors
    assert len(hung) == 1
    assert 1 <= len(before) < SHARDS
    assert {name: identity(out / name) for name in before} == before, "a finished shard was made again"
    assert_same_output(out, cabs.expected)


@pytest.mark.parametrize("case", ["tadrop", pytest.param("cabs", marks=pytest.mark.slow)], indirect=True)
def test_a_killed_driver_is_resumed_with_another_number_of_nodes(nodes: Nodes, case: Case, tmp_path: Path) -> None:
    nodes.resize(2)
    out = tmp_path / "out"
    driver = case.start(out, nodes.address)
    watch = When(out, 3, driver.kill)
    driver.communicate(timeout=240)
    watch.join()
    assert driver.returncode == -9
    assert not (out / "anabranch.manifest.json").exists()
    assert not (out / "model.safetensors.index.json").exists()
    nodes.resize(1)
    done = case.run(out, nodes.address, "--json")
    assert done.returncode == 0, done.stderr
    assert_kept(watch)
    assert_same_output(out, case.expected)


@pytest.mark.slow
def test_two_drivers_on_one_output_do_no_harm(nodes: Nodes, cabs: Case, tmp_path: Path) -> None:
    nodes.resize(3)
    out = tmp_path / "out"
    drivers = [cabs.start(out, nodes.address) for _ in range(2)]
    for driver in drivers:
        _, errors = driver.communicate(timeout=240)
        assert driver.returncode == 0, errors
    assert_same_output(out, cabs.expected)


def test_a_bad_tensor_stops_the_run_with_its_own_message(nodes: Nodes, cabs: Case, tmp_path: Path) -> None:
    nodes.resize(2)
    bad = torch.randn(64, 64).to(torch.bfloat16)
    bad[3, 5] = float("nan")
    for name in ("base", "model"):
        write_checkpoint(tmp_path / name, {"layers.0.weight": bad if name == "model" else torch.zeros_like(bad)})
    recipe = {
        "merge_method": "cabs",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / "model")}],
        "parameters": {"density": 0.25},
    }
    path = write_recipe(tmp_path / "recipe.yml", recipe)
    out = tmp_path / "out"
    done = Case(path, out).run(out, nodes.address)
    assert done.returncode == 3, done.stderr
    assert "layers.0.weight" in done.stderr
    assert "1 NaN or Inf" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.glob("*.safetensors*"))
    assert not (out / "anabranch.manifest.json").exists()


def test_a_worker_that_no_node_holds_is_refused_at_once(nodes: Nodes, cabs: Case, tmp_path: Path) -> None:
    nodes.resize(1)
    done = cabs.run(tmp_path / "out", nodes.address, "--memory", "64GiB")
    assert done.returncode == 6
    assert "no node of the Ray cluster holds a worker" in done.stderr


def test_a_cluster_without_tokens_needs_the_users_word(nodes: Nodes, cabs: Case, tmp_path: Path) -> None:
    command = [part for part in cabs.command(tmp_path / "out", nodes.address) if part != "--insecure-cluster"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "token" in done.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_the_embedded_ray_asks_for_a_token_and_gives_the_same_bytes(cabs: Case, tmp_path: Path) -> None:
    secret = "canary-9f1c4e7a-do-not-write-me"
    environment = os.environ | {"AWS_SECRET_ACCESS_KEY": secret, "HF_TOKEN": secret}
    out, page = tmp_path / "out", tmp_path / "report.html"
    options = ("--workers", "2", "--report", str(page))
    done = subprocess.run(
        [part for part in cabs.command(out, "local", *options) if part != "--insecure-cluster"],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_same_output(out, cabs.expected)
    assert {"worker 1", "worker 2"} <= set(re.findall(r"worker \d", page.read_text())), "a lane for each"
    assert secret not in done.stdout + done.stderr + page.read_text()
    for path in [*out.rglob("*"), *newest_ray_session().rglob("*")]:
        if path.is_file():
            with contextlib.suppress(OSError):
                assert secret.encode() not in path.read_bytes(), f"a secret is in {path}"


def newest_ray_session() -> Path:
    """Logs of the Ray session that was started last."""
    return max(Path("/tmp/ray").glob("session_2*"), key=lambda p: p.stat().st_mtime)
