"""Surveys: what many tensors of one shard add together is exact whatever the threads do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from ...merging import merge, write_checkpoint, write_recipe

TENSORS, SIZE = 800, 500


def test_a_threshold_over_many_tensors_counts_every_element_once(tmp_path: Path) -> None:
    """Tensors of one window each are folded at the same time and end in the same histogram."""
    generator = torch.Generator().manual_seed(2)
    base = {f"w{i:03}": torch.zeros(SIZE) for i in range(TENSORS)}
    model = {name: torch.randn(SIZE, generator=generator) for name in base}
    write_checkpoint(tmp_path / "base", base)
    write_checkpoint(tmp_path / "model", model)
    recipe = {
        "merge_method": "ties",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / "model")}],
        "parameters": {"density": 0.2, "scope": "model"},
    }
    path = write_recipe(tmp_path / "recipe.yml", recipe)
    whole = np.sort(np.abs(np.concatenate([t.numpy() for t in model.values()])))
    expected = whole[whole.size - int(0.2 * whole.size) - 1]
    for run in range(3):
        out = tmp_path / f"out{run}"
        merge(path, out, threads=8)
        [row] = json.loads((out / "anabranch.manifest.json").read_text())["survey"]
        assert np.uint32(row["threshold_key"]).view(np.float32) == expected
        parts = [json.loads(p.read_text()) for p in (out / ".anabranch/survey").glob("*-high.json")]
        assert sum(sum(part["counts"].values()) for part in parts) == whole.size
