"""One local file that several processes write: the same bytes in any order, visible when it is complete."""

from __future__ import annotations

import hashlib
import os
import random
from itertools import pairwise
from pathlib import Path

import pytest

from anabranch.engine.errors import IntegrityError, ResourceError
from anabranch.engine.storage import PartedStore, RunningDigest, digests_move
from anabranch.engine.storage.local import LocalStore
from anabranch.engine.storage.local_ranges import RANGE_GRAIN_BYTES

SIZE = 5 * RANGE_GRAIN_BYTES + 777


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path), own=True)


def write(store: PartedStore, token: str, data: bytes, begin: int, end: int) -> None:
    writer = store.range_writer("x", token, begin, end, len(data))
    writer.write(memoryview(data)[begin:end])
    writer.commit()


def test_a_local_folder_is_a_parted_store(store: LocalStore) -> None:
    assert isinstance(store, PartedStore)
    assert store.takes_ranges
    assert store.range_rules(SIZE).border_bytes == RANGE_GRAIN_BYTES


@pytest.mark.parametrize("seed", range(4))
def test_ranges_in_any_order_and_twice_are_one_file(store: LocalStore, seed: int) -> None:
    chance, data = random.Random(seed), random.Random(9).randbytes(SIZE)
    borders = [0, *sorted(chance.sample(range(1, 6), 3)), 0]
    ends = [border * RANGE_GRAIN_BYTES for border in borders[:-1]] + [SIZE]
    ranges = [(a, b) for a, b in pairwise(ends)] * 2
    chance.shuffle(ranges)
    token = store.begin("x", SIZE, {}, "r1")
    for begin, end in ranges:
        write(store, token, data, begin, end)
    assert store.list() == []
    assert [left.name for left in store.leftovers(["x"])] == ["x"]
    store.complete("x", token, SIZE, {})
    assert store.list() == ["x"]
    assert store.read_bytes("x") == data
    assert store.leftovers(["x"]) == ()


def test_what_is_not_whole_does_not_become_visible(store: LocalStore) -> None:
    token = store.begin("x", SIZE, {}, "r1")
    write(store, token, bytes(SIZE), 0, RANGE_GRAIN_BYTES)
    with pytest.raises(IntegrityError, match=f"{RANGE_GRAIN_BYTES} bytes were written, expected {SIZE}"):
        store.complete("x", token, SIZE, {})
    writer = store.range_writer("x", token, RANGE_GRAIN_BYTES, RANGE_GRAIN_BYTES + 100, SIZE)
    writer.write(bytes(99))
    with pytest.raises(IntegrityError, match="99 bytes were written, expected 100"):
        writer.commit()
    writer.discard()
    store.give_up("x", token)
    store.give_up("x", token)
    assert os.listdir(store.url) == []


def test_a_file_that_was_given_up_is_not_written_again(store: LocalStore) -> None:
    token = store.begin("x", SIZE, {}, "r1")
    store.give_up("x", token)
    with pytest.raises(FileNotFoundError):
        store.range_writer("x", token, 0, SIZE, SIZE)
    with pytest.raises(FileNotFoundError):
        store.complete("x", token, SIZE, {})


def test_a_link_that_was_put_in_its_place_is_not_followed(store: LocalStore, tmp_path: Path) -> None:
    token = store.begin("x", SIZE, {}, "r1")
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / token).unlink()
    (tmp_path / token).symlink_to(victim)
    with pytest.raises(ResourceError, match="symbolic link"):
        store.range_writer("x", token, 0, 4, SIZE)
    assert victim.read_bytes() == b"mine"


def test_every_range_and_the_name_are_made_durable(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("pwrite", "fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _n=name, _o=original, **k: (calls.append(_n), _o(*a, **k))[1])
    token = store.begin("x", SIZE, {}, "r1")
    calls.clear()
    write(store, token, bytes(SIZE), 0, SIZE)
    store.complete("x", token, SIZE, {})
    assert calls == ["pwrite", "fsync", "fsync", "replace", "fsync"]


@pytest.mark.parametrize("cuts", [(0,), (1,), (63, 64, 65), (1000, 1000, 5000)])
def test_a_digest_is_taken_up_where_another_was_put_down(cuts: tuple[int, ...]) -> None:
    assert digests_move(), "this Python's OpenSSL is a library of its own"
    data = bytearray(random.Random(1).randbytes(10_000))
    state, begin = None, 0
    for cut in (*cuts, len(data)):
        digest = RunningDigest(state)
        digest.update(memoryview(data)[begin:cut])
        digest.update(memoryview(b""))
        state, begin = digest.state, cut
    assert digest.hexdigest() == digest.hexdigest() == hashlib.sha256(data).hexdigest()
