"""A push makes a whole model visible at once or none, goes on where it stopped, and tells nobody its token."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ..merging import merge, write_checkpoint, write_recipe
from .stub import SIGNATURE, TOKEN

REPOSITORY = "hf://owner/name"
ROOT = Path(__file__).resolve().parents[2]
SHARDS = 3


class Hub:
    """The stub, and the command that talks to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hub.stub"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        self.endpoint = self._process.stdout.readline().decode().strip()

    def ask(self, **asked: Any) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.endpoint}/stub", json.dumps(asked).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def script(self, *faults: dict[str, Any]) -> None:
        self.ask(faults=[*faults])

    def count(self, start: str) -> int:
        return sum(request.startswith(start) for request in self.ask()["requests"])

    def history(self, branch: str = "main", repository: str = "owner/name") -> list[dict[str, str]]:
        """Digests by path, of each commit."""
        state = self.ask()
        for name, of, commits in state["branches"]:
            if (name, of) == (repository, branch):
                return [state["trees"][commit] for commit in commits]
        return []

    def environment(self, token: str = TOKEN) -> dict[str, str]:
        own = {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": token, "HF_HOME": str(self._folder / "home")}
        return {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | own

    def command(self, out: object, *options: str) -> list[str]:
        return [sys.executable, "-m", "anabranch.cluster.cli", "push", str(out), REPOSITORY, *options]

    def push(self, out: object, *options: str, token: str = TOKEN, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(out, *options),
            env=self.environment(token) | more,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        for secret in (TOKEN, SIGNATURE.partition("=")[2], "Traceback"):
            assert secret not in done.stdout + done.stderr
        return done

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    stub = Hub(tmp_path)
    yield stub
    stub.close()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished output of three shards, two of which the hub takes in parts."""
    folder = tmp_path_factory.mktemp("push")
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (300, 400), "b": (300, 400), "c": (20, 30)}
    base = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    write_checkpoint(folder / "base", base)
    write_checkpoint(
        folder / "model", {n: t + 0.1 * torch.randn(*t.shape, generator=generator) for n, t in base.items()}
    )
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / "model"), "parameters": {"weight": 0.5}}],
        "output": {"shard_size": 480_000},
    }
    merge(write_recipe(folder / "recipe.yml", recipe), folder / "out")
    assert len(list((folder / "out").glob("*.safetensors"))) == SHARDS
    return folder / "out"


def digests(out: Path) -> dict[str, str]:
    """What a repository must hold of an output."""
    import hashlib

    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir() if path.is_file()}


def assert_whole(hub: Hub, out: Path, branch: str = "main") -> None:
    """The last commit holds the output, and no commit a part of it."""
    *earlier, last = hub.history(branch)
    assert {name: digest for name, digest in last.items() if name not in (".gitattributes", "notes.txt")} == digests(
        out
    )
    for tree in earlier:
        assert not any(name.endswith((".safetensors", ".index.json", ".manifest.json")) for name in tree)


def test_one_commit_shows_everything_and_a_second_push_does_nothing(hub: Hub, out: Path) -> None:
    done = hub.push(out, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["outcome"] == "pushed"
    assert said["files"] == len(digests(out))
    assert len(hub.history()) == 2
    assert_whole(hub, out)
    assert hub.ask()["private"] == {"owner/name": True}
    uploads = hub.count("PUT")
    again = hub.push(out)
    assert again.returncode == 0, again.stderr
    assert "has all of it; nothing was done" in again.stdout
    assert len(hub.history()) == 2
    assert hub.count("PUT") == uploads


def test_a_branch_is_made_and_the_public_must_be_meant(hub: Hub, out: Path) -> None:
    done = hub.push(out, "--revision", "trial", "--public")
    assert done.returncode == 0, done.stderr
    assert_whole(hub, out, "trial")
    assert len(hub.history("main")) == 1
    assert hub.ask()["private"] == {"owner/name": False}
    refused = hub.push(out)
    assert refused.returncode == 6
    assert "owner/name is public" in refused.stderr
    assert len(hub.history("main")) == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"target": "/preupload/", "status": 503, "times": 2},
        {"target": "/lfs/objects/batch", "lose": True},
        {"method": "PUT", "lose": True},
        {"method": "PUT", "status": 500, "number": 2},
        {"target": "/commit/", "status": 429, "headers": {"Retry-After": "1"}},
        {"target": "/commit/", "status": 502},
        {"target": "/commit/", "lose": True},
        {"target": "/commit/", "status": 409},
        {"target": "/commit/", "other commit": "owner/name"},
        {"target": "/api/models/owner/name$", "status": 500},
        {"target": "/create", "lose": True},
    ],
    ids=lambda fault: "-".join(str(value).strip("/") for value in fault.values() if not isinstance(value, dict)),
)
def test_what_a_busy_hub_does_is_survived(hub: Hub, out: Path, fault: dict[str, Any]) -> None:
    hub.script(fault)
    began = time.monotonic()
    done = hub.push(out)
    assert done.returncode == 0, done.stderr
    assert_whole(hub, out)
    assert sum(digests(out).keys() <= tree.keys() for tree in hub.history()) == 1, "a lost answer made a second commit"
    if "headers" in fault:
        assert time.monotonic() - began > 1


@pytest.mark.parametrize(("target", "number"), [("/preupload/", 3), ("/commit/", 1)])
def test_an_expired_token_is_told_and_gone_on_from(hub: Hub, out: Path, target: str, number: int) -> None:
    hub.script({"target": target, "number": number, "times": 1000, "status": 401})
    done = hub.push(out)
    assert done.returncode == 6, done.stderr
    assert "the hub answered 401" in done.stderr
    assert "HF_TOKEN" in done.stderr
    assert len(hub.history()) == 1
    there = set(hub.ask()["contents"])
    hub.script()
    assert hub.push(out).returncode == 0
    assert_whole(hub, out)
    again = [request for request in hub.ask()["requests"] if request.startswith("PUT /lfs/")]
    assert not [request for request in again if request.split("/")[2] in there], "what was there was uploaded again"


def test_a_wrong_token_is_told(hub: Hub, out: Path) -> None:
    done = hub.push(out, token="hf_wrongTokenOfTheTests")
    assert done.returncode == 6
    assert "hf auth login" in done.stderr
    assert "hf_wrong" not in done.stderr


def test_a_killed_push_shows_nothing_and_goes_on_without_uploading_again(hub: Hub, out: Path) -> None:
    hub.script({"target": "/preupload/", "number": 3, "times": 1000, "status": 429, "headers": {"Retry-After": "60"}})
    run = subprocess.Popen(
        hub.command(out), env=hub.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while hub.count("POST /api/models/owner/name/preupload/") < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert len(hub.history()) == 1
    uploaded = {request.split("/")[2] for request in hub.ask()["requests"] if request.startswith("PUT /lfs/")}
    assert len(uploaded) == 2
    hub.script()
    done = hub.push(out)
    assert done.returncode == 0, done.stderr
    assert_whole(hub, out)
    again = {request.split("/")[2] for request in hub.ask()["requests"] if request.startswith("PUT /lfs/")}
    assert not again & uploaded


def test_what_is_not_finished_or_not_whole_is_refused_before_anything_is_seen(
    hub: Hub, out: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    shard = next(copy.glob("model-00001*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    done = hub.push(copy)
    assert done.returncode == 4, done.stderr
    assert f"{shard.name}: its bytes are not those that were written" in done.stderr
    shard.unlink()
    done = hub.push(copy)
    assert done.returncode == 4, done.stderr
    assert f"{shard.name}: missing" in done.stderr
    (copy / "anabranch.manifest.json").unlink()
    done = hub.push(copy)
    assert done.returncode == 4, done.stderr
    assert "is not finished" in done.stderr
    assert len(hub.history()) <= 1


def test_another_model_is_replaced_only_where_that_is_asked_for(hub: Hub, out: Path) -> None:
    assert hub.push(out).returncode == 0
    hub.ask(
        repository="owner/name", commit={"model-00009-of-00009.safetensors": "old", "anabranch.manifest.json": "{}"}
    )
    done = hub.push(out)
    assert done.returncode == 5, done.stderr
    assert "holds another model: model-00009-of-00009.safetensors" in done.stderr
    assert len(hub.history()) == 3
    done = hub.push(out, "--replace")
    assert done.returncode == 0, done.stderr
    assert set(hub.history()[-1]) == {".gitattributes", *digests(out)}


@pytest.mark.parametrize("url", ["hf://owner", "hf://owner/name@main", "s3://owner/name", "owner/name"])
def test_what_is_no_repository_is_told(hub: Hub, out: Path, url: str) -> None:
    command = [*hub.command(out)[:-1], url]
    done = subprocess.run(command, env=hub.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    assert "expected hf://owner/name" in done.stderr


def test_memory_stays_within_bounds_whatever_the_size(hub: Hub, out: Path, tmp_path: Path) -> None:
    """A shard of 200 MB, read from a disk, in parts: what it takes is the client and a buffer."""
    big = {"a": torch.zeros(50_000_000)}
    write_checkpoint(tmp_path / "base", big)
    recipe = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "base")}], "output": {"card": False}}
    merge(write_recipe(tmp_path / "recipe.yml", recipe), tmp_path / "big")
    report = tmp_path / "peak"
    code = (
        "import resource, sys; from anabranch.cluster.cli import main\n"
        "try: main()\n"
        f"finally: open({str(report)!r}, 'w').write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10))"
    )
    command = [sys.executable, "-c", code, *hub.command(tmp_path / "big")[3:]]
    done = subprocess.run(command, env=hub.environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(report.read_text()) < 330, "MiB"
