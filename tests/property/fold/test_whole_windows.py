"""Windows folded in one call and tile by tile: the same files, receipts and statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.kernels.window_calls import (
    KeepAll,
    LookCounts,
    MaskRules,
    NearCounts,
    WindowCounts,
    WindowFold,
    WindowInputs,
    WindowLook,
    WindowNear,
    WindowSum,
)

from ...merging import merge, merge_together, write_checkpoint, write_recipe

SHAPES = {"a": (300, 701), "b": (4096,), "c": (257,), "d": (1,), "e": (8192, 33)}


Outs = Sequence[npt.NDArray[np.uint8]]


class TileByTile(CpuKernels):
    """Never folds a window in one call."""

    def fold_window(self, fold: WindowFold, inputs: WindowInputs, outs: Outs) -> WindowCounts | None:
        del fold, inputs, outs
        return None

    def observe_window(self, look: WindowLook, inputs: WindowInputs) -> LookCounts | None:
        del look, inputs
        return None

    def near_window(self, near: WindowNear, inputs: WindowInputs) -> NearCounts | None:
        del near, inputs
        return None


class Counting(CpuKernels):
    """Remembers how many windows it folded in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.folded = self.added = self.observed = self.near = 0

    def fold_window(self, fold: WindowFold, inputs: WindowInputs, outs: Outs) -> WindowCounts | None:
        counts = super().fold_window(fold, inputs, outs)
        self.folded += counts is not None and fold.moments != "kept"
        self.added += counts is not None and fold.moments == "kept"
        return counts

    def observe_window(self, look: WindowLook, inputs: WindowInputs) -> LookCounts | None:
        counts = super().observe_window(look, inputs)
        self.observed += counts is not None
        return counts

    def near_window(self, near: WindowNear, inputs: WindowInputs) -> NearCounts | None:
        counts = super().near_window(near, inputs)
        self.near += counts is not None
        return counts


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three models in bf16, with ties, zeros and negative zeros."""
    folder = tmp_path_factory.mktemp("windows")
    torch.manual_seed(1)
    base = {name: torch.randn(shape).bfloat16() for name, shape in SHAPES.items()}
    write_checkpoint(folder / "base", base)
    for i in range(3):
        tuned = {name: (t.float() + 0.01 * torch.randn(t.shape)).bfloat16() for name, t in base.items()}
        tuned["c"][::2] = -0.0
        write_checkpoint(folder / f"model{i}", tuned)
    return folder


METHODS: dict[str, dict[str, Any]] = {
    "sum": {"merge_method": "task_arithmetic"},
    "normalized": {"merge_method": "task_arithmetic", "parameters": {"normalize": True, "lambda": 0.7}},
    "blocks": {"merge_method": "cabs", "parameters": {"density": 0.25}},
    "blocks of 96": {"merge_method": "cabs", "parameters": {"density": 0.3, "block": 96, "tail": "drop"}},
    "blocks of 3": {"merge_method": "cabs", "parameters": {"density": 0.7, "block": 3, "overlap_merge": "ties"}},
    "no overlap": {"merge_method": "cabs", "parameters": {"density": 0.7, "overlap": "never"}},
    "by statistics": {"merge_method": "cabs", "parameters": {"density": {"tadrop": {}}}},
    "ties": {"merge_method": "ties", "parameters": {"density": 0.2}},
    "ties as a sum": {"merge_method": "ties", "parameters": {"density": 0.37, "normalize": False, "rescale": True}},
    "one threshold": {"merge_method": "ties", "parameters": {"density": 0.3, "scope": "model"}},
    "quantiles": {"merge_method": "ties", "parameters": {"density": {"tadrop": {"statistic": "quantile"}}}},
    "nothing": {"merge_method": "magnitude", "parameters": {"density": 0.0}},
    "random": {"merge_method": "dare_linear", "parameters": {"density": 0.4}},
    "random ties": {"merge_method": "dare_ties", "parameters": {"density": 0.4}},
    "energy": {"merge_method": "sce"},
    "variance": {"merge_method": "sce", "parameters": {"select_topk": 0.3, "lambda": 0.8}},
    "bands": {"merge_method": "breadcrumbs", "parameters": {"density": 0.4}},
    "bands with signs": {"merge_method": "breadcrumbs_ties", "parameters": {"density": 0.9, "gamma": 0.05}},
    "norms": {"merge_method": "dare_linear", "parameters": {"density": 0.4, "rescale": True, "rescale_norm": "l2"}},
}
SEARCHING = {"ties", "ties as a sum", "quantiles", "nothing", "bands", "bands with signs", "variance"}
"""What searches for keys of each tensor."""
ADDING = {"ties as a sum", "energy", "variance", "norms"}
"""What takes sums of what masks keep."""


@pytest.mark.parametrize("method", METHODS)
def test_one_call_and_many_give_the_same(checkpoints: Path, tmp_path: Path, method: str) -> None:
    models: list[dict[str, Any]] = [{"model": str(checkpoints / f"model{i}")} for i in range(3)]
    for i, model in enumerate(models) if METHODS[method]["merge_method"] != "sce" else ():
        model["parameters"] = {"weight": 0.9 - 0.4 * i}
    recipe = write_recipe(
        tmp_path / "recipe.yml", METHODS[method] | {"base_model": str(checkpoints / "base"), "models": models}
    )
    kernels = Counting()
    merge(recipe, tmp_path / "whole", kernels=kernels)
    merge(recipe, tmp_path / "tiles", kernels=TileByTile())
    assert kernels.folded == len(SHAPES) and kernels.added == len(SHAPES) * (method in ADDING)
    assert (kernels.near > 0) == (method in SEARCHING)
    assert kernels.observed == 0  # the sample holds whole tensors, or a key that is not missed
    for name in ("model.safetensors", "anabranch.manifest.json", ".anabranch/receipts/model.safetensors.json"):
        whole, tiles = ((tmp_path / out / name) for out in ("whole", "tiles"))
        assert whole.exists() == tiles.exists()
        if whole.exists():
            assert whole.read_bytes() == tiles.read_bytes(), name


@pytest.mark.parametrize(
    "names", [("sum", "normalized"), ("ties", "ties as a sum", "nothing"), ("random", "random ties")]
)
def test_one_call_makes_the_outputs_of_all_recipes_that_select_alike(
    checkpoints: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    """Three weights of each method; those that select alike share a call."""
    recipes = {}
    for name in names:
        for weight in (0.3, 0.9, 2.0):
            models = [{"model": str(checkpoints / f"model{i}"), "parameters": {"weight": weight - i}} for i in range(3)]
            content = METHODS[name] | {"base_model": str(checkpoints / "base"), "models": models}
            recipes[f"{name} {weight}"] = write_recipe(tmp_path / f"{name} {weight}.yml", content)
    whole, alone = Counting(), Counting()
    merge_together({path: tmp_path / "whole" / name for name, path in recipes.items()}, kernels=whole)
    merge_together({path: tmp_path / "tiles" / name for name, path in recipes.items()}, kernels=TileByTile())
    selections = {str(METHODS[name].get("parameters", {}).get("density")) for name in names}
    for name, path in recipes.items():
        merge(path, tmp_path / "alone" / name, kernels=alone)
        for file in ("model.safetensors", "anabranch.manifest.json"):
            expected = (tmp_path / "alone" / name / file).read_bytes()
            assert (tmp_path / "whole" / name / file).read_bytes() == expected, name
            assert (tmp_path / "tiles" / name / file).read_bytes() == expected, name
    assert whole.folded * len(recipes) == alone.folded * len(selections)


def test_what_is_not_offered_is_left_alone() -> None:
    """fp16 is folded tile by tile; the output is not touched."""
    out = np.full(8, 7, np.uint8)
    raws = [np.zeros(8, np.uint8)] * 2
    inputs = WindowInputs(0, raws, ["F16", "F16"])
    summed = WindowSum("F16", False, "sum", [1.0], [1.0])
    fold = WindowFold(MaskRules([KeepAll()]), "none", [1.0], [summed])
    assert CpuKernels().fold_window(fold, inputs, [out]) is None
    assert (out == 7).all()
