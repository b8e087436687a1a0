"""A model that changes nothing stops the run: before anything is written, or before the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ..adapters import write_adapter
from ..merging import load_output, write_checkpoint, write_recipe
from .conftest import Command

Tensors = dict[str, torch.Tensor]
MANIFEST = "anabranch.manifest.json"
BASE = {"a.weight": torch.arange(64.0).reshape(8, 8), "b.weight": torch.ones(8, 4), "count": torch.ones(1).long()}


def moved(tensors: Tensors, by: float = 0.5) -> Tensors:
    return {name: tensor + by if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


class Place:
    """A base, a fine-tune and another model in a folder, and recipes that merge the last two."""

    def __init__(self, folder: Path, other: Tensors) -> None:
        self.folder, self.out = folder, folder / "out"
        write_checkpoint(folder / "base", BASE)
        write_checkpoint(folder / "tuned", moved(BASE))
        write_checkpoint(folder / "other", other)

    def recipe(self, method: str = "task_arithmetic", *models: str, **keys: Any) -> Path:
        names = models or ("tuned", "other")
        entries = [{"model": name if "/" in name else str(self.folder / name)} for name in names]
        content = {"merge_method": method, "base_model": str(self.folder / "base"), "models": entries, **keys}
        return write_recipe(self.folder / "recipe.yml", content)


def test_no_name_fits_although_extra_tensors_are_ignored(anabranch: Command, tmp_path: Path) -> None:
    """Following the hint of the first error must not give the base with exit 0."""
    place = Place(tmp_path, {f"x.{name}": tensor for name, tensor in moved(BASE).items()})
    for keys in ({}, {"extra_tensors": "ignore"}):
        result = anabranch("merge", place.recipe(**keys), place.out)
        assert result.exit_code == 3
        assert f"{tmp_path}/other: no tensor of it takes part: none of its names fits" in result.stderr
        assert "x.a.weight" in result.stderr and "x.b.weight" in result.stderr
        assert not place.out.exists()
    result = anabranch("merge", place.recipe(extra_tensors="ignore", allow_unchanged=True), place.out)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "model_stock", "ties", "karcher"])
def test_no_name_fits_in_any_method(method: str, anabranch: Command, tmp_path: Path) -> None:
    place = Place(tmp_path, {f"x.{name}": tensor for name, tensor in moved(BASE).items()})
    models = ("base", "other") if method in ("slerp", "linear", "karcher") else ("tuned", "other")
    parameters: dict[str, Any] = {"parameters": {"t": 0.5}} if method == "slerp" else {}
    result = anabranch("merge", place.recipe(method, *models, extra_tensors="ignore", **parameters), place.out)
    assert result.exit_code == 3, result.output
    assert "other: no tensor of it takes part" in result.stderr


@pytest.mark.parametrize(
    ("other", "exclude", "said"),
    [
        (moved(BASE), ["*.weight"], "of the 3 that it shares with"),
        ({"count": torch.ones(1).long()}, [], "0 are excluded and 1 are empty or no floating-point numbers"),
    ],
)
def test_what_is_shared_takes_no_part(
    other: Tensors, exclude: list[str], said: str, anabranch: Command, tmp_path: Path
) -> None:
    place = Place(tmp_path, other)
    result = anabranch("plan", place.recipe("task_arithmetic", "other", exclude=exclude), place.out)
    assert result.exit_code == 3
    assert said in result.stderr


def test_a_recipe_that_excludes_everything_means_it(anabranch: Command, tmp_path: Path) -> None:
    place = Place(tmp_path, moved(BASE))
    recipe = place.recipe("task_arithmetic", exclude=["*"], out_dtype="float16")
    result = anabranch("merge", recipe, place.out)
    assert result.exit_code == 0, result.output
    made = load_output(place.out)
    assert all(torch.equal(made[name], tensor.half() if "weight" in name else tensor) for name, tensor in BASE.items())
    misnamed = Place(tmp_path / "misnamed", {f"x.{name}": tensor for name, tensor in moved(BASE).items()})
    result = anabranch("plan", misnamed.recipe(exclude=["*"], extra_tensors="ignore"), misnamed.out)
    assert result.exit_code == 3, "what has no name in common is not what the recipe excludes"


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "cabs", "emr", "sce", "breadcrumbs"])
def test_a_copy_of_the_base_stops_the_run_before_the_manifest(method: str, anabranch: Command, tmp_path: Path) -> None:
    place = Place(tmp_path, BASE)
    needs = {"ties", "dare_linear", "cabs", "breadcrumbs"}
    keys: dict[str, Any] = {"parameters": {"density": 0.5}} if method in needs else {}
    if method == "cabs":
        keys["parameters"]["block"] = 4
    for _ in range(2):  # the second time nothing is merged again
        result = anabranch("merge", place.recipe(method, **keys), place.out)
        assert result.exit_code == 3, result.output
        assert f"{tmp_path}/other (2 tensors) changes nothing" in result.stderr
        assert "allow_unchanged: true" in result.stderr
        assert not list(place.out.rglob(MANIFEST)) and not list(place.out.rglob("*.index.json"))
    files = {path: path.stat().st_mtime_ns for path in place.out.rglob("*.safetensors")}
    assert files
    result = anabranch("merge", place.recipe(method, allow_unchanged=True, **keys), place.out)
    assert result.exit_code == 0, result.output
    assert {path: path.stat().st_mtime_ns for path in files} == files, "the same output, finished without merging again"
    assert len(list(place.out.rglob(MANIFEST))) == (3 if method == "emr" else 1)


def test_one_changed_element_is_a_change(anabranch: Command, tmp_path: Path) -> None:
    other = {name: tensor.clone() for name, tensor in BASE.items()}
    other["b.weight"][0, 0] += 1
    place = Place(tmp_path, other)
    result = anabranch("merge", place.recipe(), place.out)
    assert result.exit_code == 0, result.output
    assert torch.equal(
        load_output(place.out)["b.weight"], BASE["b.weight"] + 0.5 + (other["b.weight"] - BASE["b.weight"])
    )


def test_an_adapter_that_was_never_trained_changes_nothing(anabranch: Command, tmp_path: Path) -> None:
    place = Place(tmp_path, BASE)
    pair = {"a.lora_A.weight": torch.randn(4, 8), "a.lora_B.weight": torch.zeros(8, 4)}
    write_adapter(tmp_path / "adapter", pair)
    result = anabranch(
        "merge", place.recipe("task_arithmetic", "tuned", f"{tmp_path}/base+{tmp_path}/adapter"), place.out
    )
    assert result.exit_code == 3, result.output
    assert "adapter (2 tensors) changes nothing" in result.stderr


def test_recipes_of_one_command_stop_together(anabranch: Command, tmp_path: Path) -> None:
    place = Place(tmp_path, BASE)
    bad = place.recipe().rename(tmp_path / "bad.yml")
    good = place.recipe("task_arithmetic", "tuned").rename(tmp_path / "good.yml")
    result = anabranch("merge", good, bad, place.out)
    assert result.exit_code == 3
    assert "changes nothing" in result.stderr


def test_averages_know_no_task_vectors(anabranch: Command, tmp_path: Path) -> None:
    """Two equal models have an average; nothing is compared with a base."""
    place = Place(tmp_path, BASE)
    result = anabranch("merge", place.recipe("linear", "base", "other"), place.out)
    assert result.exit_code == 0, result.output
