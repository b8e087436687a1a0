"""Promises P1 and P2 for inputs that are computed while they are read: adapters and block-scaled weights."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from anabranch.engine.errors import ResourceError
from anabranch.engine.models import derived
from anabranch.engine.plan import Plan
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run import memory
from anabranch.engine.run.memory import LOCAL_READERS, Surroundings, plan_memory

from ...adapters import product, write_adapter
from ...merging import MIB, load_output, merge, write_checkpoint, write_recipe
from ..merge_oracle import merge as oracle
from ..run.test_determinism import EXECUTIONS, run

RANK, BLOCK = 5, (16, 128)
SHAPES = {"layers.0.w": (300, 401), "layers.1.w": (257, 256), "layers.2.w": (70, 999), "norm.weight": (70_001,)}
RECIPES: dict[str, dict[str, Any]] = {
    "cabs": {"merge_method": "cabs", "parameters": {"density": 0.25, "block": 256}},
    "ties": {"merge_method": "ties", "parameters": {"density": 0.3}},
    "magnitude": {"merge_method": "magnitude", "parameters": {"density": {"tadrop": {"mean": 0.3}}}},
    "karcher": {"merge_method": "karcher"},
}


class Place:
    """A base, an adapter on it, a fine-tune in FP8 with block scales and an adapter on that; their values in fp32."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        generator = torch.Generator().manual_seed(9)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        self.base = {name: random(*shape).bfloat16() for name, shape in SHAPES.items()}
        stored: dict[str, torch.Tensor] = {}
        tuned: dict[str, torch.Tensor] = {}
        for name, tensor in self.base.items():
            stored[name] = tuned[name] = tensor
            if tensor.dim() == 2:
                scales = torch.rand(*(-(-size // step) for size, step in zip(tensor.shape, BLOCK, strict=True)))
                stored[name], stored[f"{name}_scale_inv"] = tensor.to(torch.float8_e4m3fn), scales
                spread = scales.repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1)
                tuned[name] = stored[name].float() * spread[: tensor.shape[0], : tensor.shape[1]]
        self.models = []
        for number, values in enumerate((self.base, tuned)):
            factors, whole = {}, {name: tensor.float() for name, tensor in values.items()}
            for name in ("layers.0.w", "layers.2.w")[number:]:
                a, b = random(RANK, SHAPES[name][1]).bfloat16(), random(SHAPES[name][0], RANK) / 8
                factors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
                whole[name] = whole[name] + product(a, b, 6 / RANK)
            self.models.append(whole)
            write_adapter(folder / f"adapter{number}", renamed(factors), r=RANK)
        config = {"torch_dtype": "bfloat16", "quantization_config": {"weight_block_size": list(BLOCK)}}
        write_checkpoint(folder / "base", renamed(self.base), 2, {"torch_dtype": "bfloat16"})
        write_checkpoint(folder / "tuned", renamed(stored), 2, config)

    def recipe(self, name: str, adapters: bool = True) -> Path:
        bases = [str(self.folder / base) for base in ("base", "tuned")]
        models = [{"model": f"{base}+{self.folder}/adapter{i}" if adapters else base} for i, base in enumerate(bases)]
        content = RECIPES[name] | {"models": models, "output": {"shard_size": "300KB"}}
        if name != "karcher":
            content |= {"base_model": bases[0]}
        return write_recipe(self.folder / f"{name}-{adapters}.yml", content)


def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of modules as adapters know them: `layers.0.w` has its weight in `layers.0.w.weight`."""
    found = {}
    for name, tensor in tensors.items():
        plain = "lora" in name or name.startswith("norm")
        found[name if plain else name.replace(".w", ".w.weight", 1)] = tensor
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("derived"))


@pytest.mark.parametrize("name", RECIPES)
def test_no_execution_changes_a_byte(place: Place, tmp_path: Path, name: str) -> None:
    expected = run(place.recipe(name), tmp_path / "out")
    assert sum(file.endswith(".safetensors") for file in expected) > 1
    small = {"PART_ELEMENTS": 7 * RANK, "PIECE_ELEMENTS": 4096, "LONG_PIECE_ELEMENTS": 8192}
    for number, (execution, options) in enumerate(EXECUTIONS.items()):
        with ExitStack() as stack:
            for limit, value in small.items() if number % 2 else ():
                stack.enter_context(mock.patch.object(derived, limit, value))
                stack.enter_context(mock.patch.object(memory, "HELD_BYTES", 16))
                stack.enter_context(mock.patch.object(memory, "LARGE_HELD_BYTES", ()))
            assert run(place.recipe(name), tmp_path / str(number), **options) == expected, execution


@pytest.mark.parametrize("name", ["cabs", "ties"])
def test_the_oracle_merges_the_values_that_were_computed(place: Place, tmp_path: Path, name: str) -> None:
    merge(place.recipe(name), tmp_path / "out")
    density = RECIPES[name]["parameters"]["density"]
    expected = oracle(place.base, place.models, RECIPES[name], [1.0, 1.0], [density, density])
    found = load_output(tmp_path / "out")
    for tensor_name, tensor in renamed(expected).items():
        assert torch.equal(found[tensor_name], tensor), tensor_name


def test_what_is_computed_is_in_the_memory_plan(place: Place) -> None:
    plain, adapted = (open_inputs(load_recipe(place.recipe("cabs", wanted)), place.folder).plan for wanted in (0, 1))
    factors = [4 * RANK * sum(SHAPES[name]) for name in ("layers.0.w", "layers.2.w")]
    scales = 4 * max(-(-rows // BLOCK[0]) * -(-columns // BLOCK[1]) for rows, columns in list(SHAPES.values())[:1])
    assert plan_memory(plain, 1024 * MIB, 1).held_bytes == 2 * scales
    assert plan_memory(adapted, 1024 * MIB, 1).held_bytes > 2 * max(factors)
    fixed = [plan_memory(plan, 1024 * MIB, 1).fixed_bytes for plan in (plain, adapted)]
    assert fixed[1] > fixed[0]
    assert plan_memory(adapted, 1024 * MIB, 1).readers == LOCAL_READERS
    assert plan_memory(adapted, 1024 * MIB, 3).readers == 3
    assert plan_memory(adapted, 1024 * MIB, 3, Surroundings(remote_inputs=True)).readers > 3
    for limit in range(420, 1024, 50):
        assert plan_memory(adapted, limit * MIB, 8).peak_bytes <= limit * MIB


def test_an_adapter_is_read_once_and_its_base_once_for_every_model_on_it(place: Place, tmp_path: Path) -> None:
    plan = open_inputs(load_recipe(place.recipe("cabs")), place.folder).plan
    sizes = [path.stat().st_size for path in place.folder.rglob("*.safetensors")]
    assert plan.read_bytes <= sum(sizes) + sum(tensor.nbytes for tensor in place.base.values())


def test_large_matrices_are_kept_where_memory_is_left_for_them(place: Place) -> None:
    plan = open_inputs(load_recipe(place.recipe("cabs")), place.folder).plan
    with (
        mock.patch.object(memory, "HELD_BYTES", 16),
        mock.patch.object(memory, "LARGE_HELD_BYTES", (1 << 20,)),
        mock.patch.object(derived, "PART_ELEMENTS", RANK),
        mock.patch.object(derived, "LONG_PIECE_ELEMENTS", 64),
        mock.patch.object(derived, "PIECE_ELEMENTS", 64),
    ):
        plenty = plan_memory(plan, 1024 * MIB, 1)
        short = plan_memory(plan, least_limit(plan), 1)
    assert (plenty.held_most_bytes, short.held_most_bytes) == (1 << 20, 16)
    assert short.peak_bytes <= short.limit_bytes
    assert plenty.held_bytes > short.held_bytes


def least_limit(plan: Plan) -> int:
    """The smallest limit that a worker can do with."""
    low, high = 0, 1024 * MIB
    while high - low > 1:
        middle = (low + high) // 2
        try:
            plan_memory(plan, middle, 1)
            high = middle
        except ResourceError:
            low = middle
    return high
