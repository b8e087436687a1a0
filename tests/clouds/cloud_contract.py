"""What every cloud must give our store: the contract of all stores, and what uploads in parts add."""

from __future__ import annotations

import functools

import pytest

from anabranch.engine.errors import ResourceError
from anabranch.engine.storage.object_store import ObjectStore

from ..contract.bucket_contract import BucketContract, pattern
from ..contract.store_contract import RUN_ID
from .servers import PART, store


@functools.cache
def bucket_of(server):
    return server.bucket()


class CloudContract(BucketContract):
    part, piece = PART, 234_567

    @pytest.fixture
    def server(self):
        raise NotImplementedError

    @pytest.fixture
    def store(self, server, request) -> ObjectStore:
        return store(bucket_of(server), f"models/{request.node.name}")

    def test_a_discarded_upload_shows_nothing(self, store):
        writer = store.writer("big", 4 * PART, {}, RUN_ID)
        writer.write(bytes(3 * PART))
        writer.discard()
        writer.discard()
        assert store.list() == []

    def test_twin_uploads_both_succeed_and_the_file_is_whole(self, store):
        data = pattern(3 * PART + 100)
        first = store.writer("big", len(data), {"plan_id": "p"}, RUN_ID)
        second = store.writer("big", len(data), {"plan_id": "p"}, RUN_ID)
        first.write(data[: 2 * PART])
        second.write(data)
        second.commit()
        assert store.read_bytes("big") == data
        first.write(data[2 * PART :])
        first.commit()
        assert store.read_bytes("big") == data

    def test_an_upload_replaces_a_larger_object_only_when_it_is_whole(self, store):
        data = pattern(2 * PART + 1)
        store.replace("big", pattern(4 * PART))
        writer = store.writer("big", len(data), {}, RUN_ID)
        writer.write(data)
        assert store.info("big").size == 4 * PART
        writer.commit()
        assert store.read_bytes("big") == data

    def test_a_missing_bucket_is_a_resource_error(self, server):
        absent = store(server.bucket("no-such-bucket-here"), "x")
        writes = (lambda: absent.replace("a", b"1"), lambda: self.write(absent, "a", bytes(9 * PART)))
        for ask in (absent.list, *writes):
            with pytest.raises(ResourceError, match="no-such-bucket-here"):
                ask()

    def test_a_whole_bucket_is_a_store(self, server):
        whole = store(server.bucket(), "")
        whole.replace("a", b"1")
        whole.replace("f/b", b"1")
        assert whole.list() == ["a"]
        assert whole.list("f") == ["f/b"]
        assert whole.url.count("/") == 2
