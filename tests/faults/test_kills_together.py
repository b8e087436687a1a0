"""SIGKILL while several recipes share a reading: the same command again ends with the bytes of each recipe alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

from ..merging import merge, write_recipe
from .conftest import SHARDS, Disturbed

REPOSITORY = Path(__file__).parents[2]


def test_a_kill_at_any_change_of_any_output_is_survived(disturbed: Disturbed, tmp_path: Path) -> None:
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
    command = [sys.executable, "-m", "tests.faults.sweep_together", str(tmp_path), *map(str, paths)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [kills] = re.findall(r"kills: (\d+)", done.stdout)
    assert int(kills) > 2 * SHARDS
