"""SIGKILL at many system calls, Ctrl-C, and twins: the same command again ends with the bytes of an undisturbed run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .case import SHARDS
from .conftest import Disturbed

RENAME, LINK = "rename,renameat,renameat2", "link,linkat"
FEW = [("fsync", 25), (RENAME, 9), (LINK, 1)]
MANY = (
    [("fsync", k) for k in range(1, 60, 2)]
    + [(RENAME, k) for k in range(1, 30)]
    + [(LINK, k) for k in (1, 2, 3)]
    + [("pwrite64,write", 5 * k) for k in range(1, 30)]
)


def kill_at(disturbed: Disturbed, strace: str, out: Path, call: str, number: int) -> int:
    """Run the merge and SIGKILL it at the n-th such system call of all its threads."""
    inject = ["-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
    return disturbed.run(out, strace, *inject).returncode


def assert_resumes(disturbed: Disturbed, out: Path) -> None:
    complete = (out / "anabranch.manifest.json").exists()
    if complete:  # the commit came before the kill: what looks finished must be finished
        assert disturbed.run(out).returncode == 0
    before = disturbed.finished(out)
    done = disturbed.run(out)
    assert done.returncode == 0, done.stderr
    after = disturbed.finished(out)
    assert {name: after[name] for name in before} == before, "a finished shard was made again"
    if not complete:
        disturbed.assert_done(out)


@pytest.mark.parametrize(("call", "number"), FEW, ids=lambda value: str(value).split(",")[0])
def test_a_kill_at_a_system_call_is_survived(
    disturbed: Disturbed, strace: str, tmp_path: Path, call: str, number: int
) -> None:
    out = tmp_path / "out"
    assert kill_at(disturbed, strace, out, call, number) in (-9, 137), "the merge ended before the kill"
    assert_resumes(disturbed, out)


@pytest.mark.slow
@pytest.mark.parametrize(("call", "number"), MANY, ids=lambda value: str(value).split(",")[0])
def test_a_kill_anywhere_is_survived(disturbed: Disturbed, strace: str, tmp_path: Path, call: str, number: int) -> None:
    out = tmp_path / "out"
    kill_at(disturbed, strace, out, call, number)
    assert_resumes(disturbed, out)


@pytest.mark.slow
def test_kills_in_a_row_never_lose_finished_work(disturbed: Disturbed, strace: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished: dict[str, tuple[int, int]] = {}
    for _ in range(3 * SHARDS):
        if kill_at(disturbed, strace, out, RENAME, 8) == 0:  # beyond the side files, which every run writes anew
            break
        now = disturbed.finished(out)
        assert {name: now[name] for name in finished} == finished, "a finished shard was made again"
        finished = now
    else:
        pytest.fail("no progress between kills")
    disturbed.assert_done(out)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_resumes(disturbed: Disturbed, tmp_path: Path, sent: signal.Signals) -> None:
    out = tmp_path / "out"
    run = subprocess.Popen(disturbed.command(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (out / ".anabranch/plan.json").exists() and run.poll() is None:
        time.sleep(0.005)
    run.send_signal(sent)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    assert not (out / "anabranch.manifest.json").exists()
    assert not (out / "model.safetensors.index.json").exists()
    assert not list(out.glob(".anabranch-*.tmp")), "an interrupted run cleans up behind itself"
    assert disturbed.run(out).returncode == 0
    disturbed.assert_done(out)


def test_two_processes_on_one_output_do_no_harm(disturbed: Disturbed, tmp_path: Path) -> None:
    out = tmp_path / "out"
    runs = [
        subprocess.Popen(disturbed.command(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    disturbed.assert_done(out)


IN_FOLDER = r'(?:[^,"<]+<([^>]*)>, )?"([^"]+)"'
"""A name as strace prints it: after the folder that it is relative to, if the call takes one."""


def test_files_are_durable_before_they_are_named_and_the_manifest_is_last(
    disturbed: Disturbed, strace: str, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "calls"
    trace = ["-f", "-qq", "-y", "-o", str(log), "-e", f"trace=fsync,{RENAME},{LINK}"]
    assert disturbed.run(out, strace, *trace).returncode == 0
    calls = [
        line.split(maxsplit=1)[1] for line in log.read_text().splitlines() if " = 0" in line or "<unfinished" in line
    ]
    synced: set[str] = set()
    named: list[str] = []
    fleeting: set[str] = set()  # files whose name a power cut could still take away
    for call in calls:
        if found := re.match(r"fsync\(\d+<([^>]+)>", call):
            synced.add(found[1])
            fleeting = {path for path in fleeting if str(Path(path).parent) != found[1]}
        elif found := re.match(rf"(?:rename|link)\w*\({IN_FOLDER}, {IN_FOLDER}", call):
            temporary, path = os.path.join(found[1] or "", found[2]), os.path.join(found[3] or "", found[4])
            if "-probe-" in path:  # whether the folder can hold an output was tried out
                continue
            assert temporary in synced, f"{path} got its name before its bytes were durable"
            named.append(Path(path).name)
            if path.endswith(".safetensors.json"):
                shard = str(out / Path(path).name.removesuffix(".json"))
                assert shard not in fleeting, "a receipt follows the durable name of its shard"
            fleeting.add(path)
    for i in range(SHARDS):
        shard = f"model-{i + 1:05d}-of-{SHARDS:05d}.safetensors"
        assert named.index(shard) < named.index(f"{shard}.json"), "a receipt follows its shard"
        assert named.index(f"{shard}.json") < named.index("model.safetensors.index.json")
    assert named[0] == "plan.json"
    assert named[-1] == "anabranch.manifest.json"
    assert str(out) in synced, "the directory itself is durable"
