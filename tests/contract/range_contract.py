"""What a store in a bucket must keep where several processes upload one object, each a range of it."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from anabranch.engine.errors import IntegrityError
from anabranch.engine.storage import PartedStore

from .bucket_contract import pattern
from .store_contract import RUN_ID

ATTRIBUTES = {"plan_id": "p"}


def write(store: PartedStore, token: str, data: bytes, begin: int, end: int, piece: int = 1_234_567) -> None:
    writer = store.range_writer("big", token, begin, end, len(data))
    for place in range(begin, end, piece):
        writer.write(memoryview(data)[place : min(place + piece, end)])
    writer.commit()
    writer.discard()


class RangeContract:
    part: int
    """Bytes of a part of an upload to the store."""

    def begin(self, store: PartedStore, size: int) -> str:
        return store.begin("big", size, ATTRIBUTES, RUN_ID)

    def whole(self, store: PartedStore, data: bytes) -> str:
        """An upload that waits to be completed."""
        token = self.begin(store, len(data))
        write(store, token, data, 0, len(data))
        return token

    def test_it_is_a_parted_store(self, store):
        assert isinstance(store, PartedStore)
        assert store.takes_ranges

    @pytest.mark.parametrize("seed", range(3))
    def test_ranges_in_any_order_and_twice_are_one_object(self, store, seed):
        chance, least = random.Random(seed), store.range_rules(4 * self.part).least_bytes
        size = 4 * self.part + chance.choice([0, 1, 12345])
        data = pattern(size)
        first = chance.randrange(least, size - 2 * least)
        ranges = [*pairwise([0, first, chance.randrange(first + least, size), size])] * 2
        chance.shuffle(ranges)
        token = self.begin(store, size)
        for begin, end in ranges:
            write(store, token, data, begin, end)
        assert store.list() == []
        assert {left.name for left in store.leftovers(["big"])} == {"big"}
        store.complete("big", token, size, ATTRIBUTES)
        assert store.list() == ["big"]
        assert store.read_bytes("big") == data
        assert store.attributes("big") == ATTRIBUTES
        assert store.leftovers(["big"]) == ()

    def test_an_upload_is_completed_by_a_second_worker_if_the_first_gave_no_answer(self, store):
        data = pattern(self.part + 100)
        token = self.whole(store, data)
        for _ in range(2):
            store.complete("big", token, len(data), ATTRIBUTES)
        assert store.read_bytes("big") == data

    def test_what_is_not_whole_does_not_become_visible(self, store):
        data = pattern(3 * self.part)
        token = self.begin(store, len(data))
        for begin, end in ((0, self.part), (2 * self.part, 3 * self.part)):
            write(store, token, data, begin, end)
        with pytest.raises((IntegrityError, FileNotFoundError)):
            store.complete("big", token, len(data), ATTRIBUTES)
        assert store.list() == []
        writer = store.range_writer("big", token, self.part, 2 * self.part, len(data))
        writer.write(bytes(self.part - 1))
        with pytest.raises(IntegrityError, match=f"{self.part - 1} bytes were written, expected {self.part}"):
            writer.commit()
        with pytest.raises(IntegrityError, match="more"):
            writer.write(bytes(2))
        writer.discard()

    def test_a_discarded_range_leaves_the_upload_to_the_others(self, store):
        data = pattern(2 * self.part)
        token = self.begin(store, len(data))
        write(store, token, data, 0, self.part)
        writer = store.range_writer("big", token, self.part, 2 * self.part, len(data))
        writer.write(bytes(self.part // 2))
        writer.discard()
        writer.discard()
        write(store, token, data, self.part, 2 * self.part)
        store.complete("big", token, len(data), ATTRIBUTES)
        assert store.read_bytes("big") == data

    def test_an_abandoned_upload_is_left_over_and_gone_when_it_was_removed(self, store):
        data = pattern(2 * self.part)
        token = self.whole(store, data)
        (left,) = store.leftovers(["big"])
        store.delete_leftover(left)
        assert store.leftovers(["big"]) == ()
        with pytest.raises(FileNotFoundError):
            store.complete("big", token, len(data), ATTRIBUTES)
        assert store.list() == []

    def test_an_upload_that_a_twin_run_overtook_ends_well(self, store):
        """A whole object of the same plan is there, and the upload was removed as a left-over of a finished run."""
        data = pattern(self.part + 5)
        token = self.whole(store, data)
        twin = store.writer("big", len(data), ATTRIBUTES, RUN_ID)
        twin.write(data)
        twin.commit()
        for left in store.leftovers(["big"]):
            store.delete_leftover(left)
        store.complete("big", token, len(data), ATTRIBUTES)
        assert store.read_bytes("big") == data

    def test_an_object_of_another_plan_is_not_taken_for_ours(self, store):
        data = pattern(self.part + 5)
        token = self.whole(store, data)
        for left in store.leftovers(["big"]):
            store.delete_leftover(left)
        other = store.writer("big", len(data), {"plan_id": "q"}, RUN_ID)
        other.write(data)
        other.commit()
        with pytest.raises(FileNotFoundError):
            store.complete("big", token, len(data), ATTRIBUTES)
