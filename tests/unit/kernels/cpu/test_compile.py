"""Compiled kernels: found again without a compiler, in folders that need not be writable, and never trusted blindly."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from anabranch.engine.kernels.cpu import code_files
from anabranch.engine.kernels.cpu.code_files import CACHE_VARIABLE, folders
from anabranch.engine.kernels.cpu.compile import address_of, announced, jit

ROOT = Path(__file__).resolve().parents[4]
SCRIPT = """
import sys
import numpy as np
from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
out = np.empty(5000, np.float32)
assert CpuKernels().decode(np.full(10000, 63, np.uint8), "BF16", out) == 0 and (out == out[0]).all() and out[0] > 0.7
print("numba" in sys.modules, "scipy" in sys.modules)
"""

CROWDED = """
import mmap, random
import numpy as np
from anabranch.engine.kernels.cpu import blocks, codec, compile, philox
from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
kernels, values, mask = CpuKernels(), np.empty(4096, np.float32), np.empty(4096, np.uint8)
kernels.decode(np.zeros(8192, np.uint8), "BF16", values)
kernels.mask_random(1, 2, 0, 0.5, mask)
kernels.mask_blocks(values, 64, 256, np.zeros(4096, np.uint8), mask, False, False)
known = [k for module in (codec, blocks, philox) for k in vars(module).values()]
found = [(k, kinds) for k in known if isinstance(k, compile.Kernel) for kinds in k._entries]
random.seed(SEED)
held = []
for _ in range(2000):
    compile._find(*random.choice(found))
    held += [mmap.mmap(-1, mmap.PAGESIZE * random.randint(1, 12), 34, 0) for _ in range(3)]
    if random.random() < 0.05:
        held.append(mmap.mmap(-1, 3 << 30, 34, 0))  # 34: private, anonymous
    random.shuffle(held)
    del held[60:]
print(len(found))
"""


def start(cache: Path, script: str = SCRIPT) -> list[str]:
    """Call a kernel in a new process; returns what it printed: whether numba and scipy were imported."""
    return printed(begin(cache, script))


def begin(cache: Path, script: str = SCRIPT) -> subprocess.Popen[str]:
    environment = os.environ | {CACHE_VARIABLE: str(cache), "PYTHONPATH": str(ROOT), "NUMBA_CPU_NAME": "x86-64-v3"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", script], env=environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]


def printed(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out.split()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kernels")
    assert start(folder) == ["True", "False"]
    return folder


def test_the_second_start_needs_no_compiler(cache: Path) -> None:
    before = [path.stat() for path in cache.iterdir()]
    assert start(cache) == ["False", "False"]
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [status.st_mtime_ns for status in before]


def test_a_copy_that_nobody_may_write_is_used(cache: Path, tmp_path: Path) -> None:
    """As an image or a wheel brings it: times of files are others, and writing fails."""
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    for path in cache.glob("*.bin"):
        (shipped / path.name).write_bytes(path.read_bytes())
    shipped.chmod(0o500)
    assert start(shipped) == ["False", "False"]


def test_a_damaged_file_is_made_again(cache: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in cache.glob("*.bin"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        (damaged / path.name).write_bytes(content)
    assert start(damaged) == ["True", "False"]
    assert {path.name: path.read_bytes() for path in damaged.glob("*.bin")} == {
        path.name: path.read_bytes() for path in cache.glob("*.bin")
    }


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (3, 6))])
def test_kernels_are_loaded_where_memory_is_in_pieces(cache: Path, seed: int) -> None:
    """Code and constants stay near each other when only gaps are left near what was loaded before."""
    assert start(cache, CROWDED.replace("SEED", str(seed))) == ["3"]


def test_of_processes_that_start_together_one_compiles(tmp_path: Path) -> None:
    together = [begin(tmp_path) for _ in range(3)]
    imported_numba = [printed(process)[0] for process in together]
    assert sorted(imported_numba) == ["False", "False", "True"]


def test_nobody_waits_for_ever_for_one_who_compiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(code_files, "WAIT_SECONDS", 0.1)
    with code_files.alone():
        before = time.monotonic()
        with code_files.alone():
            assert 0.1 <= time.monotonic() - before < 10


def test_the_named_folder_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert folders()[0] == tmp_path
    monkeypatch.delenv(CACHE_VARIABLE)
    assert folders()[0].name == "compiled"


def test_who_has_no_home_has_one_folder_less(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a container whose user is only a number; its cache would lie below whatever directory it starts in."""
    for name in ("HOME", "XDG_CACHE_HOME", CACHE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    nobody = mock.Mock(side_effect=KeyError("uid not found"))
    with mock.patch("pwd.getpwuid", nobody):
        assert [folder.name for folder in folders()] == ["compiled"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folders()[-1] == tmp_path / ".cache" / "anabranch" / "kernels"


def test_what_does_not_fit_a_folder_leaves_nothing_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "full"))
    monkeypatch.setattr(code_files, "SHIPPED", tmp_path / "next")

    def replace(source: str, target: Path) -> None:
        if target.parent.name == "full":
            raise OSError(errno.ENOSPC, "no space")
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(os, "replace", replace)
    code_files.keep("x.bin", b"code")
    assert list((tmp_path / "full").iterdir()) == []
    assert [path.name for path in (tmp_path / "next").iterdir()] == ["x.bin"]


def test_a_kernel_that_allocates_says_what_to_do() -> None:
    @jit
    def allocates(a: np.ndarray) -> float:
        return np.zeros(a.size)[0]

    with pytest.raises(TypeError, match="allocates cannot be compiled; kernels may not allocate"):
        allocates(np.ones(3))


def test_a_kernel_that_raises_is_an_error() -> None:
    @jit
    def raises(a: np.ndarray) -> float:
        if a[0] > 2:
            raise ValueError
        return a[0]

    assert raises(np.ones(3)) == 1
    with pytest.raises(RuntimeError, match="raised an exception"):
        raises(np.full(3, 3.0))


def test_arrays_with_gaps_are_refused() -> None:
    @jit
    def first(a: np.ndarray) -> float:
        return a[0]

    with pytest.raises(AssertionError, match="contiguous"):
        first(np.ones((4, 2))[:, 0])
    assert first(np.full(3, 2.5)) == 2.5


def test_an_array_is_handed_over_by_the_address_that_numpy_says() -> None:
    whole = np.arange(100, dtype=np.float32)
    for array in (whole, whole[17:], whole[:0], whole.reshape(10, 10)[3:], whole[5:].view(np.uint8)):
        assert address_of(array) == array.ctypes.data


def test_who_waits_for_the_compiler_is_told_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    told: list[str] = []

    def last(a: np.ndarray) -> float:
        return a[a.size - 1]

    with announced(lambda: told.append("first")):
        kernel = jit(last)
        assert kernel(np.full(3, 2.5)) == 2.5
        assert kernel(np.full(3, 2.5, np.float32)) == 2.5
    assert told == ["first"]
    with announced(lambda: told.append("again")):
        assert jit(last)(np.full(3, 2.5)) == 2.5  # from the file
    assert jit(last)(np.full(3, 7)) == 7
    assert told == ["first"]
