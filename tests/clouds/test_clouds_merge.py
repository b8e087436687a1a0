"""Merges from a cloud to the same cloud through the command: the bytes of a local run, also when killed on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ..merging import merge, write_checkpoint, write_recipe
from .servers import store

pytestmark = pytest.mark.faults

SHARDS = 4
ROWS, COLUMNS = 1280, 4096
"""10 MiB of bfloat16: a shard is an upload in two parts."""


class Site:
    """Checkpoints in a bucket of an emulator, and what a local merge of the same files makes of them."""

    def __init__(self, server: Any, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | server.environment()
        self.bucket = server.bucket()
        self.root = self.bucket.url
        torch.manual_seed(1)
        base = {f"layers.{i}.weight": torch.randn(ROWS, COLUMNS).to(torch.bfloat16) for i in range(SHARDS)}
        tuned = {n: t + 0.02 * torch.randn(ROWS, COLUMNS).to(torch.bfloat16) for n, t in base.items()}
        for name, tensors, shards in (("base", base, 2), ("tuned", tuned, 3)):
            write_checkpoint(folder / name, tensors, shards=shards)
            for path in (folder / name).iterdir():
                store(self.bucket, name).replace(path.name, path.read_bytes())
        self.recipe = self.write_recipe("cloud.yml", self.root)
        self.expected = folder / "expected"
        merge(self.write_recipe("local.yml", str(folder)), self.expected)

    def write_recipe(self, name: str, root: str) -> Path:
        recipe = {
            "merge_method": "cabs",
            "base_model": f"{root}/base",
            "models": [{"model": f"{root}/tuned"}],
            "parameters": {"density": 0.25},
            "output": {"shard_size": 2 * ROWS * COLUMNS},
        }
        return write_recipe(self.folder / name, recipe)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "anabranch.cluster.cli", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=240, env=self.environment, check=False
        )

    def assert_same(self, name: str) -> None:
        """Every shard, index and side file equals the local merge's; manifests differ in their URLs."""
        found = store(self.bucket, name)
        names = {path.name for path in self.expected.iterdir() if path.is_file()}
        assert set(found.list()) == names
        for file in names - {"anabranch.manifest.json", "anabranch.tensors.parquet", "anabranch.inputs.parquet"}:
            assert found.read_bytes(file) == (self.expected / file).read_bytes(), file

    def receipts(self, name: str) -> list[str]:
        return [each for each in store(self.bucket, name).list(".anabranch/receipts") if each.endswith(".json")]


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(request.getfixturevalue(request.param), tmp_path_factory.mktemp("site"))


@pytest.mark.parametrize("site", ["gcs", pytest.param("azure", marks=pytest.mark.slow)], indirect=True)
def test_a_merge_in_and_out_gives_the_bytes_of_a_local_one_and_keeps_to_its_memory(site: Site) -> None:
    done = site.run("merge", str(site.recipe), f"{site.root}/out", "--memory", "640MiB", "--json")
    assert done.returncode == 0, done.stderr
    site.assert_same("out")
    told = json.loads(done.stdout)
    assert told["peak_rss_bytes"] <= 640 << 20
    assert site.run("verify", f"{site.root}/out").returncode == 0
    other = write_recipe(
        site.folder / "other.yml",
        {"merge_method": "passthrough", "models": [{"model": f"{site.root}/base"}]},
    )
    refused = site.run("merge", str(other), f"{site.root}/out")
    assert refused.returncode == 5, "another plan of the same output"


@pytest.mark.parametrize("site", ["gcs", pytest.param("azure", marks=pytest.mark.slow)], indirect=True)
def test_a_killed_merge_resumes_and_its_leftovers_are_told(site: Site) -> None:
    out = f"{site.root}/killed"
    command = site.command("merge", str(site.recipe), out, "--workers", "1")
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=site.environment
    ) as killed:
        deadline = time.monotonic() + 120
        while len(site.receipts("killed")) < 2 and killed.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        killed.kill()
    finished = site.receipts("killed")
    assert 2 <= len(finished) < SHARDS, "killed too late to mean anything"
    names = store(site.bucket, "killed").list()
    assert not {"anabranch.manifest.json", "model.safetensors.index.json"} & {*names}
    assert site.run("gc", out).returncode == 0
    done = site.run("merge", str(site.recipe), out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["shards_resumed"] >= len(finished)
    site.assert_same("killed")
    assert store(site.bucket, "killed").leftovers(names) == ()


@pytest.mark.parametrize("site", ["gcs", pytest.param("azure", marks=pytest.mark.slow)], indirect=True)
def test_a_store_without_credentials_is_told_so(site: Site, tmp_path: Path) -> None:
    """Not that a package is missing, which is what a failed import in a foreign library looks like."""
    names = ("STORAGE_EMULATOR_HOST", "FSSPEC_GS_TOKEN", "AZURE_STORAGE_CONNECTION_STRING")
    bare = {name: value for name, value in site.environment.items() if name not in names}
    bare |= {"HOME": str(tmp_path), "NO_GCE_CHECK": "true", "STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}
    if site.root.startswith("gs://"):
        bare |= {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "none.json"), "FSSPEC_GS_TOKEN": "google_default"}
    done = subprocess.run(
        site.command("plan", str(site.recipe), f"{site.root}/none"),
        capture_output=True, text=True, timeout=240, env=bare, check=False,
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    assert "credentials" in done.stderr
    assert "package" not in done.stderr
