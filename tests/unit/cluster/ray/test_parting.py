"""What workers are told of parts: places in the file, the record of the part ahead, and the end of a shard."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from anabranch.cluster.ray.events import ShardTask
from anabranch.cluster.ray.limits import Limits
from anabranch.cluster.ray.parting import EndErrand, PartErrand, Parting
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run import PartRecord, Place, Shard
from anabranch.engine.storage.local import LocalStore

from ....merging import write_merge

SHARD = Shard(0, (0,))
LIMITS = Limits(part_share=0.5, least_part_bytes=1 << 20)


def parting(folder: Path, shape: tuple[int, int], store: LocalStore | None) -> Parting:
    recipe = write_merge(folder, {"a": shape}, 1, merge_method="task_arithmetic")
    plan = open_inputs(load_recipe(recipe), folder).plan
    task = ShardTask(0, 3 * plan.shards[0].size, plan.shards[0].name)
    return Parting({0: SHARD}, [task], plan, None, store, workers=2, limits=LIMITS, run_id="r1")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "out"), create=True, own=True)


def test_parts_know_the_one_ahead_unless_they_are_begun_beside_it(tmp_path: Path, store: LocalStore) -> None:
    made = parting(tmp_path, (4096, 2048), store)
    *parts, end = made.tasks
    assert [task.after for task in parts].count(()) == 3, "one worker would need three times too long"
    assert store.leftovers(["model.safetensors"]) == ()
    records = {}
    for task in parts:
        errand = made.errand(task.id)
        assert isinstance(errand, PartErrand)
        assert errand.before is (records[task.after[0]] if task.after else None)
        records[task.id] = PartRecord(errand.part, {}, {}, None, b"", b"")
        made.made(task.id, records[task.id])
    (left,) = store.leftovers(["model.safetensors"])
    assert {record.part.token for record in records.values()} == {Path(left.token).name}
    places = [record.part.begin for record in records.values()]
    assert places[0] == Place(0)
    assert [record.part.end for record in records.values()] == [*places[1:], Place(1)]
    last = made.errand(end.id)
    assert isinstance(last, EndErrand)
    assert last.records == list(records.values())
    made.give_up()
    assert store.leftovers(["model.safetensors"]) == ()


def test_files_are_begun_a_few_shards_ahead_and_given_up_together(
    tmp_path: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anabranch.cluster.ray.parting.BEGUN_AHEAD", 2)
    tensors = {f"t{number}": (2048, 1024) for number in range(6)}
    recipe = write_merge(tmp_path, tensors, 1, merge_method="task_arithmetic", output={"shard_size": 9_000_000})
    plan = open_inputs(load_recipe(recipe), tmp_path).plan
    shards = {index: Shard(index, (0,)) for index in range(6)}
    tasks = [ShardTask(index, 3 * shard.size, shard.name) for index, shard in enumerate(plan.shards)]
    limits = Limits(part_share=0.5, least_part_bytes=1 << 20, parted_rounds=9.0)
    made = Parting(shards, tasks, plan, None, store, workers=2, limits=limits, run_id="r1")

    def begun_when(count: int) -> None:
        deadline = time.monotonic() + 10
        while len(store.leftovers([shard.name for shard in plan.shards])) != count:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    for index, begun in enumerate((3, 4, 5)):
        made.errand(index)
        begun_when(begun)
    made.finished(3)
    made.errand(4)
    begun_when(6)
    made.give_up()
    assert [left.name for left in store.leftovers([shard.name for shard in plan.shards])] == [plan.shards[3].name]


def test_a_shard_with_its_receipt_has_no_tasks_left(tmp_path: Path, store: LocalStore) -> None:
    made = parting(tmp_path, (4096, 2048), store)
    assert made.finished(0) == [task.id for task in made.tasks]
    assert made.finished(0) == []


@pytest.mark.parametrize("parted", [True, False])
def test_a_shard_without_places_or_with_one_writer_stays_whole(tmp_path: Path, store: LocalStore, parted: bool) -> None:
    made = parting(tmp_path, (512, 2048) if parted else (4096, 2048), store if parted else None)
    assert [task.id for task in made.tasks] == [0]
    assert made.errand(0) == SHARD
    assert made.finished(0) == []
