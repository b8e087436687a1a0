"""Standard output and error closed, full, abandoned or stalled: what is done is done, and the exit code says so."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import Disturbed

MANIFEST = "anabranch.manifest.json"


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False, env=os.environ | environment
    )


def command(*arguments: object) -> str:
    return shlex.join([sys.executable, "-m", "anabranch.cluster.cli", *map(str, arguments)])


@pytest.mark.parametrize(
    "streams",
    [
        "<&- >&- 2>&-",
        ">/dev/full 2>/dev/full",
        "--profile /dev/full",
        "2>&1 | true",
        *(pytest.param(streams, marks=pytest.mark.slow) for streams in ("2>/dev/full", "--json >&-")),
    ],
)
def test_a_merge_goes_on_whatever_becomes_of_its_output(disturbed: Disturbed, tmp_path: Path, streams: str) -> None:
    out = tmp_path / "out"
    done = shell(f"set -o pipefail; {shlex.join(disturbed.command(out))} {streams}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr
    disturbed.assert_done(out)


def test_a_reader_of_messages_that_stands_still_holds_up_no_merge(disturbed: Disturbed, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    while True:  # until the pipe is full; nobody reads it
        try:
            os.write(writing, b"x" * 512)
        except BlockingIOError:
            break
    os.set_blocking(writing, True)
    done = subprocess.run(disturbed.command(out), stdout=subprocess.DEVNULL, stderr=writing, timeout=120, check=False)
    os.close(reading)
    os.close(writing)
    assert done.returncode == 0
    disturbed.assert_done(out)


def test_a_report_that_is_lost_is_told(disturbed: Disturbed, tmp_path: Path) -> None:
    done = shell(f"{shlex.join(disturbed.command(tmp_path / 'out'))} >/dev/full")
    assert done.returncode == 0
    assert "note: standard output cannot be written: No space left on device" in done.stderr


@pytest.mark.parametrize("arguments", [("plan", "RECIPE", "OUT"), ("gc", "OUT"), ("--version",)])
def test_a_command_whose_result_is_what_it_prints_fails_where_it_cannot(
    disturbed: Disturbed, arguments: tuple[str, ...]
) -> None:
    places = {"RECIPE": disturbed.recipe, "OUT": disturbed.expected}
    done = shell(f"{command(*(places.get(argument, argument) for argument in arguments))} >/dev/full")
    assert done.returncode == 6
    assert done.stderr.startswith("error: standard output cannot be written")
    assert "Traceback" not in done.stderr


def test_the_verdict_of_verify_is_its_exit_code(disturbed: Disturbed, tmp_path: Path) -> None:
    out = tmp_path / "out"
    disturbed.run(out)
    assert shell(f"{command('verify', out)} >&- 2>&-").returncode == 0
    damaged = out / "config.json"
    damaged.write_bytes(damaged.read_bytes() + b" ")
    assert shell(f"{command('verify', out)} >&- 2>&-").returncode == 4
    assert shell(f"{command('verify', out, '--json')} >/dev/full").returncode == 4


@pytest.mark.parametrize("stream", [">&- 2>&-", "2>/dev/full | true"])
def test_errors_keep_their_exit_code_where_nobody_hears_them(tmp_path: Path, stream: str) -> None:
    assert shell(f"set -o pipefail; {command('merge', '/nowhere.yml', tmp_path / 'out')} {stream}").returncode == 2


def test_no_home_no_terminal_no_variables(disturbed: Disturbed, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kept = f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}"
    done = shell(f"env -i {kept} setsid {shlex.join(disturbed.command(out))} </dev/null >/dev/null 2>&1")
    assert done.returncode == 0
    disturbed.assert_done(out)


def slow(disturbed: Disturbed, out: Path, *before: str) -> subprocess.Popen[bytes]:
    """The merge, each of whose flushes to disk takes a while, as soon as it has its plan."""
    delay = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:delay_enter=50000"]
    started = subprocess.Popen(
        [*before, "strace", *delay, *disturbed.command(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (out / ".anabranch" / "plan.json").exists():
        assert time.monotonic() < deadline and started.poll() is None
        time.sleep(0.01)
    return started


@pytest.mark.usefixtures("strace")
def test_a_hang_up_stops_a_merge_that_resumes(disturbed: Disturbed, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merging = slow(disturbed, out)
    os.killpg(merging.pid, signal.SIGHUP)
    _, words = merging.communicate(timeout=60)
    assert merging.returncode in (130, -signal.SIGHUP)  # of the command, or of strace that ran it
    assert b"Traceback" not in words
    assert not (out / MANIFEST).exists()
    assert disturbed.run(out).returncode == 0
    disturbed.assert_done(out)


@pytest.mark.usefixtures("strace")
def test_a_hang_up_under_nohup_and_a_broken_pipe_signal_stop_nothing(disturbed: Disturbed, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merging = slow(disturbed, out, "nohup")
    os.killpg(merging.pid, signal.SIGHUP)
    os.killpg(merging.pid, signal.SIGPIPE)
    merging.communicate(timeout=100)
    assert merging.returncode == 0
    disturbed.assert_done(out)
