"""A push makes a whole model visible at once or none, goes on where it stopped, and tells nobody its token."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ..merging import merge, write_checkpoint, write_recipe
from .conftest import Hub, assert_whole, digests

REPOSITORY = "hf://owner/name"


def push(hub: Hub, out: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    return hub.run("push", out, REPOSITORY, *options, **more)


def test_one_commit_shows_everything_and_a_second_push_does_nothing(hub: Hub, out: Path) -> None:
    done = push(hub, out, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["outcome"] == "pushed"
    assert said["files"] == len(digests(out))
    assert len(hub.history()) == 2
    assert_whole(hub, out)
    assert hub.ask()["private"] == {"owner/name": True}
    uploads = hub.count("PUT")
    again = push(hub, out)
    assert again.returncode == 0, again.stderr
    assert "has all of it; nothing was done" in again.stdout
    assert len(hub.history()) == 2
    assert hub.count("PUT") == uploads


def test_a_branch_is_made_and_the_public_must_be_meant(hub: Hub, out: Path) -> None:
    done = push(hub, out, "--revision", "trial", "--public")
    assert done.returncode == 0, done.stderr
    assert_whole(hub, out, "trial")
    assert len(hub.history("main")) == 1
    assert hub.ask()["private"] == {"owner/name": False}
    refused = push(hub, out)
    assert refused.returncode == 6
    assert "owner/name is public" in refused.stderr
    assert len(hub.history("main")) == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"target": "/preupload/", "status": 503, "times": 2},
        {"method": "PUT", "lose": True},
        {"target": "/commit/", "lose": True},
        pytest.param({"target": "/commit/", "status": 429, "headers": {"Retry-After": "1"}}, marks=pytest.mark.slow),
        pytest.param({"target": "/commit/", "other commit": "owner/name"}, marks=pytest.mark.slow),
        pytest.param({"target": "/lfs/objects/batch", "lose": True}, marks=pytest.mark.slow),
        pytest.param({"method": "PUT", "status": 500, "number": 2}, marks=pytest.mark.slow),
        pytest.param({"target": "/commit/", "status": 502}, marks=pytest.mark.slow),
        pytest.param({"target": "/commit/", "status": 409}, marks=pytest.mark.slow),
        pytest.param({"target": "/api/models/owner/name$", "status": 500}, marks=pytest.mark.slow),
        pytest.param({"target": "/create", "lose": True}, marks=pytest.mark.slow),
    ],
    ids=lambda fault: "-".join(str(value).strip("/") for value in fault.values() if not isinstance(value, dict)),
)
def test_what_a_busy_hub_does_is_survived(hub: Hub, out: Path, fault: dict[str, Any]) -> None:
    hub.script(fault)
    began = time.monotonic()
    done = push(hub, out)
    assert done.returncode == 0, done.stderr
    assert_whole(hub, out)
    assert sum(digests(out).keys() <= tree.keys() for tree in hub.history()) == 1, "a lost answer made a second commit"
    if "headers" in fault:
        assert time.monotonic() - began > 1


@pytest.mark.parametrize(
    ("target", "number"), [("/preupload/", 3), pytest.param("/commit/", 1, marks=pytest.mark.slow)]
)
def test_an_expired_token_is_told_and_gone_on_from(hub: Hub, out: Path, target: str, number: int) -> None:
    hub.script({"target": target, "number": number, "times": 1000, "status": 401})
    done = push(hub, out)
    assert done.returncode == 6, done.stderr
    assert "the hub answered 401" in done.stderr
    assert "HF_TOKEN" in done.stderr
    assert len(hub.history()) == 1
    there = set(hub.ask()["contents"])
    hub.script()
    assert push(hub, out).returncode == 0
    assert_whole(hub, out)
    assert not hub.uploads() & there, "what was there was uploaded again"


def test_a_wrong_token_is_told(hub: Hub, out: Path) -> None:
    done = push(hub, out, token="hf_wrongTokenOfTheTests")
    assert done.returncode == 6
    assert "hf auth login" in done.stderr
    assert "hf_wrong" not in done.stderr


def test_a_killed_push_shows_nothing_and_goes_on_without_uploading_again(hub: Hub, out: Path) -> None:
    hub.kill_at_shard(3, "push", out, REPOSITORY)
    assert len(hub.history()) == 1
    uploaded = hub.uploads()
    assert len(uploaded) == 2
    hub.script()
    done = push(hub, out)
    assert done.returncode == 0, done.stderr
    assert_whole(hub, out)
    assert not hub.uploads() & uploaded


def test_what_is_not_finished_or_not_whole_is_refused_before_anything_is_seen(
    hub: Hub, out: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    shard = next(copy.glob("model-00001*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    done = push(hub, copy)
    assert done.returncode == 4, done.stderr
    assert f"{shard.name}: its bytes are not those that were written" in done.stderr
    shard.unlink()
    done = push(hub, copy)
    assert done.returncode == 4, done.stderr
    assert f"{shard.name}: missing" in done.stderr
    (copy / "anabranch.manifest.json").unlink()
    done = push(hub, copy)
    assert done.returncode == 4, done.stderr
    assert "is not finished" in done.stderr
    assert len(hub.history()) <= 1


def test_another_model_is_replaced_only_where_that_is_asked_for(hub: Hub, out: Path) -> None:
    assert push(hub, out).returncode == 0
    hub.ask(
        repository="owner/name", commit={"model-00009-of-00009.safetensors": "old", "anabranch.manifest.json": "{}"}
    )
    before = hub.history()
    done = push(hub, out)
    assert done.returncode == 5, done.stderr
    assert "holds another model: model-00009-of-00009.safetensors" in done.stderr
    assert hub.history() == before
    done = push(hub, out, "--replace")
    assert done.returncode == 0, done.stderr
    assert set(hub.history()[-1]) == {".gitattributes", *digests(out)}


@pytest.mark.parametrize(
    "url",
    [
        "hf://owner/name@main",
        *(pytest.param(url, marks=pytest.mark.slow) for url in ("hf://owner", "s3://owner/name", "owner/name")),
    ],
)
def test_what_is_no_repository_is_told(hub: Hub, out: Path, url: str) -> None:
    command = [*hub.command("push", out), url]
    done = subprocess.run(command, env=hub.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    assert "expected hf://owner/name" in done.stderr


@pytest.mark.slow
def test_memory_stays_within_bounds_whatever_the_size(hub: Hub, out: Path, tmp_path: Path) -> None:
    """A shard of 200 MB, read from a disk, in parts: what it takes is the client and a buffer."""
    big = {"a": torch.zeros(50_000_000)}
    write_checkpoint(tmp_path / "base", big)
    recipe = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "base")}], "output": {"card": False}}
    merge(write_recipe(tmp_path / "recipe.yml", recipe), tmp_path / "big")
    report = tmp_path / "peak"
    code = (  # VmHWM: what getrusage says includes the process that started this one
        "import re; from anabranch.cluster.cli import main\n"
        "try: main()\n"
        "finally:\n"
        "    peak = int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) >> 10\n"
        f"    open({str(report)!r}, 'w').write(str(peak))"
    )
    command = [sys.executable, "-c", code, *hub.command("push", tmp_path / "big", REPOSITORY)[3:]]
    done = subprocess.run(command, env=hub.environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(report.read_text()) < 330, "MiB"
