"""Shards that workers of a real Ray cluster upload to S3 in parts, one of them killed: the bytes of one process."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from anabranch.engine.storage.object_store import ObjectStore
from anabranch.engine.storage.s3_client import S3Client

from ..cluster.conftest import Nodes
from ..killed_uploads import kill_an_uploading_worker
from ..parted_shards import LARGEST
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
    store, client = moto.store("out"), moto.client()
    kill_an_uploading_worker(tmp_path, nodes, store, lambda: uploaded(client, store) >= 1, 120)
