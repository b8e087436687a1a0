"""Recipes that are carried out as they are, with a word of caution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anabranch.engine.run import plan

from ...merging import write_checkpoint, write_recipe


def warnings_of(folder: Path, method: str, models: int = 2, **parameters: Any) -> list[str]:
    """Of the plan of some models that all differ from their base."""
    names = ["base", *(f"model{i}" for i in range(models))]
    for i, name in enumerate(names):
        write_checkpoint(folder / name, {"w": torch.full((8, 8), float(i)), "b": torch.full((8,), float(i))})
    content = {"merge_method": method, "base_model": str(folder / "base"), "parameters": parameters}
    content["models"] = [{"model": str(folder / name)} for name in names[1:]]
    return list(plan(write_recipe(folder / "recipe.yml", content), folder / "out").plan.warnings)


TADROP = {"tadrop": {"mean": 0.1}}
LITTLE: list[tuple[str, dict[str, Any]]] = [
    ("cabs", {"density": 0.1}),
    ("cabs", {"density": 0.1, "weight": 0.5, "lambda": 2.0}),
    ("cabs", {"density": TADROP}),
    ("magnitude", {"density": 0.19}),
    ("ties", {"density": 0.1, "weight": 3.0}),  # normalised: weights say nothing of the size
    ("cabs", {"density": [{"filter": "b", "value": 0.1}, {"value": 0.5}]}),
]
ENOUGH: list[tuple[str, dict[str, Any]]] = [
    ("cabs", {"density": 0.1, "weight": 1.3}),
    ("cabs", {"density": 0.1, "lambda": 1.3}),
    ("cabs", {"density": 0.2}),
    ("cabs", {"density": 0.0}),
    ("dare_linear", {"density": 0.1}),  # divides by the density
    ("magnitude", {"density": 0.1, "rescale": True}),
    ("task_arithmetic", {"weight": 0.3}),
    ("emr", {"density": 0.1}),
    ("emr", {"density": {"tadrop": {}}}),
    ("emr", {"density": {"tadrop": {"mean": 0.25}}}),
    ("magnitude", {"density": 0.6}),  # every model for itself
]


@pytest.mark.parametrize(("method", "parameters"), LITTLE)
def test_sparse_changes_that_are_not_enlarged_are_noticed(tmp_path: Path, method: str, parameters: Any) -> None:
    (said,) = warnings_of(tmp_path, method, **parameters)
    assert "a factor of 1" in said
    assert "docs/choosing.md" in said


@pytest.mark.parametrize(("method", "parameters"), ENOUGH)
def test_what_is_as_it_should_be_is_not(tmp_path: Path, method: str, parameters: Any) -> None:
    assert warnings_of(tmp_path, method, **parameters) == []


def test_models_that_choose_in_turn_without_room_are_noticed(tmp_path: Path) -> None:
    for method, parameters in (("cabs", {}), ("magnitude", {"conflict": "sequential"})):
        (said,) = warnings_of(tmp_path / method, method, 3, density=0.4, **parameters)
        assert "densities sum to 1.2" in said
        assert warnings_of(tmp_path / f"{method}-2", method, 2, density=0.5, **parameters) == []
        assert warnings_of(tmp_path / f"{method}-10", method, 10, density=0.1, weight=2.0, **parameters) == []


def test_an_election_of_next_to_nothing_is_noticed(tmp_path: Path) -> None:
    (said,) = warnings_of(tmp_path, "emr", density=TADROP)
    assert "a mean of 0.1 before an election" in said
