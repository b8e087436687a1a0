"""Job scripts of deploy/ do what their comments say, and platforms' own parsers take their files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from anabranch.engine import errors

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
PARSERS = ROOT / ".bench" / "launchers" / "bin" / "python"
RETRIED = {errors.TemporaryError.exit_code, errors.Interrupted.exit_code, 137}
OTHERS = {0, 1, 2, 3, 4, 5, 6}


def run_batch(script: str, folder: Path, code: int, restarts: int = 0) -> tuple[int, list[str]]:
    """Run a job script as Slurm does, where `srun` ends with this code; returns its own code and what it called."""
    for name, end in (("srun", f"exit {code}"), ("scontrol", "echo node-1")):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/calls\n{end}\n')
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "RECIPE": "my recipe.yml",
        "OUT": "s3://bucket/out",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node-[1-4]",
        "SLURM_JOB_NUM_NODES": "4",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    (folder / ".ray").mkdir(exist_ok=True)
    (folder / ".ray" / "auth_token").write_text("0" * 64)
    (folder / "calls").unlink(missing_ok=True)
    done = subprocess.run(["bash", str(DEPLOY / script)], env=environment, cwd=folder, timeout=20, check=False)
    return done.returncode, (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm-ray.sbatch"])
def test_a_slurm_job_is_queued_again_where_that_helps(script: str, tmp_path: Path) -> None:
    for code in sorted(RETRIED | OTHERS):
        ended, calls = run_batch(script, tmp_path, code)
        assert ended == code
        assert ("scontrol requeue 7" in calls) == (code in RETRIED), code
    _, calls = run_batch(script, tmp_path, 75, restarts=20)
    assert "scontrol requeue 7" not in calls


def test_a_slurm_job_starts_one_merge_with_the_given_recipe(tmp_path: Path) -> None:
    _, calls = run_batch("slurm.sbatch", tmp_path, 0)
    assert [call for call in calls if call.startswith("srun")] == [
        "srun --kill-on-bad-exit=1 anabranch merge my recipe.yml s3://bucket/out --memory 8GiB --workers 8"
    ]
    _, calls = run_batch("slurm-ray.sbatch", tmp_path, 0)
    (start,) = (call for call in calls if call.startswith("srun"))
    assert "ray symmetric-run --address node-1:6379 --min-nodes 4 --num-cpus 8 " in start
    assert start.endswith(" -- anabranch merge my recipe.yml s3://bucket/out --ray auto --memory 2GiB")


@pytest.mark.parametrize(("script", "per_core_gib", "more_gib"), [("slurm.sbatch", 1, 2), ("slurm-ray.sbatch", 2, 4)])
def test_a_slurm_job_has_the_memory_that_it_gives(script: str, per_core_gib: int, more_gib: int) -> None:
    text = (DEPLOY / script).read_text()
    cores = int(re.search(r"--cpus-per-task=(\d+)", text)[1])  # type: ignore[index]
    memory = int(re.search(r"#SBATCH --mem=(\d+)G", text)[1])  # type: ignore[index]
    assert memory == cores * per_core_gib + more_gib
    assert subprocess.run(["bash", "-n", str(DEPLOY / script)], check=False).returncode == 0


def test_hugging_faces_own_command_takes_the_job(tmp_path: Path) -> None:
    hf = Path(sys.executable).with_name("hf")
    environment = os.environ | {
        "PATH": f"{hf.parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "AWS_ACCESS_KEY_ID": "not-shown-1",
        "AWS_SECRET_ACCESS_KEY": "not-shown-2",
        "HF_TOKEN": "hf_not_shown",
    }
    command = ["sh", str(DEPLOY / "hf-job.sh"), "--dry-run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "attempts  3" in done.stdout
    assert "not-shown" not in done.stdout + done.stderr


def test_google_batch_retries_what_recovers_and_nothing_else() -> None:
    job = json.loads((DEPLOY / "gcp-batch.json").read_text())
    (group,) = job["taskGroups"]
    task = group["taskSpec"]
    codes = {rule["action"]: set(rule["actionCondition"]["exitCodes"]) for rule in task["lifecyclePolicies"]}
    assert codes["FAIL_TASK"] == OTHERS - {0}
    assert codes["RETRY_TASK"] >= RETRIED
    assert int(task["computeResource"]["memoryMib"]) == 10 << 10


def test_skypilot_recovers_what_recovers_and_nothing_else() -> None:
    task = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())
    assert set(task["resources"]["job_recovery"]["recover_on_exit_codes"]) == RETRIED


@pytest.mark.skipif(not PARSERS.exists(), reason="the platforms' parsers come with `make deploy-check`")
def test_the_platforms_parsers_take_their_files() -> None:
    done = subprocess.run(
        [str(PARSERS), str(DEPLOY / "check_launchers.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 3
