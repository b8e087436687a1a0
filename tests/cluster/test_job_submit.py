"""`ray job submit` on a head that asks for a token: bytes, names, metrics, and no secret in any log."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from .conftest import SHARDS, Case, When, assert_same_output

pytestmark = pytest.mark.ray

BIN = Path(sys.executable).parent
METRICS_SECONDS = 0.5
CANARY = "canary-5d20e1b7-do-not-write-me"


class Head:
    """One node with a dashboard on this machine, started as the documents say.

    Args:
        folder: for its token and its output.
        logs: for everything that Ray writes; a short path, as those of its sockets end at 107 bytes.
    """

    def __init__(self, folder: Path, logs: Path) -> None:
        self.logs = logs
        self.token = secrets.token_hex(32)
        token_file = folder / "token"
        token_file.write_text(self.token)
        dashboard, agent, client, self._metrics = free_ports(4)
        self.address = f"http://127.0.0.1:{dashboard}"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_file),
            "RAY_metrics_report_interval_ms": str(int(METRICS_SECONDS * 1000)),
            "AWS_SECRET_ACCESS_KEY": CANARY,
            "HF_TOKEN": CANARY,
        }
        options = {
            "port": 0,
            "dashboard-host": "127.0.0.1",
            "dashboard-port": dashboard,
            "dashboard-agent-listen-port": agent,
            "ray-client-server-port": client,
            "metrics-export-port": self._metrics,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "num-cpus": 2,
            "memory": 2 << 30,
            "object-store-memory": 100 << 20,
            "temp-dir": self.logs,
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        self._output = (folder / "head.log").open("w")
        self.process = subprocess.Popen(
            ["ray", "start", "--head", "--block", "--disable-usage-stats", *words],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=self.environment,
            start_new_session=True,
        )

    def get(self, path: str, *, token: bool = True) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"} if token else {}
        with urllib.request.urlopen(urllib.request.Request(self.address + path, headers=headers), timeout=10) as answer:
            return json.load(answer)

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            with suppress(urllib.error.URLError):
                nodes = self.get("/api/v0/nodes")["data"]["result"]["result"]
                if nodes and nodes[0]["state"] == "ALIVE":
                    return
            assert self.process.poll() is None, "the head did not start"
            assert time.monotonic() < deadline, "the head does not answer"
            time.sleep(0.2)

    def submit(self, working_dir: Path, *entrypoint: str) -> subprocess.CompletedProcess[str]:
        command = ["ray", "job", "submit", "--address", self.address, "--working-dir", str(working_dir), "--"]
        return subprocess.run(
            [*command, *entrypoint], capture_output=True, text=True, timeout=240, env=self.environment, check=False
        )

    def metrics(self) -> dict[str, float]:
        """Our counters, added up over processes: `name` or `name{tag}`, without Ray's prefix and suffix."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found: dict[str, float] = {}
        for name, labels, value in re.findall(r"^ray_anabranch_(\w+)_total\{(.*)\} (\S+)$", text, flags=re.MULTILINE):
            tag = re.search(r'(?:phase|what)="(\w+)"', labels)
            key = f"{name}{{{tag[1]}}}" if tag else name
            found[key] = found.get(key, 0.0) + float(value)
        return found

    def kill_a_worker(self) -> None:
        mine = psutil.Process(self.process.pid).children(recursive=True)
        next(p for p in mine if "ray::MergeWorker" in " ".join(p.cmdline())).kill()

    def kill(self) -> None:
        """End what this head started and nothing else; `ray stop` ends every Ray of the machine."""
        with suppress(psutil.NoSuchProcess):
            mine = psutil.Process(self.process.pid).children(recursive=True)
            os.killpg(self.process.pid, signal.SIGKILL)
            for process in mine:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()
        self._output.close()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as logs:
        started = Head(tmp_path_factory.mktemp("head"), Path(logs))
        try:
            started.wait(120)
            yield started
        finally:
            started.kill()


def test_a_submitted_merge_with_a_lost_worker(head: Head, cabs: Case, tmp_path: Path) -> None:
    working_dir, out = tmp_path / "work", tmp_path / "out"
    working_dir.mkdir()
    (working_dir / "recipe.yml").write_bytes(cabs.recipe.read_bytes())
    watch = When(out, 2, head.kill_a_worker)
    done = head.submit(working_dir, "anabranch", "merge", "recipe.yml", str(out), "--ray", "auto", "--memory", "600MiB")
    watch.join()
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_output(out, cabs.expected)
    assert "room for 2 workers" in done.stdout
    assert len(re.findall(r"^worker \d was lost with model-", done.stdout, flags=re.MULTILINE)) == 1

    plan_id = json.loads((out / "anabranch.manifest.json").read_bytes())["plan_id"]
    actors = head.get("/api/v0/actors")["data"]["result"]["result"]
    ours = [actor["name"] for actor in actors if actor["class_name"] == "MergeWorker"]
    assert len(ours) >= 3  # two, and the one that took the place of the lost
    assert all(re.fullmatch(rf"anabranch-{plan_id[:8]}-[0-9a-f]{{6}}-\d+", name) for name in ours)

    time.sleep(3 * METRICS_SECONDS)
    metrics = head.metrics()
    again = done.stdout.count(" is given to worker ")
    assert metrics.get("retries", 0.0) == again
    assert SHARDS - 2 <= metrics["shards{merge}"] <= SHARDS  # the lost worker's last seconds may not be exported
    size = sum(path.stat().st_size for path in out.glob("model-*.safetensors"))
    assert 0.8 * size <= metrics["bytes{write}"] <= size
    assert {"seconds{read}", "seconds{fold}", "bytes{read}"} <= metrics.keys()

    for path in head.logs.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert head.token.encode() not in content, f"the token is in {path}"
            assert CANARY.encode() not in content, f"a secret is in {path}"
    assert head.token not in done.stdout + done.stderr
    assert CANARY not in done.stdout + done.stderr


@pytest.mark.slow
def test_the_exit_code_of_a_failed_job_is_in_its_status(head: Head, tmp_path: Path) -> None:
    done = head.submit(tmp_path, "anabranch", "merge", "missing.yml", str(tmp_path / "out"), "--ray", "auto")
    assert done.returncode != 0
    assert "missing.yml" in done.stdout
    last = max(head.get("/api/jobs/"), key=lambda job: job["start_time"])
    assert (last["status"], last["driver_exit_code"]) == ("FAILED", 2)


def test_nobody_gets_in_without_the_token(head: Head) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        head.get("/api/jobs/", token=False)
    refused.value.close()
    assert refused.value.code == 401
