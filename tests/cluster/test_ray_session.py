"""How a command meets Ray: without a token it says so, and a signal ends it as it ends any other merge."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .conftest import SHARDS, Case, When, assert_same_output, receipts

pytestmark = pytest.mark.ray


def test_a_missing_token_is_the_users_to_give(cabs: Case, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
    command = [part for part in cabs.command(tmp_path / "out", "127.0.0.1:6379") if part != "--insecure-cluster"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 2, done.stderr
    assert "RAY_AUTH_TOKEN_PATH" in done.stderr


@pytest.mark.slow
def test_a_terminated_driver_is_interrupted_and_resumes(cabs: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    driver = cabs.start(out, "local")
    watch = When(out, 2, driver.terminate)
    _, errors = driver.communicate(timeout=240)
    watch.join()
    assert watch.happened
    assert driver.returncode == 130, errors
    assert "bug" not in errors
    assert "SIGTERM received" not in errors, "Ray's handler was asked"
    assert 2 <= len(receipts(out)) < SHARDS
    cabs.finish(out)
    assert_same_output(out, cabs.expected)
