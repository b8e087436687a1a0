"""A survey's bytes are counted once for plan, progress and scheduler, and are what the fold threads then look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anabranch.engine.output.commit import OutputDirectory
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run.commands import plan
from anabranch.engine.run.folded_bytes import ROUNDS, fold_bytes, survey_bytes
from anabranch.engine.run.meter import Meter
from anabranch.engine.run.protocols import Member
from anabranch.engine.run.runner import run
from anabranch.engine.storage.memory import MemoryStore

from ...adapters import write_adapter
from ...merging import local_runner, write_checkpoint, write_recipe

SIZE, BLOCK = 64, 16
QUANTIZATION = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
SURVEYS = {
    "moments": {"density": {"tadrop": {"mean": 0.5}}},
    "quantiles": {"density": {"tadrop": {"mean": 0.5, "statistic": "quantile"}}},
    "threshold": {"density": 0.5, "scope": "model"},
}


def write_fp8(folder: Path, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(SIZE, SIZE, generator=generator).to(torch.float8_e4m3fn)
    tensors = {"l.weight": codes, "l.weight_scale_inv": torch.ones(SIZE // BLOCK, SIZE // BLOCK)}
    config = {"model_type": "test", "torch_dtype": "bfloat16", "quantization_config": QUANTIZATION}
    return str(write_checkpoint(folder, tensors, config=config))


def write_lora(folder: Path, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(4, SIZE, generator=generator), torch.randn(SIZE, 4, generator=generator)
    return str(write_adapter(folder, {"l.lora_A.weight": a, "l.lora_B.weight": b}))


def recipe_of(folder: Path, inputs: str, parameters: dict[str, Any]) -> Path:
    if inputs == "fp8":
        base, *models = (write_fp8(folder / f"fp8-{i}", i) for i in range(3))
    else:
        base = str(write_checkpoint(folder / "base", {"l.weight": torch.randn(SIZE, SIZE).bfloat16()}))
        models = [f"{base}+{write_lora(folder / f'lora-{i}', i)}" for i in range(2)]
    entries = [{"model": model} for model in models]
    content = {"merge_method": "ties", "base_model": base, "models": entries, "parameters": parameters}
    return write_recipe(folder / "recipe.yml", content)


@pytest.mark.parametrize("inputs", ["fp8", "lora"])
@pytest.mark.parametrize("kind", SURVEYS)
def test_a_survey_of_computed_inputs_is_counted_as_it_is_taken(tmp_path: Path, kind: str, inputs: str) -> None:
    recipe = recipe_of(tmp_path, inputs, SURVEYS[kind])
    opened = open_inputs(load_recipe(recipe), tmp_path)
    made = opened.plan
    assert made.survey_kind == kind
    assert made.has_derived
    assert plan(recipe, tmp_path / "out").as_json()["survey_bytes"] == survey_bytes(made)
    members, meter, told = [Member(opened, OutputDirectory(made, MemoryStore()))], Meter(), Totals()
    run(members, local_runner(members, meter=meter), told)
    assert told.surveys == [survey_bytes(made) // len(ROUNDS[kind])] * len(ROUNDS[kind])
    assert meter.usage["fold"].bytes == survey_bytes(made) + fold_bytes(made, range(len(made.shards)))


class Totals:
    """Remembers what surveys were said to look at."""

    def __init__(self) -> None:
        self.surveys: list[int] = []

    def phase(self, name: str, total_bytes: int, done_bytes: int) -> None:
        if name == "survey":
            self.surveys.append(total_bytes)

    def shard_done(self, shard: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass
