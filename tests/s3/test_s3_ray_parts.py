"""Shards that workers of a real Ray cluster upload to S3 in parts, one of them killed: the bytes of one process."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from anabranch.engine.storage.object_store import ObjectStore
from anabranch.engine.storage.s3_client import S3Client

from ..cluster.conftest import Nodes
from ..merging import merge
from ..parted_shards import LARGEST, LARGEST_BYTES, SMALL_PARTS, uneven_recipe
from .servers import Server, bucket_of

pytestmark = [pytest.mark.s3, pytest.mark.ray]


@pytest.fixture
def nodes(moto: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """Each node has its own credentials: Ray starts with this environment."""
    for name, value in moto.environment().items():
        monkeypatch.setenv(name, value)
    cluster = Nodes()
    yield cluster
    cluster.shutdown()


def uploaded(client: S3Client, store: ObjectStore) -> int:
    """Parts of uploads of the largest shard that have arrived."""
    found, key = 0, f"out/{LARGEST}"
    for left in store.leftovers([LARGEST]):
        upload = {"Bucket": bucket_of(store), "Key": key, "UploadId": left.token}
        answer = client.request("", functools.partial(client.call, "list_parts", **upload))
        found += len(answer.get("Parts", []))
    return found


def test_a_worker_that_is_killed_while_it_uploads_a_part_costs_that_part(
    moto: Server, nodes: Nodes, tmp_path: Path
) -> None:
    recipe, store = uneven_recipe(tmp_path), moto.store("out")
    merge(recipe, tmp_path / "expected")
    nodes.resize(2)
    options = ("--ray", nodes.address, "--insecure-cluster", "--memory", "700MiB")
    driver = subprocess.Popen(
        [sys.executable, "-c", SMALL_PARTS, "merge", str(recipe), store.url, *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    client = moto.client()
    while uploaded(client, store) < 1:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, "the largest shard is not uploaded in parts"
    nodes.workers()[0].kill()
    _, errors = driver.communicate(timeout=240)
    assert driver.returncode == 0, errors
    assert re.search(r"^worker \d was lost with model-\S+, part \d: ", errors, flags=re.MULTILINE), errors
    names = {p.name for p in (tmp_path / "expected").iterdir() if p.is_file()}
    assert set(store.list()) == names
    receipts = [f".anabranch/receipts/{name}.json" for name in names if name.endswith(".safetensors")]
    for name in [*receipts, *(name for name in names if not name.endswith(".parquet") and "manifest" not in name)]:
        assert store.read_bytes(name, LARGEST_BYTES) == (tmp_path / "expected" / name).read_bytes(), name
    assert store.leftovers(names) == ()
