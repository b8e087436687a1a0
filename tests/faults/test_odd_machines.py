"""Clocks that jump, system calls that do half, and another processor on resume: none of them shows in the output."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anabranch.engine.kernels.cpu.code_files import CACHE_VARIABLE

from .conftest import Disturbed

JUMPING = """
import random, time
_real = time.time
def _jumping():
    return _real() + random.uniform(-400, 400) * 86400
time.time = _jumping
time.time_ns = lambda: int(_jumping() * 1e9)
"""
SHORT = """
import os
_write, _pwrite, _preadv = os.write, os.pwrite, os.preadv
def _less(size):
    return max(1, size * 2 // 3)
os.write = lambda fd, data: _write(fd, memoryview(data)[: _less(len(data))])
os.pwrite = lambda fd, data, offset: _pwrite(fd, memoryview(data)[: _less(len(data))], offset)
os.preadv = lambda fd, views, offset: _preadv(fd, [views[0][: _less(len(views[0]))]], offset)
"""
TORN = """
import os, signal
_calls = 0
_pwrite, _write = os.pwrite, os.write
def _torn(real, data, *arguments):
    global _calls
    _calls += 1
    if _calls == NUMBER:
        real(arguments[0], memoryview(data)[: len(data) // 2], *arguments[1:])
        os.kill(os.getpid(), signal.SIGKILL)
    return real(arguments[0], data, *arguments[1:])
os.pwrite = lambda fd, data, offset: _torn(_pwrite, data, fd, offset)
os.write = lambda fd, data: _torn(_write, data, fd)
"""


def beginning_with(folder: Path, code: str) -> dict[str, str]:
    """The environment in which every Python process runs this first."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def killed_after(disturbed: Disturbed, out: Path, receipts: int, environment: dict[str, str]) -> None:
    """Run the merge and SIGKILL it when there are so many receipts."""
    run = subprocess.Popen(
        disturbed.command(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    while run.poll() is None and len(disturbed.finished(out)) < receipts:
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert not (out / "anabranch.manifest.json").exists(), "the merge was faster than the kill"


def test_a_clock_that_jumps_while_merging_and_between_runs_decides_nothing(
    disturbed: Disturbed, tmp_path: Path
) -> None:
    out, chance = tmp_path / "out", random.Random(0)
    environment = beginning_with(tmp_path / "clock", JUMPING)
    killed_after(disturbed, out, 2, environment)
    before = disturbed.finished(out)
    for path in [*out.rglob("*"), out]:  # as if each had been written under another clock
        when = time.time() + chance.uniform(-4000, 4000) * 86400
        os.utime(path, (when, when))
    inodes = {name: inode for name, (inode, _) in before.items()}
    began = time.monotonic()
    done = disturbed.run(out, env=environment)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 60
    disturbed.assert_done(out)
    assert {name: disturbed.finished(out)[name][0] for name in inodes} == inodes, "a finished shard was made again"
    again = disturbed.run(out, env=environment)
    assert again.returncode == 0, again.stderr
    assert "already complete" in again.stdout


def test_system_calls_that_do_less_than_they_were_asked_for_are_gone_on_with(
    disturbed: Disturbed, tmp_path: Path
) -> None:
    done = disturbed.run(tmp_path / "out", env=beginning_with(tmp_path / "short", SHORT))
    assert done.returncode == 0, done.stderr
    disturbed.assert_done(tmp_path / "out")


@pytest.mark.parametrize("number", [9, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 4, 14))])
def test_a_write_that_is_torn_by_a_kill_is_survived(disturbed: Disturbed, tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    environment = beginning_with(tmp_path / "torn", TORN.replace("NUMBER", str(number)))
    assert disturbed.run(out, env=environment).returncode == -signal.SIGKILL
    assert not (out / "anabranch.manifest.json").exists()
    assert disturbed.run(out).returncode == 0
    disturbed.assert_done(out)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_another_processor_goes_on_with_the_same_bytes(disturbed: Disturbed, tmp_path: Path) -> None:
    """A run is killed and continued by machine code for the plainest processor of this kind, numpy's loops included."""
    out = tmp_path / "out"
    killed_after(disturbed, out, 2, dict(os.environ))
    plain = {
        "NUMBA_CPU_NAME": "x86-64",
        "NUMBA_CPU_FEATURES": "",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4",
        CACHE_VARIABLE: str(tmp_path / "kernels"),
    }
    done = subprocess.run(
        disturbed.command(out), capture_output=True, text=True, timeout=500, check=False, env=os.environ | plain
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "kernels").glob("*.bin")), "nothing was compiled anew"
    disturbed.assert_done(out)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_another_numba_and_llvm_go_on_with_the_same_bytes(disturbed: Disturbed, tmp_path: Path) -> None:
    """A run is killed and continued by machine code of LLVM 20, which an older numba and llvmlite bring."""
    older, cache, out = tmp_path / "older", tmp_path / "kernels", tmp_path / "out"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(older)]
    subprocess.run([*pip, "numba==0.65.0", "llvmlite==0.47.0"], check=True, timeout=300)
    environment = os.environ | {"PYTHONPATH": str(older), CACHE_VARIABLE: str(cache)}
    code = "import llvmlite.binding as llvm, numba; print(numba.__version__, llvm.llvm_version_info[0])"
    used = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert used.stdout.split() == ["0.65.0", "20"]
    killed_after(disturbed, out, 2, dict(os.environ))
    done = subprocess.run(
        disturbed.command(out), capture_output=True, text=True, timeout=500, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert list(cache.glob("*.bin")), "nothing was compiled anew"
    disturbed.assert_done(out)
