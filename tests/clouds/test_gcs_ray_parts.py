"""Shards that workers of a real Ray cluster upload to Google Cloud Storage in parts: the bytes of one process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..cluster.conftest import Nodes
from ..merging import merge
from ..parted_shards import LARGEST, LARGEST_BYTES, SMALL_PARTS, uneven_recipe
from .servers import GcsServer, store

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def nodes(gcs_parts: GcsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """Each node finds the server by itself: Ray starts with this environment."""
    for name, value in gcs_parts.environment().items():
        monkeypatch.setenv(name, value)
    cluster = Nodes()
    yield cluster
    cluster.shutdown()


def test_a_worker_that_is_killed_while_it_uploads_a_part_costs_that_part(
    gcs_parts: GcsServer, nodes: Nodes, tmp_path: Path
) -> None:
    recipe, out = uneven_recipe(tmp_path), store(gcs_parts.bucket(), "out")
    merge(recipe, tmp_path / "expected")
    nodes.resize(2)
    options = ("--ray", nodes.address, "--insecure-cluster", "--memory", "700MiB")
    driver = subprocess.Popen(
        [sys.executable, "-c", SMALL_PARTS, "merge", str(recipe), out.url, *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not out.leftovers([LARGEST]):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, "the largest shard is not uploaded in parts"
    nodes.workers()[0].kill()
    _, errors = driver.communicate(timeout=240)
    assert driver.returncode == 0, errors
    assert re.search(r"^worker \d was lost with model-\S+, part \d: ", errors, flags=re.MULTILINE), errors
    names = {p.name for p in (tmp_path / "expected").iterdir() if p.is_file()}
    assert set(out.list()) == names
    receipts = [f".anabranch/receipts/{name}.json" for name in names if name.endswith(".safetensors")]
    for name in [*receipts, *(name for name in names if not name.endswith(".parquet") and "manifest" not in name)]:
        assert out.read_bytes(name, LARGEST_BYTES) == (tmp_path / "expected" / name).read_bytes(), name
    assert out.leftovers(names) == ()
