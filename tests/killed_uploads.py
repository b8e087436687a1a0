"""A merge to a bucket of which one worker is killed while it uploads a part; for every cloud."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from anabranch.engine.storage.object_store import ObjectStore

from .cluster.conftest import Nodes
from .merging import merge
from .parted_shards import LARGEST_BYTES, SMALL_PARTS, uneven_recipe


def kill_an_uploading_worker(
    folder: Path, nodes: Nodes, out: ObjectStore, has_begun: Callable[[], bool], patience_seconds: float
) -> None:
    """Kill a worker as soon as a part of the largest shard is on its way; the bytes are those of one process.

    Args:
        folder: of the inputs and the expected output.
        nodes: of a Ray cluster.
        out: an empty output in the bucket.
        has_begun: whether bytes of the largest shard have arrived there.
        patience_seconds: how long to wait for that.
    """
    recipe, expected = uneven_recipe(folder), folder / "expected"
    merge(recipe, expected)
    nodes.resize(2)
    options = ("--ray", nodes.address, "--insecure-cluster", "--memory", "700MiB")
    driver = subprocess.Popen(
        [sys.executable, "-c", SMALL_PARTS, "merge", str(recipe), out.url, *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    deadline = time.monotonic() + patience_seconds
    while not has_begun():
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, "the largest shard is not uploaded in parts"
    nodes.workers()[0].kill()
    _, errors = driver.communicate(timeout=240)
    assert driver.returncode == 0, errors
    assert re.search(r"^worker \d was lost with model-\S+, part \d: ", errors, flags=re.MULTILINE), errors
    names = {p.name for p in expected.iterdir() if p.is_file()}
    assert set(out.list()) == names
    receipts = [f".anabranch/receipts/{name}.json" for name in names if name.endswith(".safetensors")]
    for name in [*receipts, *(name for name in names if not name.endswith(".parquet") and "manifest" not in name)]:
        assert out.read_bytes(name, LARGEST_BYTES) == (expected / name).read_bytes(), name
    assert out.leftovers(names) == ()
