"""A disk that answers EIO at any system call: exit 75 in our words, no manifest, and the same command goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Disturbed
from .test_kills import LINK, RENAME

READ, WRITE, UNLINK = "preadv,preadv2", "write", "unlink,unlinkat"  # the loader of libraries uses pread64
FEW = [("fsync", 15), (READ, 2), (RENAME, 9), ("pwrite64", 1), (WRITE, 1), (UNLINK, 2)]
"""strace counts the calls of each thread by itself."""
MANY = (
    [("fsync", k) for k in range(1, 60, 2)]
    + [(READ, k) for k in range(1, 16)]
    + [(RENAME, k) for k in range(1, 30, 3)]
    + [(LINK, k) for k in (1, 2, 3)]
    + [("pwrite64", k) for k in range(1, 6)]
    + [(UNLINK, k) for k in range(1, 6)]
)


def fail_at(disturbed: Disturbed, strace: str, tmp_path: Path, call: str, number: int, error: str = "EIO") -> None:
    """Let the n-th such call of all threads fail, then run the command again."""
    out = tmp_path / "out"
    inject = ["-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={number}"]
    done = disturbed.run(out, strace, *inject)
    assert "Traceback" not in done.stderr
    manifest = (out / "anabranch.manifest.json").exists()
    if done.returncode != 0:
        assert done.returncode == 75, done.stderr
        assert "Input/output error" in done.stderr
        assert "run the same command again" in done.stderr
    if manifest:  # the error came after the commit, or while its name was made durable
        disturbed.assert_complete(out)
    else:
        assert done.returncode != 0
    before = disturbed.finished(out)
    done = disturbed.run(out)
    assert done.returncode == 0, done.stderr
    after = disturbed.finished(out)
    assert {name: after[name] for name in before} == before, "a finished shard was made again"
    disturbed.assert_done(out)


@pytest.mark.parametrize(("call", "number"), FEW, ids=lambda value: str(value).split(",")[0])
def test_an_error_of_the_disk_is_told_and_gone_on_from(
    disturbed: Disturbed, strace: str, tmp_path: Path, call: str, number: int
) -> None:
    fail_at(disturbed, strace, tmp_path, call, number)


@pytest.mark.slow
@pytest.mark.parametrize(("call", "number"), MANY, ids=lambda value: str(value).split(",")[0])
def test_an_error_of_the_disk_anywhere_is_gone_on_from(
    disturbed: Disturbed, strace: str, tmp_path: Path, call: str, number: int
) -> None:
    fail_at(disturbed, strace, tmp_path, call, number)


def test_a_disk_whose_reads_always_fail_is_told_at_once(disturbed: Disturbed, strace: str, tmp_path: Path) -> None:
    inject = ["-f", "-qq", "-o", "/dev/null", "-e", f"trace={READ}", "-e", f"inject={READ}:error=EIO:when=3+"]
    done = disturbed.run(tmp_path / "out", strace, *inject)
    assert done.returncode == 75, done.stderr
    assert "Input/output error" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "anabranch.manifest.json").exists()
