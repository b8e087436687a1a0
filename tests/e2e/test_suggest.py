"""`anabranch suggest`: energies against merges of single models, and what becomes of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ..merging import load_output, write_checkpoint, write_recipe
from .conftest import Command

MODELS = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three models of two tensors, each with larger changes than the one before, in fp32."""
    generator = torch.Generator().manual_seed(3)
    base = {f"layers.{i}.w": torch.randn(16, 256, generator=generator) for i in range(2)}
    write_checkpoint(tmp_path / "base", base)
    for k in range(MODELS):
        tuned = {n: t + (k + 1) * 0.1 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        write_checkpoint(tmp_path / f"m{k}", tuned)
    return tmp_path


def recipe(method: str, parameters: dict[str, Any], weights: list[Any]) -> dict[str, Any]:
    models = [{"model": f"m{k}", "parameters": {"weight": weight}} for k, weight in enumerate(weights)]
    return {"merge_method": method, "base_model": "base", "models": models, "parameters": parameters}


def change(folder: Path, name: str) -> torch.Tensor:
    """All differences of a checkpoint to the base, in fp64."""
    model, base = load_output(folder / name), load_output(folder / "base")
    return torch.cat([(model[n].double() - base[n].double()).flatten() for n in sorted(base)])


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("cabs", {"density": 0.3, "block": 256}),
        ("cabs", {"density": {"tadrop": {"mean": 0.3}}, "block": 64}),
        ("ties", {"density": 0.3, "lambda": 0.5}),
        ("ties", {"density": 0.3, "scope": "model"}),
        ("dare_linear", {"density": 0.5}),
        ("della_linear", {"density": 0.5, "epsilon": 0.1}),
        ("breadcrumbs", {"density": 0.3, "gamma": 0.1, "rescale": True, "rescale_norm": "l2"}),
    ],
)
def test_what_models_give_is_what_each_alone_adds_to_a_merge(
    anabranch: Command, folder: Path, method: str, parameters: dict[str, Any]
) -> None:
    weights = [1.0, 0.5, 1.5]
    if method == "ties":
        parameters = parameters | {"normalize": False}
    write_recipe(folder / "recipe.yml", recipe(method, parameters, weights))
    found = anabranch("suggest", folder / "recipe.yml", "--json", "--workers", 1)
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)["models"]
    for k, row in enumerate(rows):
        alone = [weight if i == k else 0.0 for i, weight in enumerate(weights)]
        write_recipe(folder / f"alone{k}.yml", recipe(method, parameters, alone))
        assert anabranch("merge", folder / f"alone{k}.yml", folder / f"out{k}", "--workers", 1).exit_code == 0
        whole = float(change(folder, f"m{k}").square().sum())
        given = float(change(folder, f"out{k}").square().sum())
        assert row["energy"] == pytest.approx(whole, rel=1e-5)
        assert row["given_before"] == pytest.approx(given / whole, rel=1e-4)
    assert len({round(row["given_after"], 9) for row in rows}) == 1
    total = [sum(row["energy"] * row[key] for row in rows) for key in ("given_before", "given_after")]
    assert total[1] == pytest.approx(total[0])
    share = rows[0]["given_after"]
    balanced = [w * (share / row["given_before"]) ** 0.5 for w, row in zip(weights, rows, strict=True)]
    assert [row["weight_after"] for row in rows] == pytest.approx(balanced, rel=1e-5)  # they have six digits


def test_the_recipe_that_is_written_merges_with_equal_shares(anabranch: Command, folder: Path) -> None:
    write_recipe(folder / "recipe.yml", recipe("cabs", {"density": 0.3, "block": 256}, [1.0] * MODELS))
    shown = anabranch("suggest", folder / "recipe.yml", "-o", folder / "new.yml")
    assert shown.exit_code == 0, shown.output
    assert [line.split()[0] for line in shown.stdout.splitlines()[:4]] == ["model", "m0", "m1", "m2"]
    again = json.loads(anabranch("suggest", folder / "new.yml", "--json").stdout)["models"]
    assert max(row["given_before"] for row in again) == pytest.approx(
        min(row["given_before"] for row in again), rel=1e-5
    )
    assert again[0]["weight_before"] < 1 < again[2]["weight_before"]
    assert [row["weight_after"] for row in again] == pytest.approx([row["weight_before"] for row in again], rel=1e-5)
    printed = anabranch("suggest", folder / "recipe.yml")
    assert yaml.safe_load(printed.stdout) == yaml.safe_load((folder / "new.yml").read_text())


def test_filters_and_gradients_are_multiplied_and_what_gives_nothing_stays(anabranch: Command, folder: Path) -> None:
    parts = [{"filter": "layers.0", "value": 2.0}, {"value": [0.5, 1.0]}]
    write_recipe(folder / "recipe.yml", recipe("cabs", {"density": 0.3}, [parts, 1.0, 0.0]))
    found = json.loads(anabranch("suggest", folder / "recipe.yml", "--json").stdout)["models"]
    factor = (found[0]["given_after"] / found[0]["given_before"]) ** 0.5
    first, last = found[0]["weight_after"]
    assert (first["filter"], first["value"]) == ("layers.0", pytest.approx(2.0 * factor, rel=1e-5))
    assert last["value"] == pytest.approx([0.5 * factor, 1.0 * factor], rel=1e-5)
    assert (found[2]["weight_after"], found[2]["given_after"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"merge_method": "sce", "parameters": {}}, "sce takes no weight per model"),
        ({"merge_method": "multislerp", "parameters": {}}, "multislerp weighs no task vectors"),
        ({"exclude": ["*"]}, "cabs weighs no task vectors"),
    ],
)
def test_recipes_without_weights_to_balance(
    anabranch: Command, folder: Path, changes: dict[str, Any], said: str
) -> None:
    write_recipe(folder / "recipe.yml", recipe("cabs", {"density": 0.3}, [1.0] * MODELS) | changes)
    if "merge_method" in changes:
        models = [{"model": f"m{k}"} for k in range(MODELS)]
        write_recipe(folder / "recipe.yml", recipe("cabs", {}, []) | changes | {"models": models})
    refused = anabranch("suggest", folder / "recipe.yml")
    assert refused.exit_code == 2 and said in refused.stderr
