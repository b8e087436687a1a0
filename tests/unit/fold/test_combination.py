"""Coefficient methods on tensors small enough to work out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from anabranch.engine.errors import InputError, RecipeError
from anabranch.engine.recipe.parse import parse_recipe

from ...merging import merge_tensors


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


# -- sums of models and of differences ---------------------------------------------------------------------------------

SINE = math.sqrt(0.5)
"""Of half a right angle, as its cosine."""


def test_slerp_of_a_right_angle(tmp_path: Path) -> None:
    base, model = {"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([0.0, 4.0])}
    found = merge_tensors(tmp_path, base, [model], {"merge_method": "slerp", "parameters": {"t": 0.5}})
    assert found["w"].tolist() == pytest.approx([2 * SINE, 4 * SINE])


def test_a_tensor_that_the_model_lacks_is_that_of_the_base(tmp_path: Path) -> None:
    base = {"w": torch.tensor([2.0, 0.0]), "x": torch.tensor([1.0])}
    recipe = {"merge_method": "slerp", "parameters": {"t": 0.5}}
    found = merge_tensors(tmp_path, base, [{"w": base["w"]}], recipe)
    assert found["x"].tolist() == [1.0]


def test_nuslerp_of_differences(tmp_path: Path) -> None:
    base = {"w": torch.tensor([10.0, 20.0, 5.0])}
    models = [{"w": torch.tensor([12.0, 20.0, 5.0])}, {"w": torch.tensor([10.0, 21.0, 5.0])}]
    found = merge_tensors(tmp_path, base, models, {"merge_method": "nuslerp"})
    assert found["w"].tolist() == pytest.approx([10 + 2 * SINE, 20 + SINE, 5.0])


def test_without_a_base_a_tensor_that_one_model_lacks_is_the_other_one_s(tmp_path: Path) -> None:
    models = [{"w": torch.tensor([2.0]), "x": torch.tensor([3.0])}, {"w": torch.tensor([4.0])}]
    found = merge_tensors(tmp_path, None, models, {"merge_method": "nuslerp"}, (0.25, 0.75))
    assert (found["w"].tolist(), found["x"].tolist()) == ([3.5], [3.0])


def test_model_stock_keeps_what_models_do_not_agree_on(tmp_path: Path) -> None:
    base = {"agree": torch.tensor([1.0, 1.0]), "differ": torch.tensor([1.0, 1.0])}
    models = [
        {"agree": torch.tensor([3.0, 1.0]), "differ": torch.tensor([3.0, 1.0])},
        {"agree": torch.tensor([5.0, 1.0]), "differ": torch.tensor([1.0, 5.0])},
    ]
    found = merge_tensors(tmp_path, base, models, {"merge_method": "model_stock"})
    assert (found["agree"].tolist(), found["differ"].tolist()) == ([4.0, 1.0], [1.0, 1.0])


def test_models_of_a_sum_share_every_position(tmp_path: Path) -> None:
    models = [{"w": torch.tensor([2.0, 1.0])}, {"w": torch.tensor([4.0, 0.0])}]
    merge_tensors(tmp_path, None, models, {"merge_method": "karcher"})
    table = pyarrow.parquet.read_table(tmp_path / "out" / "anabranch.tensors.parquet").to_pylist()
    assert [(row["kept"], row["overlaps"]) for row in table] == [(2, [0, 2]), (2, [2, 0])]


def test_dot_products_beyond_fp64_are_an_error(tmp_path: Path) -> None:
    models = [{"w": torch.tensor([1e200, 1.0], dtype=torch.float64)}] * 2
    with pytest.raises(InputError, match="beyond fp64"):
        merge_tensors(tmp_path, None, models, {"merge_method": "karcher"})


# -- nearswap --------------------------------------------------------------------------------------------------------


def test_nearswap_takes_near_values_and_goes_towards_far_ones(tmp_path: Path) -> None:
    base = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0])}
    model = {"w": torch.tensor([1.25, 0.75, 2.0, -3.0])}
    found = merge_tensors(tmp_path, base, [model], {"merge_method": "nearswap", "parameters": {"t": 0.5}})
    assert found["w"].tolist() == [1.25, 0.75, 1.5, 0.5]


def test_nearswap_by_nothing_keeps_the_base_s_bits(tmp_path: Path) -> None:
    base = {"w": torch.tensor([-0.0, 1.0, 3.0])}
    recipe = {"merge_method": "nearswap", "parameters": {"t": 0}}
    found = merge_tensors(tmp_path, base, [{"w": torch.tensor([1.0, 2.0, 3.0])}], recipe)
    assert torch.equal(found["w"].view(torch.int32), base["w"].view(torch.int32))


# -- arcee_fusion ----------------------------------------------------------------------------------------------------


def test_arcee_fusion_takes_the_changes_that_stand_out(tmp_path: Path) -> None:
    # One row: the divergence is one factor, so importance is |t|: 0, 0, 1, 1, 1, 2, 4, 9. Ranks 1, 3 and 5 of 0 to 7
    # give the quartiles 0, 1 and 2; the threshold is 1 + 1.5 * 2 = 4.
    base = torch.zeros(8)
    change = torch.tensor([1.0, -1.0, 0.0, 9.0, 2.0, 0.0, -4.0, 1.0])
    found = merge_tensors(tmp_path, {"w": base}, [{"w": change}], {"merge_method": "arcee_fusion"})
    assert found["w"].tolist() == [0, 0, 0, 9, 0, 0, -4, 0]


def test_arcee_fusion_weighs_rows_by_their_divergence(tmp_path: Path) -> None:
    # Adding one number to a whole row does not change its softmax: however large, it has no importance. The other rows
    # diverge by 0.730 and 0.372 from equal shares. Importance ascending: four zeros, 0.19, 0.37 three times, 0.73
    # twice, 0.74, 2.19; ranks 2, 5 and 8 give the threshold 0.37 + 1.5 * 0.73 = 1.46.
    base = torch.zeros(3, 4)
    model = torch.tensor([[100.0, 100.0, 100.0, 100.0], [3.0, 1.0, -1.0, 0.5], [2.0, 1.0, -1.0, 0.5]])
    found = merge_tensors(tmp_path, {"w": base}, [{"w": model}], {"merge_method": "arcee_fusion"})["w"]
    report = pyarrow.parquet.read_table(tmp_path / "out" / "anabranch.tensors.parquet").to_pylist()
    assert found.tolist() == [[0, 0, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]]
    assert [row["kept"] for row in report] == [1]


# -- rows ------------------------------------------------------------------------------------------------------------


def test_model_stock_by_rows(tmp_path: Path) -> None:
    base = {"w": torch.ones(2, 2)}
    models = [{"w": torch.tensor([[3.0, 1.0], [3.0, 1.0]])}, {"w": torch.tensor([[5.0, 1.0], [1.0, 5.0]])}]
    recipe = {"merge_method": "model_stock", "parameters": {"filter_wise": True}}
    assert merge_tensors(tmp_path, base, models, recipe)["w"].tolist() == [[4.0, 1.0], [1.0, 1.0]]


def test_nuslerp_by_rows(tmp_path: Path) -> None:
    models = [{"w": torch.tensor([[2.0, 0.0], [2.0, 0.0]])}, {"w": torch.tensor([[0.0, 4.0], [4.0, 0.0]])}]
    recipe = {"merge_method": "nuslerp", "parameters": {"nuslerp_flatten": False}}
    found = merge_tensors(tmp_path, None, models, recipe)["w"].flatten().tolist()
    assert found == pytest.approx([2 * SINE, 4 * SINE, 3.0, 0.0])


COLUMNS = {"merge_method": "nuslerp", "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True}}


def test_nuslerp_by_columns(tmp_path: Path) -> None:
    """The columns are those of the test by rows, transposed."""
    models = [{"w": torch.tensor([[2.0, 2.0], [0.0, 0.0]])}, {"w": torch.tensor([[0.0, 4.0], [4.0, 0.0]])}]
    found = merge_tensors(tmp_path, None, models, COLUMNS)["w"].flatten().tolist()
    assert found == pytest.approx([2 * SINE, 3.0, 4 * SINE, 0.0])


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 1, 1)])
def test_a_tensor_that_is_one_column_is_one_vector(tmp_path: Path, shape: tuple[int, ...]) -> None:
    models = [{"w": torch.randn(shape, generator=torch.Generator().manual_seed(seed))} for seed in range(2)]
    found = merge_tensors(tmp_path, None, models, COLUMNS)["w"]
    whole = merge_tensors(tmp_path / "whole", None, models, {"merge_method": "nuslerp"})["w"]
    assert torch.equal(found, whole)


def test_columns_of_more_dimensions_run_along_the_first(tmp_path: Path) -> None:
    models = [{"w": torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(seed))} for seed in range(2)]
    flat = [{"w": model["w"].reshape(4, 15)} for model in models]
    found = merge_tensors(tmp_path, None, models, COLUMNS)["w"]
    assert torch.equal(found.reshape(4, 15), merge_tensors(tmp_path / "flat", None, flat, COLUMNS)["w"])


def test_dot_products_of_columns_beyond_fp64_are_an_error(tmp_path: Path) -> None:
    models = [{"w": torch.tensor([[1.0, 1e200]] * 2, dtype=torch.float64)}] * 2
    with pytest.raises(InputError, match="beyond fp64"):
        merge_tensors(tmp_path, None, models, COLUMNS)


@pytest.mark.parametrize("parameters", [{}, {"filter_wise": True}])
def test_dot_products_of_differences_beyond_fp64_are_an_error(tmp_path: Path, parameters: dict[str, Any]) -> None:
    models = [{"w": torch.tensor([[1e200, 1.0]] * 2, dtype=torch.float64)}] * 2
    recipe = {"merge_method": "model_stock", "parameters": parameters}
    with pytest.raises(InputError, match="beyond fp64"):
        merge_tensors(tmp_path, {"w": torch.zeros(2, 2, dtype=torch.float64)}, models, recipe)


# -- what recipes may say --------------------------------------------------------------------------------------------

WRONG = [
    (
        "merge_method: slerp\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0}",
        "base_model is missing; slerp merges a base",
    ),
    ("merge_method: slerp\nbase_model: a\nmodels: [{model: b}]", "slerp needs a t: a finite number"),
    (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {t: 0}",
        "models: expected exactly one model to merge, besides the base, got 2",
    ),
    (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 0}\nnonfinite: keep-base",
        "nonfinite: slerp merges no differences",
    ),
    ("merge_method: nuslerp\nmodels: [{model: a}]", "models: expected exactly two models to merge, got 1"),
    (
        "merge_method: nuslerp\nbase_model: a\nmodels: [{model: a}, {model: b}]",
        "models: expected exactly two models to merge, besides the base, got 1",
    ),
    ("merge_method: nuslerp\nmodels: [{model: a}, {model: b}]\nnonfinite: keep-base", "nonfinite: nuslerp merges no"),
    (
        "merge_method: model_stock\nbase_model: a\nmodels: [{model: b}]",
        "models: expected at least two models to merge, besides the base, got 1",
    ),
    ("merge_method: karcher\nmodels: [{model: a}]\nbase_model: b", "base_model: karcher merges what `models` lists"),
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
