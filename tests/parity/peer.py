"""mergekit in an environment of its own, started once for many recipes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".bench" / "mergekit-venv" / "bin" / "python"
DRIVER = Path(__file__).with_name("mergekit_driver.py")
TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Job:
    """One recipe for mergekit."""

    recipe: Path
    out: Path | None = None
    """Where the merge goes; None: parse only."""
    seed: int | None = None


@dataclass(frozen=True)
class Answers:
    """What one process of mergekit said."""

    to_jobs: list[str | None]
    """None where it was content, else its error."""
    methods: list[str]
    """The names of its merge methods."""


def run_mergekit(jobs: Sequence[Job], folder: Path) -> Answers:
    """Let mergekit do all jobs, one after the other.

    Args:
        jobs: recipes that name their models relative to `folder`.
        folder: the working directory.
    """
    assert PYTHON.exists(), "mergekit's environment is missing: run `make test-parity`, or `make bench-peer` once"
    listed = [{"recipe": str(job.recipe), "out": str(job.out) if job.out else None, "seed": job.seed} for job in jobs]
    asked, answered = folder / "jobs.json", folder / "answers.json"
    asked.write_text(json.dumps(listed))
    done = subprocess.run(
        [PYTHON, DRIVER, asked, answered],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        timeout=TIMEOUT_SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    said = json.loads(answered.read_text())
    assert len(said["answers"]) == len(jobs)
    return Answers(said["answers"], said["methods"])
