"""The stub of the hub, and the command that talks to it."""

from __future__ import annotations

import hashlib
import json
import os
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

ROOT = Path(__file__).resolve().parents[2]
SHARDS = 3


class Hub:
    """One stub, and a home for its client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        """From now on these faults, and an empty memory of requests."""
        self.ask(faults=[*faults])

    def count(self, start: str) -> int:
        return sum(request.startswith(start) for request in self.ask()["requests"])

    def uploads(self) -> set[str]:
        """Digests of contents that were sent."""
        return {request.split("/")[2] for request in self.ask()["requests"] if request.startswith("PUT /lfs/")}

    def history(self, branch: str = "main", repository: str = "owner/name") -> list[dict[str, str]]:
        """Digests by path, of each commit."""
        state = self.ask()
        for name, of, commits in state["branches"]:
            if (name, of) == (repository, branch):
                return [state["trees"][commit] for commit in commits]
        return []

    def environment(self, token: str = TOKEN) -> dict[str, str]:
        own = {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": token,
            "HF_HOME": str(self.folder / "home"),
            "ANABRANCH_HUB_STATE": str(self.folder / "state"),
        }
        offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # both stop the hub's client
        return {name: value for name, value in os.environ.items() if name not in offline} | own

    @staticmethod
    def command(*arguments: object) -> list[str]:
        return [sys.executable, "-m", "anabranch.cluster.cli", *map(str, arguments)]

    def run(self, *arguments: object, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        """The command to its end, in which no secret is told."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment(token),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        for secret in (TOKEN, SIGNATURE.partition("=")[2], "Traceback"):
            assert secret not in done.stdout + done.stderr
        return done

    def kill_at_shard(self, shard: int, *arguments: object) -> None:
        """Start a command, tell it to wait when it asks for the n-th time where to send a file, and kill it then."""
        wait = {"status": 429, "headers": {"Retry-After": "60"}, "times": 1000}
        self.script({"target": "/preupload/", "number": shard, **wait})
        run = subprocess.Popen(
            self.command(*arguments), env=self.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while self.count("POST /api/models/owner/name/preupload/") < shard and time.monotonic() < deadline:
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
        run.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    stub = Hub(tmp_path)
    yield stub
    stub.close()


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards, two of which the hub takes in parts."""
    folder = tmp_path_factory.mktemp("push")
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (300, 400), "b": (300, 400), "c": (20, 30)}
    base = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    write_checkpoint(folder / "base", base)
    changed = {name: tensor + 0.1 * torch.randn(*tensor.shape, generator=generator) for name, tensor in base.items()}
    write_checkpoint(folder / "model", changed)
    content = {
        "merge_method": "task_arithmetic",
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / "model"), "parameters": {"weight": 0.5}}],
        "output": {"shard_size": 480_000},
    }
    return write_recipe(folder / "recipe.yml", content)


@pytest.fixture(scope="session")
def out(recipe: Path) -> Path:
    """The finished output in a folder."""
    found = recipe.parent / "out"
    merge(recipe, found)
    assert len(list(found.glob("*.safetensors"))) == SHARDS
    return found


def digests(out: Path) -> dict[str, str]:
    """What a repository must hold of an output."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir() if path.is_file()}


def assert_whole(hub: Hub, out: Path, branch: str = "main") -> None:
    """The last commit holds the output, and no commit a part of it."""
    *earlier, last = hub.history(branch)
    found = {name: digest for name, digest in last.items() if name not in (".gitattributes", "notes.txt")}
    assert found == digests(out)
    for tree in earlier:
        assert not any(name.endswith((".safetensors", ".index.json", ".manifest.json")) for name in tree)
