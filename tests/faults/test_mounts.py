"""Outputs on mounts of buckets: refused with the URL to use where files cannot be renamed or written in place."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from anabranch.engine.errors import ResourceError
from anabranch.engine.storage.local import LocalStore
from anabranch.engine.storage.local_probe import Mount, bucket_url

pytestmark = pytest.mark.faults


def why_no_fuse() -> str | None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened"
    try:
        import mfusepy  # noqa: F401 - it looks for libfuse while it is imported
    except (ImportError, OSError) as error:
        return f"no FUSE: {error}"
    return None


@contextlib.contextmanager
def mounted(folder: Path, source: str, kind: str, *without: str) -> Iterator[Path]:
    """A mount of an empty folder, by a process of its own, as long as the block."""
    behind, place = folder / "behind", folder / "mount"
    behind.mkdir()
    place.mkdir()
    arguments = [str(behind), str(place), source, kind, *without]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.bucket_mount", *arguments],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        deadline = time.monotonic() + 30
        while not os.path.ismount(place):
            if process.poll() is not None or time.monotonic() > deadline:
                assert process.stdout is not None
                process.kill()
                pytest.skip(f"no FUSE mount may be made here: {process.stdout.read()[-300:]!r}")
            time.sleep(0.02)
        yield place
    finally:
        process.terminate()
        process.wait(10)
        if os.path.ismount(place):
            subprocess.run(["umount", "--lazy", str(place)], check=True)
        if process.stdout is not None:
            process.stdout.close()


needs_fuse = pytest.mark.skipif(why_no_fuse() is not None, reason=why_no_fuse() or "")


@needs_fuse
@pytest.mark.parametrize(
    ("source", "kind", "without", "step", "url"),
    [
        ("mountpoint-s3", "mountpoint-s3", ("rename", "overwrite"), "written", "s3://BUCKET/out"),
        ("my-bucket", "gcsfuse", ("rename",), "renamed", "gs://my-bucket/out"),
        ("my-bucket:some/prefix", "goofys", ("fsync",), "flushed", "s3://my-bucket/some/prefix/out"),
        ("blobfuse2", "blobfuse2", ("unlink",), "removed", "az://BUCKET/out"),
        ("box", "sshfs", ("rename",), "renamed", "s3://…, gs://… or az://…"),
    ],
)
def test_a_mount_that_cannot_hold_an_output_is_refused_with_the_url_to_use(
    tmp_path: Path, source: str, kind: str, without: tuple[str, ...], step: str, url: str
) -> None:
    with mounted(tmp_path, source, kind, *without) as place:
        with pytest.raises(ResourceError, match=f"cannot be {step}") as caught:
            LocalStore(str(place / "out"), create=True)
        assert url in caught.value.hint
        assert kind in caught.value.message
        if "unlink" not in without:
            assert list((tmp_path / "behind" / "out").iterdir()) == []


@needs_fuse
def test_a_mount_without_links_holds_an_output(tmp_path: Path) -> None:
    with mounted(tmp_path, "disk", "ordinary") as place:
        store = LocalStore(str(place / "out"), create=True)
        assert store.create("plan", b"1")
        assert not store.create("plan", b"2")
        assert store.list() == ["plan"]


@pytest.mark.parametrize("call", ["replace", "fsync", "pwrite"])
@pytest.mark.parametrize(
    ("number", "refused"),
    [
        (errno.ENOSYS, True),
        (errno.EOPNOTSUPP, True),
        (errno.EINVAL, True),
        (errno.ENOSPC, False),
        (errno.EDQUOT, False),
    ],
)
def test_what_a_file_system_does_not_know_differs_from_what_it_cannot_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, refused: bool
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ResourceError) as caught:
        LocalStore(str(tmp_path / "out"), create=True)
    assert ("the URL of the store itself" in caught.value.hint) == refused
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("mount", "url"),
    [
        (Mount("s3://bucket/a/", "/mnt", "fuse"), "s3://bucket/a/x/y"),
        (Mount("mountpoint-s3", "/mnt", "fuse"), "s3://BUCKET/x/y"),
        (Mount("bucket", "/mnt", "fuse.gcsfuse"), "gs://bucket/x/y"),
        (Mount("s3fs", "/mnt", "fuse.s3fs"), "s3://BUCKET/x/y"),
        (Mount("/dev/vda1", "/mnt", "ext4"), None),
        (Mount("remote:bucket", "/mnt", "fuse.rclone"), None),
    ],
)
def test_the_url_behind_a_mount_is_told_where_the_mount_tells_it(mount: Mount, url: str | None) -> None:
    assert bucket_url(mount, "/mnt/x/y") == url
    assert bucket_url(mount, "/mnt") == (url.removesuffix("/x/y") if url else None)
