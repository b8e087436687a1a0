"""A shard for tests that several workers write in parts, each as another process would."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.output import OutputDirectory
from anabranch.engine.plan import Plan, Receipt, share_reading
from anabranch.engine.plan.inputs import Inputs, open_inputs
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run.execution import Execution, worker_memory
from anabranch.engine.run.meter import Meter
from anabranch.engine.run.part_writer import Part, PartRecord
from anabranch.engine.run.parts import PartWorker, begin_shard
from anabranch.engine.run.places import Place, Places
from anabranch.engine.run.protocols import Member, Silent
from anabranch.engine.run.shard import ShardWorker
from anabranch.engine.run.surveys import take_surveys
from anabranch.engine.storage.protocol import PartedStore

from .merging import MIB, local_runner, write_checkpoint, write_recipe

WINDOW = 1 << 20
METHODS: dict[str, dict[str, Any]] = {
    "cabs": {"merge_method": "cabs", "parameters": {"density": 0.25}},
    "surveyed": {"merge_method": "cabs", "parameters": {"density": {"tadrop": {"mean": 0.25}}}},
    "task_arithmetic": {"merge_method": "task_arithmetic"},
    "dare": {"merge_method": "dare_linear", "parameters": {"density": 0.5}},
    "linear": {"merge_method": "linear"},
    "ties": {"merge_method": "ties", "parameters": {"density": 0.3}},
}

LARGEST = "model-00001-of-00003.safetensors"
"""Of the shards of `uneven_recipe`."""
LARGEST_BYTES = 64 << 20
SMALL_PARTS = """
import sys
from functools import partial
from anabranch.cluster.ray import driver
driver.Limits = partial(driver.Limits, least_part_bytes=48 << 20)
from anabranch.cluster.cli import main
sys.exit(main())
"""
"""The command, for shards that are smaller than those that are worth a part each."""


def uneven_recipe(folder: Path) -> Path:
    """Three shards of one tensor each, the first much larger than the others, and densities from a survey."""
    torch.manual_seed(0)
    rows = {"embedding": 6144, "layers.0.weight": 2048, "layers.1.weight": 2048}
    base = {name: torch.randn(count, 4096).to(torch.bfloat16) for name, count in rows.items()}
    write_checkpoint(folder / "base", base)
    for i in range(2):
        noise = 0.02 * torch.randn(6144, 4096).to(torch.bfloat16)
        write_checkpoint(folder / f"model{i}", {name: t + noise[: len(t)] for name, t in base.items()})
    recipe = {
        "merge_method": "cabs",
        "parameters": {"density": {"tadrop": {"mean": 0.25}}},
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / f"model{i}")} for i in range(2)],
        "output": {"shard_size": 20_000_000},
    }
    return write_recipe(folder / "recipe.yml", recipe)


def write(folder: Path, method: dict[str, Any], *, nan: bool = False, rows: int = 2500) -> Path:
    """Three models of one file each: a large tensor, one that is copied, and small ones, together 15 MB."""
    generator = torch.Generator().manual_seed(7)
    shapes = {"large": (rows, 2049), "other": (1025, 2048), "small.weight": (300, 41), "tiny": (17,)}
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

    def __init__(self, recipe: Path, store: PartedStore) -> None:
        self.inputs: Inputs = open_inputs(load_recipe(recipe), recipe.parent)
        self.plan: Plan = self.inputs.plan
        self.store = store
        self.output = OutputDirectory(self.plan, self.store)
        self.output.open()
        member = Member(self.inputs, self.output)
        (self.survey,) = take_surveys([member], [0], local_runner([member]), Silent())
        self.places = Places(self.plan, 0, self.survey)
        self.size = self.plan.shards[0].size
        self.token = begin_shard(self.plan, 0, self.store, "r1")

    def worker(self) -> PartWorker:
        """As another process would make it."""
        group = share_reading([self.plan])
        memory = worker_memory([Member(self.inputs, self.output)], Execution(2, 1024 * MIB))
        meter = Meter()
        shards = ShardWorker(group, self.inputs.stores, [self.output], memory, CpuKernels(), meter)
        return PartWorker(shards, self.plan, self.survey, self.output, meter)

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

    def cut_near(self, shares: Sequence[float]) -> list[Part]:
        """As the driver cuts it near some shares of its size, as the store's rules allow."""
        begins = [(share, False) for share in (0.0, *sorted(shares))]
        stretches = self.places.stretches(begins, self.store.range_rules(self.size).least_bytes)
        return self.cut([begin for begin, _, _ in stretches[1:]])

    def random_cut(self, chance: random.Random, count: int) -> list[Part]:
        found = {self.places.near(chance.randrange(self.size)) for _ in range(count)} - {Place(0)}
        return self.cut(sorted(found))
