"""Ray's processes die, or nobody answers: our words and 75 in bounded time, nothing left running, and it resumes."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from anabranch.cluster import supervision
from anabranch.engine.errors import TemporaryError

from ..s3.servers import free_port
from .conftest import SHARDS, Case, When, assert_same_output, receipts

pytestmark = [pytest.mark.ray, pytest.mark.faults]
GCS = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
"""The time after which Ray gives a lost head up; a minute unless it is told otherwise."""


def marked(mark: str, title: str = "") -> Iterator[int]:
    """Processes that inherited a variable of the environment, with this in their command."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            ours = entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes()
            if ours and title.encode() in (entry / "cmdline").read_bytes():
                yield int(entry.name)


def start(case: Case, out: Path, mark: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **GCS, "ANABRANCH_TEST_MARK": mark}
    return subprocess.Popen(
        case.command(out, "local", "--workers", "2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.slow
@pytest.mark.parametrize("title", ["raylet/raylet", "gcs_server"])
def test_a_process_of_ray_that_is_killed_is_told_and_leaves_nothing(cabs: Case, tmp_path: Path, title: str) -> None:
    out, mark = tmp_path / "out", secrets.token_hex(8)
    driver = start(cabs, out, mark)

    def kill() -> None:
        for process in marked(mark, title):
            os.kill(process, signal.SIGKILL)

    watch = When(out, 2, kill)
    _, words = driver.communicate(timeout=120)
    watch.join()
    assert watch.happened
    if driver.returncode == 0:
        pytest.skip("the merge was faster than Ray's noticing")
    assert driver.returncode == 75, words
    assert "error: --ray local: " in words
    assert "the same command goes on where it stopped" in words or "it goes on where it stopped" in words
    assert not list(marked(mark))
    assert len(receipts(out)) <= SHARDS
    cabs.finish(out)
    assert_same_output(out, cabs.expected)


def test_a_driver_that_is_killed_takes_its_ray_with_it(cabs: Case, tmp_path: Path) -> None:
    out, mark = tmp_path / "out", secrets.token_hex(8)
    driver = start(cabs, out, mark)
    watch = When(out, 2, driver.kill)
    driver.communicate(timeout=120)
    watch.join()
    deadline = time.monotonic() + 30
    while left := list(marked(mark)):
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.1)


def test_an_address_that_nobody_has_is_told_at_once(cabs: Case, tmp_path: Path) -> None:
    done = cabs.run(tmp_path / "out", "127.0.0.1:1")
    assert done.returncode == 75
    assert "error: --ray 127.0.0.1:1: no Ray cluster answers: " in done.stderr
    assert not (tmp_path / "out" / "anabranch.manifest.json").exists()


IMPATIENT = """
import sys
from anabranch.cluster import cli, supervision
supervision.CONNECT_SECONDS = 5.0
sys.argv = ["anabranch", *sys.argv[1:]]
cli.main()
"""


def test_an_address_that_accepts_and_is_silent_is_told_in_bounded_time(cabs: Case, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = cabs.command(tmp_path / "out", f"127.0.0.1:{silent.getsockname()[1]}")
        program = [command[0], "-c", IMPATIENT, *command[3:]]
        began = time.monotonic()
        done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 75, done.stderr
    assert "no Ray answered in 5 s" in done.stderr
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("code", "news", "text"),
    [(None, b"", "no Ray answered"), (1, b"c", "ended with exit 1"), (-9, b"c", "ended by signal 9")],
)
def test_every_silent_end_is_temporary(code: int | None, news: bytes, text: str) -> None:
    outcome = supervision._outcome(code, news, "auto")
    assert isinstance(outcome, TemporaryError)
    assert text in outcome.message


# -- the head of a cluster that is not ours --------------------------------------------------------------------------

BOUND_SECONDS = 60.0
"""For a driver to end after the head of its cluster has died."""


class Head:
    """A cluster as an operator starts it, `ray start --head` and one more node, in processes of its own."""

    def __init__(self, folder: Path) -> None:
        self.mark = secrets.token_hex(8)
        self.port = free_port()
        environment = {**os.environ, **GCS, "ANABRANCH_TEST_MARK": self.mark}
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats", "--block"]
        head = ["--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}"]
        head += [f"--ray-client-server-port={free_port()}"]
        node = [f"--address={self.address}", "--num-cpus=2", f"--memory={4 << 30}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
        self._started = [subprocess.Popen([*ray, *head], **quiet)]  # type: ignore[call-overload]
        self._wait(lambda: reachable(self.port) and len(list(marked(self.mark, "raylet/raylet"))) == 1)
        self._started.append(subprocess.Popen([*ray, *node], **quiet))  # type: ignore[call-overload]
        self._wait(lambda: len(list(marked(self.mark, "raylet/raylet"))) == 2)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @staticmethod
    def _wait(ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 90
        while not ready():
            assert time.monotonic() < deadline, "the cluster does not start"
            time.sleep(0.1)

    def kill(self, *titles: str) -> None:
        for title in titles:
            for process in marked(self.mark, title):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def end(self) -> None:
        while left := list(marked(self.mark)):
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            for started in self._started:
                started.poll()
            time.sleep(0.05)
        for started in self._started:
            started.wait()


def reachable(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def head() -> Iterator[Head]:
    with tempfile.TemporaryDirectory(prefix="ab-") as folder:  # names of sockets have a limit of 107 characters
        cluster = Head(Path(folder))
        yield cluster
        cluster.end()


@pytest.mark.parametrize(
    "titles",
    [["gcs_server"], pytest.param(["gcs_server", "raylet/raylet"], marks=pytest.mark.slow)],
    ids=["gcs", "all"],
)
def test_the_head_of_a_cluster_that_dies_is_told_in_bounded_time(
    cabs: Case, head: Head, tmp_path: Path, titles: list[str]
) -> None:
    out, mark = tmp_path / "out", secrets.token_hex(8)
    driver = subprocess.Popen(
        cabs.command(out, head.address),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **GCS, "ANABRANCH_TEST_MARK": mark},
    )
    killed: list[float] = []

    def kill() -> None:
        head.kill(*titles)
        killed.append(time.monotonic())

    watch = When(out, 2, kill)
    try:
        _, words = driver.communicate(timeout=BOUND_SECONDS + 60)
    finally:
        driver.kill()
    watch.join()
    assert watch.happened, words
    assert time.monotonic() - killed[0] < BOUND_SECONDS
    assert not list(marked(mark)), "something of ours is still running"
    if driver.returncode != 0:  # what was left to do may need no head
        assert driver.returncode in (6, 75), words
        assert f"error: --ray {head.address}: " in words
        assert "goes on where it stopped" in words
        assert "Traceback" not in words
        assert not (out / "anabranch.manifest.json").exists()
    head.end()
    cabs.finish(out)
    assert_same_output(out, cabs.expected)
