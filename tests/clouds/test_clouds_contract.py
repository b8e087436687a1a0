from __future__ import annotations

import pytest

from anabranch.engine.errors import ResourceError

from ..contract.range_contract import ATTRIBUTES, RangeContract, write
from ..contract.store_contract import RUN_ID
from ..s3.s3_contract import pattern
from .cloud_contract import CloudContract, bucket_of
from .servers import PART, store


class TestGcsOnFakeGcsServer(CloudContract, RangeContract):
    names_leftovers = False

    @pytest.fixture
    def server(self, gcs):
        return gcs

    def test_long_listings_are_read_to_their_end(self, store):
        for number in range(7):
            store.replace(f"many/{number}", b"")
        assert store.list("many") == [f"many/{number}" for number in range(7)]

    def test_unfinished_uploads_are_nobody_s_to_find(self, store):
        writer = store.writer("big", 4 * PART, {}, RUN_ID)
        writer.write(bytes(3 * PART))
        assert store.leftovers(["big"]) == ()
        assert store.list() == []
        writer.discard()
        with pytest.raises(AssertionError, match="discard"):
            writer.commit()


class TestRangesOfGcsWithConditions(RangeContract):
    part = PART

    @pytest.fixture
    def store(self, gcs_parts, request):
        return store(bucket_of(gcs_parts), f"models/{request.node.name}")


class TestAzureOnAzurite(CloudContract, RangeContract):
    @pytest.fixture
    def server(self, azure):
        return azure

    def test_unfinished_writes_are_left_over_and_can_be_deleted(self, store):
        size = 3 * PART
        writers = {name: store.writer(name, size, {}, RUN_ID) for name in ("sub/w", "sub/other", "sub/w/deeper")}
        for writer in writers.values():
            writer.write(pattern(size - 1))
            writer._parts._collect()
        (leftover,) = store.leftovers(["sub/w", "sub/absent"])
        assert (leftover.name, leftover.age_seconds < 600) == ("sub/w", True)
        assert PART <= leftover.size <= size
        assert store.leftovers(["sub/w"], older_than_seconds=3600) == ()
        for _ in range(2):
            store.delete_leftover(leftover)
        assert store.leftovers(["sub/w"]) == ()
        assert store.list("sub") == []
        writers["sub/w"].write(b"!")
        with pytest.raises(FileNotFoundError):
            writers["sub/w"].commit()
        assert store.list("sub") == []
        assert [found.name for found in store.leftovers(["sub/other"])] == ["sub/other"]

    def test_two_uploads_of_one_object_do_not_mix(self, store):
        """Two runs cut a shard at other places; whoever is first has it, and the other one finds it."""
        data = pattern(4 * PART + 9)
        cuts = {self.begin(store, len(data)): (PART, 3 * PART), self.begin(store, len(data)): (2 * PART, 3 * PART + 1)}
        for token, (a, b) in cuts.items():
            for begin, end in ((0, a), (a, b), (b, len(data))):
                write(store, token, data, begin, end)
        for token in cuts:
            store.complete("big", token, len(data), ATTRIBUTES)
        assert store.read_bytes("big") == data
        assert store.leftovers(["big"]) == ()

    def test_what_a_killed_run_left_is_taken_up_or_dropped_by_the_next_commit(self, store):
        data = pattern(3 * PART + 5)
        killed = store.writer("big", len(data), {}, RUN_ID)
        killed.write(data[: 2 * PART])
        killed.write(bytes(PART))
        killed._parts._collect()
        killed.discard()
        assert [found.name for found in store.leftovers(["big"])] == ["big"]
        self.write(store, "big", data, attributes={"plan_id": "p"})
        assert store.read_bytes("big") == data
        assert store.leftovers(["big"]) == ()

    def test_removing_a_left_over_spares_an_object_that_appeared_meanwhile(self, store):
        writer = store.writer("big", 3 * PART, {}, RUN_ID)
        writer.write(pattern(2 * PART + 1))
        writer._parts._collect()
        (leftover,) = store.leftovers(["big"])
        store.replace("big", b"whole")
        store.delete_leftover(leftover)
        assert store.read_bytes("big") == b"whole"

    def test_wrong_credentials_are_a_resource_error_without_secrets(self, azure):
        wrong = "bm90IHRoZSBrZXk="
        bucket = type(bucket_of(azure))(azure.create(), azure.connection(key=wrong))
        with pytest.raises(ResourceError, match="credentials") as caught:
            store(bucket, "x").list()
        assert wrong not in repr(caught.value.__cause__) + str(caught.value)
