"""Shards that are written in parts: the bytes, receipts and digests of shards that one worker writes."""

from __future__ import annotations

import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from anabranch.engine.errors import InputError
from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.output import OutputDirectory
from anabranch.engine.plan import Plan, Receipt, cut_elements, share_reading
from anabranch.engine.plan.inputs import Inputs, open_inputs
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run.execution import Execution, worker_memory
from anabranch.engine.run.meter import Meter
from anabranch.engine.run.part_writer import Part, PartRecord
from anabranch.engine.run.parts import PartWorker
from anabranch.engine.run.places import Place, Places
from anabranch.engine.run.protocols import Member
from anabranch.engine.run.shard import ShardWorker
from anabranch.engine.storage import open_store, running_digest
from anabranch.engine.storage.local_ranges import RANGE_GRAIN_BYTES
from anabranch.engine.storage.protocol import PartedStore

from ...merging import MIB, merge, write_checkpoint, write_recipe

WINDOW = 1 << 20
METHODS: dict[str, dict[str, Any]] = {
    "cabs": {"merge_method": "cabs", "parameters": {"density": 0.25}},
    "task_arithmetic": {"merge_method": "task_arithmetic"},
    "dare": {"merge_method": "dare_linear", "parameters": {"density": 0.5}},
    "linear": {"merge_method": "linear"},
    "ties": {"merge_method": "ties", "parameters": {"density": 0.3}},
}


def write(folder: Path, method: dict[str, Any], nan: bool = False) -> Path:
    """Three models of one file each: a large tensor, one that is copied, and small ones, together 15 MB."""
    generator = torch.Generator().manual_seed(7)
    shapes = {"large": (2500, 2049), "other": (1025, 2048), "small.weight": (300, 41), "tiny": (17,)}
    base = {name: torch.randn(*shape, generator=generator).to(torch.bfloat16) for name, shape in shapes.items()}
    write_checkpoint(folder / "base", base)
    for i in range(2):
        noise = {name: 0.1 * torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
        tuned = {name: tensor + noise[name].to(torch.bfloat16) for name, tensor in base.items()}
        tuned["other"] = base["other"]
        if nan and i:
            tuned["large"][2400, 5] = float("nan")
        write_checkpoint(folder / f"model{i}", tuned)
    models = [{"model": str(folder / f"model{i}"), "parameters": {"weight": 0.5}} for i in range(2)]
    keys = {"base_model": str(folder / "base")} if method["merge_method"] != "linear" else {}
    return write_recipe(folder / "recipe.yml", method | keys | {"models": models, "exclude": ["other"]})


class Writing:
    """The only shard of a recipe, with a worker that writes parts of it."""

    def __init__(self, recipe: Path, out: Path) -> None:
        self.inputs: Inputs = open_inputs(load_recipe(recipe), recipe.parent)
        self.plan: Plan = self.inputs.plan
        self.store = open_store(str(out), create=True, own=True)
        assert isinstance(self.store, PartedStore)
        self.output = OutputDirectory(self.plan, self.store)
        self.output.open()
        self.places = Places(self.plan, 0)
        self.size = self.plan.shards[0].size
        self.token = self.store.begin(self.plan.shards[0].name, self.size, {}, "r1")

    def worker(self) -> PartWorker:
        """As another process would make it."""
        group = share_reading([self.plan])
        memory = worker_memory([Member(self.inputs, self.output)], Execution(2, 1024 * MIB))
        meter = Meter()
        shards = ShardWorker(group, self.inputs.stores, [self.output], memory, CpuKernels(), meter)
        return PartWorker(shards, self.plan, None, self.output, meter)

    def cut(self, places: list[Place]) -> list[Part]:
        return [Part(0, a, b, self.token) for a, b in pairwise([Place(0), *places, self.places.end])]

    def receipt(self, cut: list[Part], heads: set[int]) -> Receipt:
        """Write the parts, those in `heads` without knowing the part ahead, and finish the shard."""
        records: dict[int, PartRecord] = {}
        for number in [*sorted(heads, reverse=True), *(n for n in range(len(cut)) if n not in heads)]:
            before = None if number in heads or number == 0 else records[number - 1]
            # A record travels from one process to another.
            records[number] = pickle.loads(pickle.dumps(self.worker().make(cut[number], before)))
        return self.worker().finish([records[number] for number in range(len(cut))])

    def size_of(self, part: Part) -> int:
        return self.places.byte(part.end) - self.places.byte(part.begin)

    def random_cut(self, chance: random.Random, count: int) -> list[Part]:
        found = {self.places.near(chance.randrange(self.size)) for _ in range(count)} - {Place(0)}
        return self.cut(sorted(found))


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
        writing = Writing(recipe, tmp_path / f"out{number}")
        cut = writing.random_cut(chance, 8)
        large = [n for n, part in enumerate(cut) if n and writing.size_of(part) > 2 * RANGE_GRAIN_BYTES]
        apart = set(chance.sample(large, min(heads, len(large))))
        assert_same(tmp_path / f"out{number}", tmp_path / "expected", writing.receipt(cut, apart))


def test_only_what_looks_once_at_elements_or_blocks_is_cut_inside_a_tensor(tmp_path: Path) -> None:
    cuts = {}
    for name, method in METHODS.items():
        plan = Writing(write(tmp_path / name, method), tmp_path / name / "out").plan
        cuts[name] = {task.name for task in plan.tasks if cut_elements(task)}
    assert cuts == {name: {"large", "other"} for name in METHODS} | {"ties": {"other"}}


def test_without_a_digest_that_moves_everything_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write(tmp_path, METHODS["cabs"])
    merge(recipe, tmp_path / "expected")
    monkeypatch.setattr(running_digest, "_openssl", lambda: None)
    writing = Writing(recipe, tmp_path / "out")
    finished = writing.random_cut(random.Random(1), 5)
    assert_same(tmp_path / "out", tmp_path / "expected", writing.receipt(finished, set()))


def test_a_part_may_be_written_again_while_another_worker_still_writes_it(tmp_path: Path) -> None:
    recipe = write(tmp_path, METHODS["cabs"])
    merge(recipe, tmp_path / "expected")
    writing = Writing(recipe, tmp_path / "out")
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
    writing = Writing(recipe, tmp_path / "out")
    (cut,) = writing.cut([])
    record = writing.worker().make(cut, None)
    writing.store.complete(writing.plan.shards[0].name, writing.token, writing.size, {})
    assert_same(tmp_path / "out", tmp_path / "expected", writing.worker().finish([record]))
    assert writing.worker().finish([record]) == writing.output.receipt(0)


def test_a_value_that_cannot_be_merged_is_counted_over_all_parts_and_nothing_becomes_visible(tmp_path: Path) -> None:
    recipe = write(tmp_path, METHODS["cabs"], nan=True)
    with pytest.raises(InputError) as alone:
        merge(recipe, tmp_path / "expected")
    writing = Writing(recipe, tmp_path / "out")
    cut = writing.cut([Place(0, WINDOW), Place(0, 4 * WINDOW)])
    with pytest.raises(InputError) as parted:
        writing.receipt(cut, set())
    assert str(parted.value) == str(alone.value)
    assert list((tmp_path / "out").glob("*.safetensors")) == []


def test_a_part_of_a_file_that_was_given_up_says_so(tmp_path: Path) -> None:
    writing = Writing(write(tmp_path, METHODS["cabs"]), tmp_path / "out")
    cut = writing.cut([Place(0, WINDOW)])
    first = writing.worker().make(cut[0], None)
    writing.store.give_up(writing.plan.shards[0].name, writing.token)
    with pytest.raises(FileNotFoundError):
        writing.worker().make(cut[1], first)
    assert list((tmp_path / "out").glob(".anabranch-*")) == []
