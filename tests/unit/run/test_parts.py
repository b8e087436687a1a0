"""Shards that are written in parts: the bytes, receipts and digests of shards that one worker writes."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from anabranch.engine.errors import InputError
from anabranch.engine.plan import Receipt
from anabranch.engine.run.places import Place
from anabranch.engine.storage import running_digest
from anabranch.engine.storage.local import LocalStore
from anabranch.engine.storage.local_ranges import RANGE_GRAIN_BYTES

from ...merging import merge
from ...parted_shards import METHODS, WINDOW, Writing, write


def writing_to(recipe: Path, out: Path) -> Writing:
    return Writing(recipe, LocalStore(str(out), create=True, own=True))


def assert_same(out: Path, expected: Path, receipt: Receipt) -> None:
    (name,) = (p.name for p in expected.glob("*.safetensors"))
    assert (out / name).read_bytes() == (expected / name).read_bytes()
    for suffix in ("json", "parquet"):
        place = f".anabranch/receipts/{name}.{suffix}"
        assert (out / place).read_bytes() == (expected / place).read_bytes()
    assert receipt.name == name
    assert [p.name for p in out.glob(".anabranch-*")] == []


@pytest.mark.parametrize("method", METHODS)
def test_parts_that_know_each_other_or_not_give_the_shard_and_receipt_of_one_worker(
    tmp_path: Path, method: str
) -> None:
    recipe = write(tmp_path, METHODS[method])
    merge(recipe, tmp_path / "expected")
    chance = random.Random(method)
    for number, heads in enumerate((0, 1, 3)):
        writing = writing_to(recipe, tmp_path / f"out{number}")
        cut = writing.random_cut(chance, 8)
        large = [n for n, part in enumerate(cut) if n and writing.size_of(part) > 2 * RANGE_GRAIN_BYTES]
        apart = set(chance.sample(large, min(heads, len(large))))
        assert_same(tmp_path / f"out{number}", tmp_path / "expected", writing.receipt(cut, apart))


def test_only_what_looks_once_at_elements_or_blocks_is_cut_inside_a_tensor(tmp_path: Path) -> None:
    cuts = {}
    for name, method in METHODS.items():
        places = writing_to(write(tmp_path / name, method), tmp_path / name / "out").places
        cuts[name] = {
            place.tensor for byte in range(0, places.byte(places.end), WINDOW) if (place := places.near(byte)).element
        }
    assert cuts == {name: {0, 1} for name in METHODS} | {"ties": {1}}


def test_without_a_digest_that_moves_everything_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write(tmp_path, METHODS["cabs"])
    merge(recipe, tmp_path / "expected")
    monkeypatch.setattr(running_digest, "_openssl", lambda: None)
    writing = writing_to(recipe, tmp_path / "out")
    finished = writing.random_cut(random.Random(1), 5)
    assert_same(tmp_path / "out", tmp_path / "expected", writing.receipt(finished, set()))


def test_a_part_may_be_written_again_while_another_worker_still_writes_it(tmp_path: Path) -> None:
    recipe = write(tmp_path, METHODS["cabs"])
    merge(recipe, tmp_path / "expected")
    writing = writing_to(recipe, tmp_path / "out")
    cut = writing.cut([Place(0, WINDOW), Place(0, 3 * WINDOW)])
    first = writing.worker().make(cut[0], None)
    with ThreadPoolExecutor(2) as pool:
        twins = [pool.submit(writing.worker().make, cut[1], first) for _ in range(2)]
    again = [twin.result() for twin in twins]
    assert again[0].tail == again[1].tail
    last = writing.worker().make(cut[2], again[1])
    assert_same(tmp_path / "out", tmp_path / "expected", writing.worker().finish([first, again[0], last]))


def test_a_shard_whose_receipt_was_not_written_is_finished_by_another(tmp_path: Path) -> None:
    recipe = write(tmp_path, METHODS["cabs"])
    merge(recipe, tmp_path / "expected")
    writing = writing_to(recipe, tmp_path / "out")
    (cut,) = writing.cut([])
    record = writing.worker().make(cut, None)
    writing.store.complete(writing.plan.shards[0].name, writing.token, writing.size, {})
    assert_same(tmp_path / "out", tmp_path / "expected", writing.worker().finish([record]))
    assert writing.worker().finish([record]) == writing.output.receipt(0)


def test_a_value_that_cannot_be_merged_is_counted_over_all_parts_and_nothing_becomes_visible(tmp_path: Path) -> None:
    recipe = write(tmp_path, METHODS["cabs"], nan=True)
    with pytest.raises(InputError) as alone:
        merge(recipe, tmp_path / "expected")
    writing = writing_to(recipe, tmp_path / "out")
    cut = writing.cut([Place(0, WINDOW), Place(0, 4 * WINDOW)])
    with pytest.raises(InputError) as parted:
        writing.receipt(cut, set())
    assert str(parted.value) == str(alone.value)
    assert list((tmp_path / "out").glob("*.safetensors")) == []


def test_a_part_of_a_file_that_was_given_up_says_so(tmp_path: Path) -> None:
    writing = writing_to(write(tmp_path, METHODS["cabs"]), tmp_path / "out")
    cut = writing.cut([Place(0, WINDOW)])
    first = writing.worker().make(cut[0], None)
    writing.store.give_up(writing.plan.shards[0].name, writing.token)
    with pytest.raises(FileNotFoundError):
        writing.worker().make(cut[1], first)
    assert list((tmp_path / "out").glob(".anabranch-*")) == []
