"""Coefficient methods on tensors small enough to work out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anabranch.engine.errors import RecipeError
from anabranch.engine.recipe import parse_recipe

from ..merging import merge_tensors


def merged(folder: Path, models: list[list[float]], **recipe: Any) -> list[float]:
    """One tensor `layers.0.w` of each model, merged."""
    tensors = [{"layers.0.w": torch.tensor(values)} for values in models]
    found: list[float] = merge_tensors(folder, None, tensors, recipe)["layers.0.w"].tolist()
    return found


# -- passthrough -----------------------------------------------------------------------------------------------------


def test_passthrough_multiplies_by_the_scale(tmp_path: Path) -> None:
    found = merged(tmp_path, [[1.0, -2.0, 0.5]], merge_method="passthrough", parameters={"scale": 3})
    assert found == [3.0, -6.0, 1.5]


def test_passthrough_without_a_scale_copies_every_bit(tmp_path: Path) -> None:
    odd = {"a": torch.tensor([-0.0, float("nan"), float("inf"), 1e-45]), "layers.0.n": torch.arange(3)}
    found = merge_tensors(tmp_path, None, [odd], {"merge_method": "passthrough"})
    assert torch.equal(found["a"].view(torch.int32), odd["a"].view(torch.int32))
    assert torch.equal(found["layers.0.n"], odd["layers.0.n"])


def test_passthrough_scales_along_a_gradient_and_by_name(tmp_path: Path) -> None:
    model = {f"layers.{i}.{kind}": torch.ones(2) for i in range(3) for kind in ("mlp", "attn")}
    parameters = {"scale": [{"filter": "mlp", "value": [0.0, 1.0]}, {"value": 1.0}]}
    found = merge_tensors(tmp_path, None, [model], {"merge_method": "passthrough", "parameters": parameters})
    assert [found[f"layers.{i}.mlp"][0].item() for i in range(3)] == [0.0, 0.5, 1.0]
    assert all(found[f"layers.{i}.attn"].tolist() == [1.0, 1.0] for i in range(3))


# -- what recipes may say --------------------------------------------------------------------------------------------

WRONG = [
    (
        "merge_method: passthrough\nmodels: [{model: a}, {model: b}]",
        "models: expected exactly one model to merge, got 2",
    ),
    (
        "merge_method: passthrough\nmodels: [{model: a}]\nbase_model: b",
        "base_model: passthrough merges what `models` lists",
    ),
]


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_models_and_bases_that_do_not_fit_are_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yml")
    assert said in str(caught.value)
