"""The merge of several shards, with a survey, that faults are tried on."""

from __future__ import annotations

from pathlib import Path

import torch

from ..merging import write_checkpoint, write_recipe

SHARDS, ROWS, COLUMNS = 5, 256, 512


def write_case(folder: Path) -> Path:
    """A base and two models of a tensor for each shard; returns the recipe."""
    torch.manual_seed(0)
    base = {f"layers.{i}.weight": torch.randn(ROWS, COLUMNS).to(torch.bfloat16) for i in range(SHARDS)}
    write_checkpoint(folder / "base", base, shards=2)
    for i in range(2):
        tuned = {n: t + 0.02 * torch.randn(ROWS, COLUMNS).to(torch.bfloat16) for n, t in base.items()}
        write_checkpoint(folder / f"model{i}", tuned)
    recipe = {
        "merge_method": "cabs",
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / f"model{i}")} for i in range(2)],
        "parameters": {"density": {"tadrop": {"mean": 0.25}}},
        "output": {"shard_size": 2 * ROWS * COLUMNS},
    }
    return write_recipe(folder / "recipe.yml", recipe)
