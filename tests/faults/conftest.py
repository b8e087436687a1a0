"""One small merge of several shards, run as real processes that are killed, starved and raced."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..merging import merge
from .case import write_case


@dataclass(frozen=True)
class Disturbed:
    """A recipe, and the output of an undisturbed run."""

    recipe: Path
    expected: Path

    def command(self, out: Path, *options: str) -> list[str]:
        return [sys.executable, "-m", "anabranch.cluster.cli", "merge", str(self.recipe), str(out), *options]

    def run(self, out: Path, *before: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command to its end; `before` is what starts it, such as strace with its options."""
        return subprocess.run(
            [*before, *self.command(out)], capture_output=True, text=True, timeout=120, check=False, **options
        )

    def assert_done(self, out: Path) -> None:
        """Every file equals the undisturbed run's and nothing else is there: no temporaries, no strays."""
        assert files_below(out) == files_below(self.expected)
        self.assert_complete(out)

    def assert_complete(self, out: Path) -> None:
        """Every file of the undisturbed run is there with its bytes."""
        for name in files_below(self.expected):
            if not name.endswith(".parquet"):
                assert (out / name).read_bytes() == (self.expected / name).read_bytes(), name

    def finished(self, out: Path) -> dict[str, tuple[int, int]]:
        """Shards with a receipt: inode and modification time."""
        names = [p.name.removesuffix(".json") for p in (out / ".anabranch/receipts").glob("model*.json")]
        return {name: ((out / name).stat().st_ino, (out / name).stat().st_mtime_ns) for name in names}


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    folder = tmp_path_factory.mktemp("faults")
    path = write_case(folder)
    merge(path, folder / "expected")
    return Disturbed(path, folder / "expected")


@pytest.fixture
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed; Debian's package strace has it")
    return found


@pytest.fixture
def unshare() -> str:
    found = shutil.which("unshare")
    if found is None or os.geteuid() != 0:
        pytest.skip("a small file system of our own needs unshare and root")
    return found
