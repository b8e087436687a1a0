"""Merges from S3 to S3 through the command: the bytes of a local run, no local copy, and a node lost on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.cluster_utils import Cluster

from anabranch.engine.storage.object_store import ObjectStore

from ..adapters import write_adapter
from ..merging import merge, merge_parts, write_checkpoint, write_recipe
from .fault_proxy import HttpFault, fault_proxy
from .servers import Server, store_of

SHARDS = 12
ROWS, COLUMNS = 768, 1024
HEALTH = {"health_check_period_ms": 500, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 0}


class Site:
    """Checkpoints in a bucket of a real S3 server, and what a local merge of the same files makes of them."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.environment = os.environ | server.environment()
        self._client = server.client()
        self._bucket = server.bucket(self._client)
        self.root = f"s3://{self._bucket}"
        torch.manual_seed(1)
        base = {f"layers.{i}.weight": torch.randn(ROWS, COLUMNS).to(torch.bfloat16) for i in range(SHARDS)}
        tuned = [{n: t + 0.02 * torch.randn(ROWS, COLUMNS).to(torch.bfloat16) for n, t in base.items()} for _ in "ab"]
        for i, (name, tensors) in enumerate(zip(("base", "model0", "model1"), [base, *tuned], strict=True)):
            write_checkpoint(folder / name, tensors, shards=2 + i)
            self.upload(folder / name, name)
        self.recipe = self.write_recipe("recipe.yml", self.root)
        merge(self.write_recipe("local.yml", str(folder)), folder / "expected")
        self.expected = folder / "expected"

    def store(self, name: str) -> ObjectStore:
        return store_of(self._bucket, name, self._client)

    def upload(self, source: Path, name: str) -> None:
        store = self.store(name)
        for path in source.iterdir():
            store.replace(path.name, path.read_bytes())

    def write_recipe(self, name: str, root: str) -> Path:
        recipe = {
            "merge_method": "cabs",
            "base_model": f"{root}/base",
            "models": [{"model": f"{root}/model{i}"} for i in range(2)],
            "parameters": {"density": 0.25},
            "output": {"shard_size": 2 * ROWS * COLUMNS},
        }
        return write_recipe(self.folder / name, recipe)

    def out(self, name: str) -> str:
        return f"{self.root}/{name}"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "anabranch.cluster.cli", *arguments]

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=240,
            env=env or self.environment,
            check=False,
        )

    def assert_same(self, name: str) -> None:
        """Every shard, index and side file in the bucket equals the local merge's; manifests differ in their URLs."""
        store = self.store(name)
        names = {p.name for p in self.expected.iterdir() if p.is_file()}
        assert set(store.list()) == names
        for file in names - {"anabranch.manifest.json", "anabranch.tensors.parquet", "anabranch.inputs.parquet"}:
            assert store.read_bytes(file) == (self.expected / file).read_bytes(), file

    def receipts(self, name: str) -> list[str]:
        """Of finished shards: the record, which comes after the table of its rows."""
        return [each for each in self.store(name).list(".anabranch/receipts") if each.endswith(".json")]


@pytest.fixture(scope="module")
def site(moto: Server, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(moto, tmp_path_factory.mktemp("site"))


def test_s3_to_s3_gives_the_bytes_of_a_local_merge_without_a_local_copy(site: Site, tmp_path: Path) -> None:
    trace = ["strace", "-f", "-qq", "-e", "trace=openat,creat", "-o", str(tmp_path / "opens")]
    done = subprocess.run(
        [*trace, *site.command("merge", str(site.recipe), site.out("out"), "--memory", "512MiB", "--json")],
        capture_output=True,
        text=True,
        timeout=240,
        env=site.environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    site.assert_same("out")
    writes = [line for line in (tmp_path / "opens").read_text().splitlines() if "O_WRONLY" in line or "O_RDWR" in line]
    kept = [line for line in writes if " = -1 " not in line and '"/dev/' not in line and "__pycache__" not in line]
    assert not [line for line in kept if '"/proc/' not in line], "a file was written on the local disk"


@pytest.mark.slow
def test_a_base_and_its_adapter_may_lie_in_different_places(site: Site, tmp_path: Path) -> None:
    """Both in the bucket, and each with the other one on the local disk: the bytes of a wholly local merge."""
    torch.manual_seed(2)
    factors = {f"layers.{i}.lora_A.weight": torch.randn(4, COLUMNS) for i in range(SHARDS)}
    factors |= {f"layers.{i}.lora_B.weight": torch.randn(ROWS, 4) * 0.01 for i in range(SHARDS)}
    site.upload(write_adapter(site.folder / "adapter", factors), "adapter")

    def recipe(name: str, base: str, adapter: str) -> Path:
        models = [{"model": f"{base}/model0", "adapter": f"{adapter}/adapter"}]
        content = {"merge_method": "cabs", "base_model": f"{base}/base", "models": models}
        return write_recipe(tmp_path / f"{name}.yml", content | {"parameters": {"density": 0.25}})

    local = str(site.folder)
    merge(recipe("local", local, local), tmp_path / "expected")
    expected = (tmp_path / "expected" / "model.safetensors").read_bytes()
    for name, base, adapter in (
        ("both", site.root, site.root),
        ("adapter", local, site.root),
        ("base", site.root, local),
    ):
        done = site.run("merge", str(recipe(name, base, adapter)), site.out(f"adapted-{name}"), "--memory", "1GiB")
        assert done.returncode == 0, done.stderr
        assert site.store(f"adapted-{name}").read_bytes("model.safetensors", 1 << 30) == expected


def test_planning_reads_headers_only(site: Site) -> None:
    weights = sum(p.stat().st_size for p in site.folder.glob("[bm]*/*.safetensors"))
    with fault_proxy(site.server.endpoint) as proxy:
        through = site.environment | {"AWS_ENDPOINT_URL_S3": proxy.endpoint}
        done = site.run("plan", str(site.recipe), site.out("planned"), "--json", env=through)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["read_bytes"] == 3 * SHARDS * 2 * ROWS * COLUMNS
    shards = 2 + 3 + 4  # a header is asked for together with the 64 KiB around it, in one request
    assert 0 < proxy.sent_bytes < shards * 80_000 < weights / 50
    assert proxy.count("PUT|POST|DELETE") == 0
    assert site.store("planned").list() == []


def test_a_finished_output_verifies_and_a_damaged_one_does_not(site: Site) -> None:
    assert site.run("merge", str(site.recipe), site.out("checked")).returncode == 0
    assert site.run("verify", site.out("checked")).returncode == 0
    store = site.store("checked")
    name = "model-00001-of-00012.safetensors"
    data = bytearray(store.read_bytes(name))
    data[-1] ^= 1
    store.replace(name, bytes(data))
    damaged = site.run("verify", site.out("checked"))
    assert damaged.returncode == 4
    assert name in damaged.stdout + damaged.stderr


@pytest.mark.slow
def test_a_bit_that_flips_in_a_download_is_found_by_reading_the_inputs_again(site: Site) -> None:
    with fault_proxy(site.server.endpoint) as proxy:
        through = site.environment | {"AWS_ENDPOINT_URL_S3": proxy.endpoint}
        # The first reading is of the header.
        proxy.script(HttpFault("GET", r"model0/model-00001", number=2, flip_answer=100_000))
        assert site.run("merge", str(site.recipe), site.out("flipped"), env=through).returncode == 0
        assert proxy.faults[0].seen > 1
    assert site.run("verify", site.out("flipped")).returncode == 0
    found = site.run("verify", site.out("flipped"), "--inputs")
    assert found.returncode == 4, found.stdout + found.stderr
    assert "model0/model-0000" in found.stdout and "not what was merged: 'layers." in found.stdout
    assert site.run("merge", str(site.recipe), site.out("sound")).returncode == 0
    assert site.run("verify", site.out("sound"), "--inputs").returncode == 0


def test_a_killed_merge_resumes_on_s3(site: Site) -> None:
    run = subprocess.Popen(
        site.command("merge", str(site.recipe), site.out("killed"), "--workers", "1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=site.environment,
    )
    wait_for(lambda: len(site.receipts("killed")) >= 2 or run.poll() is not None)
    run.kill()
    run.wait()
    finished = site.receipts("killed")
    assert 2 <= len(finished) < SHARDS, "killed too late to mean anything"
    names = site.store("killed").list()
    assert "anabranch.manifest.json" not in names
    assert "model.safetensors.index.json" not in names
    done = site.run("merge", str(site.recipe), site.out("killed"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["shards_resumed"] >= len(finished)
    site.assert_same("killed")


@pytest.fixture
def two_nodes(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cluster, list[Any]]]:
    for name, value in site.server.environment().items():
        monkeypatch.setenv(name, value)  # each node has its own credentials: Ray starts with this environment
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": HEALTH, "include_dashboard": False}
    )
    members = [cluster.add_node(num_cpus=1, memory=2 << 30) for _ in range(2)]
    yield cluster, members
    cluster.shutdown()


@pytest.mark.ray
def test_two_nodes_merge_from_s3_to_s3_and_one_is_lost(site: Site, two_nodes: tuple[Cluster, list[Any]]) -> None:
    cluster, members = two_nodes
    lost_at: list[int] = []

    def lose_one() -> None:
        wait_for(lambda: len(site.receipts("cluster")) >= 2)
        lost_at.append(len(site.receipts("cluster")))
        cluster.remove_node(members[0], allow_graceful=False)

    watch = threading.Thread(target=lose_one, daemon=True)
    watch.start()
    done = site.run(
        "merge", str(site.recipe), site.out("cluster"), "--ray", cluster.address, "--insecure-cluster",
        "--memory", "700MiB",
    )  # fmt: skip
    watch.join(10)
    assert done.returncode == 0, done.stderr
    assert lost_at and lost_at[0] < SHARDS, "the node was lost too late to mean anything"
    site.assert_same("cluster")


def wait_for(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.slow
def test_parts_on_s3_and_the_model_of_a_task(site: Site, tmp_path: Path) -> None:
    """Masks find the unified task vector beside them wherever they lie."""

    def recipes(root: str, out: str) -> tuple[Path, Path]:
        models = [{"model": f"{root}/model{i}"} for i in range(2)]
        parts = {"merge_method": "emr", "base_model": f"{root}/base", "models": models}
        task = {"merge_method": "passthrough", "models": [{"model": f"{root}/base+{out}/model1"}]}
        number = len(list(tmp_path.iterdir()))
        return write_recipe(tmp_path / f"{number}.yml", parts), write_recipe(tmp_path / f"{number}-task.yml", task)

    parts, task = recipes(str(site.folder), str(tmp_path / "parts"))
    merge_parts(parts, tmp_path / "parts")
    merge(task, tmp_path / "full")
    parts, task = recipes(site.root, site.out("parts"))
    for arguments in ((str(parts), site.out("parts")), (str(task), site.out("full"))):
        done = site.run("merge", *arguments, "--memory", "600MiB")
        assert done.returncode == 0, done.stderr
    for name in ("parts/unified", "parts/model0", "parts/model1", "full"):
        found = site.store(name).read_bytes("model.safetensors")
        assert found == (tmp_path / name / "model.safetensors").read_bytes(), name
    assert site.run("verify", site.out("parts/model1")).returncode == 0


@pytest.mark.slow
def test_outputs_in_a_bucket_and_on_a_disk_are_compared(site: Site) -> None:
    for path in site.expected.iterdir():
        if path.is_file():
            site.store("twin").replace(path.name, path.read_bytes())
    same = site.run("compare", site.out("twin"), str(site.expected))
    assert same.returncode == 0, same.stdout + same.stderr
    other = site.run("compare", site.out("base"), site.out("model0"), "--json")
    assert other.returncode == 1, other.stderr
    assert json.loads(other.stdout)["states"] == {"values": SHARDS}
