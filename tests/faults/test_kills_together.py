"""SIGKILL while several recipes share a reading: the same command again ends with the bytes of each recipe alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ..merging import merge, write_recipe
from .case import SHARDS
from .conftest import Disturbed
from .sweep import files_of

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def recipes(disturbed: Disturbed, tmp_path: Path) -> list[Path]:
    """Three recipes that share a reading; tmp_path/expected/<name> is what each gives alone."""
    first = yaml.safe_load(disturbed.recipe.read_text())
    others = [dict(entry, parameters={"weight": 0.3}) for entry in first["models"]]
    recipes = {
        "first": first,
        "weights": first | {"models": others},
        "method": first | {"merge_method": "ties", "parameters": {"density": 0.3}},
    }
    paths = [write_recipe(tmp_path / f"{name}.yml", content) for name, content in recipes.items()]
    for path in paths:
        merge(path, tmp_path / "expected" / path.stem)
    return paths


@pytest.mark.parametrize(("step", "least_kills"), [(10, SHARDS), pytest.param(3, 2 * SHARDS, marks=pytest.mark.slow)])
def test_a_kill_at_any_change_of_any_output_is_survived(
    recipes: list[Path], tmp_path: Path, step: int, least_kills: int
) -> None:
    command = [sys.executable, "-m", "tests.faults.sweep_together", str(step), str(tmp_path), *map(str, recipes)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [kills] = re.findall(r"kills: (\d+)", done.stdout)
    assert int(kills) > least_kills


def test_processes_that_merge_the_same_recipes_do_no_harm(recipes: list[Path], tmp_path: Path) -> None:
    """One of them merges only two of the three, so they are never at the same point."""
    out = tmp_path / "out"
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "anabranch.cluster.cli", "merge", *map(str, some), str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for some in (recipes, recipes, recipes[1:])
    ]
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    for recipe in recipes:
        assert files_of(out / recipe.stem) == files_of(tmp_path / "expected" / recipe.stem)
