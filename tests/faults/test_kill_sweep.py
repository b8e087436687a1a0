"""Kills before every change of the output and at random moments; see sweep.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .case import SHARDS
from .conftest import Disturbed

REPOSITORY = Path(__file__).parents[2]


def sweep(disturbed: Disturbed, folder: Path, step: int, kills: int, seed: int) -> dict[str, int]:
    places = [disturbed.recipe, disturbed.expected, folder]
    command = [sys.executable, "-m", "tests.faults.sweep", *places, step, kills, seed]
    done = subprocess.run(
        [str(word) for word in command], cwd=REPOSITORY, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {what: int(count) for what, count in re.findall(r"kills at (\w+): (\d+)", done.stdout)}


def test_a_kill_before_changes_of_all_kinds_and_at_any_moment_is_survived(disturbed: Disturbed, tmp_path: Path) -> None:
    """Of each kind the first change, and every fourth after it."""
    done = sweep(disturbed, tmp_path, step=4, kills=5, seed=1)
    assert done["operations"] > SHARDS
    assert done["times"] > 1


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_a_kill_before_every_change_and_a_thousand_at_random_moments_are_survived(
    disturbed: Disturbed, tmp_path: Path
) -> None:
    done = sweep(disturbed, tmp_path, step=1, kills=500, seed=2)
    assert done["operations"] > 6 * SHARDS
    assert done["times"] > 300
