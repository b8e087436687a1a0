"""A few rounds of the soak for real, and that it would notice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="Debian's package strace has it")

NOTICES = """
import sys
from pathlib import Path
from tests.soak.soak import Soak
soak = Soak(Path(sys.argv[1]), 1, {}, {})
soak._expected["config.json"] += b" "
print(soak.round(0)["problem"])
"""


def soak(log: Path, *options: str) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "tests.soak.soak", "--seconds", "0", "--log", str(log), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rounds with a finding: none" in done.stdout
    return [json.loads(line) for line in log.read_text().splitlines()]


@needs_strace
def test_rounds_on_local_folders_hold_and_a_log_is_continued(tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = soak(log, "--places", "--faults", "4", "--seed", "2")
    both = soak(log, "--places", "--faults", str(sum(len(row["events"]) for row in first) + 1), "--seed", "2")  # type: ignore[arg-type, misc]
    assert both[: len(first)] == first
    assert [row["round"] for row in both] == [*range(len(first) + 1)]


@needs_strace
@pytest.mark.s3
@pytest.mark.slow
def test_rounds_on_s3_hold(tmp_path: Path) -> None:
    rows = soak(tmp_path / "log", "--places", "s3", "--s3-share", "1", "--faults", "2", "--seed", "3")
    assert {row["place"] for row in rows} == {"s3"}


def test_other_bytes_are_noticed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NOTICES, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert "other bytes in config.json" in done.stdout, done.stderr
