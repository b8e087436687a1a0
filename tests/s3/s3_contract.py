"""What every S3 server must give our store: the contract of all stores, and what multipart uploads add."""

from __future__ import annotations

import functools

import pytest

from anabranch.engine.errors import ResourceError

from ..contract.bucket_contract import BucketContract, pattern
from ..contract.range_contract import ATTRIBUTES, RangeContract
from ..contract.store_contract import RUN_ID
from .servers import bucket_of, store_of

PART = 5 << 20


@functools.cache
def _client_and_bucket(server):
    client = server.client()
    return client, server.bucket(client)


class S3Contract(BucketContract, RangeContract):
    part, piece = PART, 1_234_567
    checks_credentials = True
    tells_upload_age = True
    errors_of_a_removed_upload: tuple[type[Exception], ...] = (FileNotFoundError,)

    @pytest.fixture
    def server(self):
        raise NotImplementedError

    @pytest.fixture
    def store(self, server, request):
        client, bucket = _client_and_bucket(server)
        return store_of(bucket, f"models/{request.node.name}", client)

    def test_unfinished_writes_are_left_over_and_can_be_deleted(self, store):
        size = PART + 1
        writer = store.writer("sub/w", size, {}, RUN_ID)
        other = store.writer("sub/other", size, {}, RUN_ID)
        elsewhere = store.writer("sub/w/deeper", size, {}, RUN_ID)
        (leftover,) = store.leftovers(["sub/w", "sub/absent"])
        assert leftover.name == "sub/w"
        if self.tells_upload_age:
            assert store.leftovers(["sub/w"], older_than_seconds=3600) == ()
            assert leftover.age_seconds < 600
        store.delete_leftover(leftover)
        store.delete_leftover(leftover)
        assert store.leftovers(["sub/w"]) == ()
        with pytest.raises(self.errors_of_a_removed_upload):
            self.finish(writer, bytes(size))
        writer.discard()
        assert store.list("sub") == []
        assert [found.name for found in store.leftovers(["sub/other"])] == ["sub/other"]
        other.discard()
        elsewhere.discard()
        assert store.leftovers(["sub/other", "sub/w/deeper"]) == ()

    def finish(self, writer, data: bytes) -> None:
        writer.write(data)
        writer.commit()

    def test_a_discarded_upload_leaves_nothing(self, store):
        writer = store.writer("big", 4 * PART, {}, RUN_ID)
        writer.write(bytes(3 * PART))
        writer.discard()
        writer.discard()
        assert store.list() == []
        assert store.leftovers(["big"]) == ()

    def test_twin_uploads_both_succeed_and_the_file_is_whole(self, store):
        data = pattern(PART + 100)
        first = store.writer("big", len(data), {"plan_id": "p"}, RUN_ID)
        second = store.writer("big", len(data), {"plan_id": "p"}, RUN_ID)
        self.finish(second, data)
        self.finish(first, data)
        assert store.read_bytes("big") == data

    def test_long_listings_are_read_to_their_end(self, store):
        for number in range(7):
            store.replace(f"many/{number}", b"")
        original = store._client.call
        calls = []

        async def small_pages(method, **arguments):
            calls.append(method)
            return await original(method, **arguments, **({"MaxKeys": 3} if method == "list_objects_v2" else {}))

        store._client.call = small_pages
        try:
            assert store.list("many") == [f"many/{number}" for number in range(7)]
        finally:
            del store._client.call
        assert calls == ["list_objects_v2"] * 3

    def test_long_lists_of_parts_are_read_to_their_end(self, store):
        data = pattern(4 * PART)
        token = self.whole(store, data)
        original = store._client.call
        calls = []

        async def small_pages(method, **arguments):
            calls.append(method)
            return await original(method, **arguments, **({"MaxParts": 3} if method == "list_parts" else {}))

        store._client.call = small_pages
        try:
            store.complete("big", token, len(data), ATTRIBUTES)
        finally:
            del store._client.call
        assert calls.count("list_parts") == 2
        assert store.read_bytes("big") == data

    def test_a_given_up_upload_takes_no_more_ranges(self, store):
        token = self.begin(store, 2 * PART)
        store.give_up("big", token)
        store.give_up("big", token)
        assert store.leftovers(["big"]) == ()
        writer = store.range_writer("big", token, 0, PART, 2 * PART)
        writer.write(bytes(PART))
        with pytest.raises(self.errors_of_a_removed_upload):
            writer.commit()
        with pytest.raises(FileNotFoundError):
            store.complete("big", token, 2 * PART, ATTRIBUTES)

    def test_a_missing_bucket_is_a_resource_error(self, server):
        with pytest.raises(ResourceError, match="NoSuchBucket"):
            store_of("no-such-bucket-here", "x", server.client()).list()

    def test_a_whole_bucket_is_a_store(self, server):
        client = server.client()
        store = store_of(server.bucket(client), "", client)
        store.replace("a", b"1")
        store.replace("f/b", b"1")
        assert store.list() == ["a"]
        assert store.list("f") == ["f/b"]
        assert store.url.count("/") == 2

    def test_wrong_credentials_are_a_resource_error_without_secrets(self, store, server):
        client = server.client(secret="not-the-secret")
        if not self.checks_credentials:
            pytest.skip("this server accepts any credentials")
        with pytest.raises(ResourceError) as caught:
            store_of(bucket_of(store), "x", client).list()
        assert "credentials" in str(caught.value)
        assert "not-the-secret" not in repr(caught.value.__cause__) + str(caught.value)
