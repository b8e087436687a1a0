"""The sparse methods on tensors so small that every number below can be worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from anabranch.engine.errors import RecipeError
from anabranch.engine.recipe.parse import parse_recipe

from ...merging import merge_tensors


def merged(folder: Path, models: list[list[Any]], recipe: dict[str, Any]) -> list[Any]:
    """Merge over a base of ones; models are given as differences to it, the result is returned as one."""
    base = {"w": torch.ones_like(torch.tensor(models[0]))}
    tensors = [{"w": 1 + torch.tensor(model)} for model in models]
    out = merge_tensors(folder, base, tensors, recipe)["w"] - 1
    return out.tolist()  # type: ignore[no-any-return]


def table(folder: Path) -> list[dict[str, Any]]:
    rows = pyarrow.parquet.read_table(folder / "out" / "anabranch.tensors.parquet").to_pylist()
    return sorted(rows, key=lambda row: int(row["model"]))


def test_breadcrumbs_keeps_what_comes_after_the_outliers(tmp_path: Path) -> None:
    """N = 8, gamma 0.25: two are left out; density 0.5: the next four are kept, of equal ones the first."""
    t = [0.5, -8.0, 2.0, -2.0, 0.25, 2.0, 4.0, -2.0]  # by size: -8, 4, 2, -2, 2, -2, 0.5, 0.25
    recipe = {"merge_method": "breadcrumbs", "parameters": {"density": 0.5, "gamma": 0.25}}
    assert merged(tmp_path, [t], recipe) == [0.0, 0.0, 2.0, -2.0, 0.0, 2.0, 0.0, -2.0]
    fewer = {"merge_method": "breadcrumbs", "parameters": {"density": 0.25, "gamma": 0.375}}
    assert merged(tmp_path / "fewer", [t], fewer) == [0.0, 0.0, 0.0, -2.0, 0.0, 2.0, 0.0, 0.0]


def test_breadcrumbs_shrinks_the_outliers_to_keep_its_density(tmp_path: Path) -> None:
    """N = 4, density 0.75 keeps three, so of gamma's two outliers only one is left out."""
    recipe = {"merge_method": "breadcrumbs", "parameters": {"density": 0.75, "gamma": 0.5}}
    assert merged(tmp_path, [[4.0, 1.0, -3.0, 2.0]], recipe) == [0.0, 1.0, -3.0, 2.0]


def test_breadcrumbs_with_signs(tmp_path: Path) -> None:
    """One outlier of each model is left out, the next two are kept; then the larger side wins each element."""
    models = [[9.0, 4.0, -2.0, 1.0], [-3.0, -1.0, 8.0, 0.5]]  # kept: (., 4, -2, .) and (-3, -1, ., .)
    recipe = {"merge_method": "breadcrumbs_ties", "parameters": {"density": 0.5, "gamma": 0.25}}
    assert merged(tmp_path, models, recipe) == [-3.0, 4.0, -2.0, 0.0]
    rows = table(tmp_path)
    assert [(row["kept"], row["density"]) for row in rows] == [(2, 0.5), (2, 0.5)]


def test_della_gives_large_changes_better_chances(tmp_path: Path) -> None:
    """Rows of 4, density 0.5, epsilon 0.375: p = 1/8, 3/8, 5/8, 7/8 by |t|; of equal ones the first is the larger."""
    row = [8.0, -1.0, 2.0, -2.0]  # ranks 4, 1, 3, 2
    expected = {8.0: 8 / 0.875, -1.0: -1 / 0.125, 2.0: 2 / 0.625, -2.0: -2 / 0.375}
    rows = 4000
    recipe = {"merge_method": "della_linear", "parameters": {"density": 0.5, "epsilon": 0.375}, "seed": 1}
    out = torch.tensor(merged(tmp_path, [[row] * rows], recipe))
    for column, value in enumerate(row):
        kept = out[:, column] != 0
        assert (out[kept, column] - expected[value]).abs().max() < 1e-6
        probability = {8.0: 0.875, -1.0: 0.125, 2.0: 0.625, -2.0: 0.375}[value]
        assert abs(kept.double().mean() - probability) < 0.04  # five standard deviations
    [line] = table(tmp_path)
    assert (line["kept"], line["density"]) == (int((out != 0).sum()), 0.5)
    everything = {"merge_method": "della", "parameters": {}}
    assert merged(tmp_path / "whole", [[row]], everything) == [row]


def test_sce_selects_weighs_and_erases(tmp_path: Path) -> None:
    """Variances are 1, 1, 0 and 4; a share of 0.7 of the three that are not 0 keeps two: the 4, then the first 1.

    Energies of (3, ., ., -1) and (1, ., ., 3) are equal, so weights are one half. The sum elects + twice; in the last
    element only the second model agrees.
    """
    models = [[3.0, -2.0, 5.0, -1.0], [1.0, -4.0, 5.0, 3.0]]
    recipe = {"merge_method": "sce", "parameters": {"select_topk": 0.7}}
    assert merged(tmp_path, models, recipe) == [2.0, 0.0, 0.0, 3.0]
    rows = table(tmp_path)
    assert [(row["kept"], row["density"]) for row in rows] == [(2, 0.7), (2, 0.7)]


def test_sce_weighs_by_energy(tmp_path: Path) -> None:
    """Energies 18 / 2 and 2 / 2: weights 0.9 and 0.1."""
    out = merged(tmp_path, [[3.0, -3.0], [1.0, 1.0]], {"merge_method": "sce"})
    assert torch.allclose(torch.tensor(out), torch.tensor([0.9 * 3 + 0.1, -3.0]), atol=1e-6)
    assert merged(tmp_path / "one", [[3.0, -3.0]], {"merge_method": "sce", "parameters": {"select_topk": 0.5}}) == [
        0,
        0,
    ]


AGENTS = [[4.0, 0.0, 3.0, 0.5, 8.0, 0.0], [0.0, -2.0, 1.0, 0.5, 4.0, 0.0], [0.0, 0.0, -1.0, 0.25, 3.0, 0.0]]
"""With epsilon 0.5: elements of one model, of one, of three, of none, of three, of none."""


def test_ram_averages_what_several_models_change(tmp_path: Path) -> None:
    """A change as large as epsilon is none."""
    recipe = {"merge_method": "ram", "parameters": {"epsilon": 0.5}}
    assert merged(tmp_path, AGENTS, recipe) == [4.0, -2.0, 1.0, 0.0, 5.0, 0.0]
    rows = table(tmp_path)
    assert [row["kept"] for row in rows] == [3, 3, 2]
    everything = {"merge_method": "ram", "parameters": {"epsilon": 0}}
    assert merged(tmp_path / "all", AGENTS[:2], everything) == [4.0, -2.0, 2.0, 0.5, 6.0, 0.0]


def test_ramplus_strengthens_what_is_a_models_own(tmp_path: Path) -> None:
    """The first two models share 2 elements and own 1: a ratio of 2, of which 1.5 counts: 1 + 0.5 * 1.5 = 1.75."""
    parameters = {"epsilon": 0.5, "r": 0.5, "alpha": 1.5}
    recipe = {"merge_method": "ramplus_tl", "parameters": parameters}
    assert merged(tmp_path, AGENTS, recipe) == [7.0, -3.5, 1.0, 0.0, 5.0, 0.0]
    recipe = {"merge_method": "ramplus_tl", "parameters": parameters | {"alpha": 4}}
    assert merged(tmp_path / "all", AGENTS, recipe) == [8.0, -4.0, 1.0, 0.0, 5.0, 0.0]


def test_ram_counts_models_in_a_byte() -> None:
    """A 256th would be the first again."""
    models = ", ".join(f"{{model: m{i}}}" for i in range(256))
    with pytest.raises(RecipeError, match="models: expected at most 255 models to merge, besides the base, got 256"):
        parse_recipe(f"merge_method: ram\nbase_model: b\nmodels: [{models}]", "r")


def test_ramplus_counts_tensor_by_tensor(tmp_path: Path) -> None:
    """In the second tensor nothing is shared, so nothing is strengthened."""
    base = {"a": torch.zeros(3), "b": torch.zeros(3)}
    models = [
        {"a": torch.tensor([1.0, 2.0, 0.0]), "b": torch.tensor([1.0, 0.0, 0.0])},
        {"a": torch.tensor([3.0, 0.0, 0.0]), "b": torch.tensor([0.0, 2.0, 0.0])},
    ]
    recipe = {"merge_method": "ramplus_tl", "parameters": {"r": 0.25, "alpha": 1}}
    out = merge_tensors(tmp_path, base, models, recipe)
    assert out["a"].tolist() == [2.0, 2.5, 0.0]
    assert out["b"].tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["cabs", "magnitude"])
@pytest.mark.parametrize(("second", "expected"), [(0.5, 3.0), (0.75, 3.0), (1.0, 8.0)])
def test_zeros_take_places_so_that_claimed_ones_come_last(
    tmp_path: Path, method: str, second: float, expected: float, dtype: torch.dtype
) -> None:
    """The second model's order is 2, 0, 0 and then the claimed 5: two or three places end before it, four do not."""
    own = {"block": 4} if method == "cabs" else {"conflict": "sequential"}
    models = [[3.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 2.0]]
    base = {"w": torch.ones(4, dtype=dtype)}
    tensors = [{"w": 1 + torch.tensor(model, dtype=dtype)} for model in models]
    recipe = {"merge_method": method, "parameters": own}
    out = merge_tensors(tmp_path, base, tensors, recipe, (1.0, 1.0), [0.5, second])["w"] - 1
    assert out.tolist() == [expected, 0.0, 0.0, 2.0]
    assert [row["kept"] for row in table(tmp_path)] == [1, 1 if expected == 3.0 else 2]
