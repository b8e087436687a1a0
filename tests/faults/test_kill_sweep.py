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


def sweep(disturbed: Disturbed, folder: Path, kills: int, seed: int) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.faults.sweep", disturbed.recipe, disturbed.expected, folder, kills, seed]
    done = subprocess.run(
        [str(word) for word in command], cwd=REPOSITORY, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {what: int(count) for what, count in re.findall(r"kills at (\w+): (\d+)", done.stdout)}


def test_a_kill_before_any_change_and_at_any_moment_is_survived(disturbed: Disturbed, tmp_path: Path) -> None:
    done = sweep(disturbed, tmp_path, kills=15, seed=1)
    assert done["operations"] > 6 * SHARDS
    assert done["times"] > 5


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_a_thousand_kills_at_random_moments_are_survived(disturbed: Disturbed, tmp_path: Path) -> None:
    assert sweep(disturbed, tmp_path, kills=500, seed=2)["times"] > 300
