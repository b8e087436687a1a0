"""Whether a folder can hold an output: files must be renamed and written in place, which mounts of buckets cannot."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from typing import NamedTuple

from ..errors import ResourceError
from .local_files import FILE_MODE, sync_folder
from .local_folders import NEW_FILE

_CANNOT = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EXDEV, errno.ENOTTY}
"""What a file system answers to what it does not know; full disks, quotas and rights have other numbers."""

_SCHEMES = {
    "mountpoint-s3": "s3", "s3fs": "s3", "goofys": "s3", "geesefs": "s3", "gcsfuse": "gs", "blobfuse": "az",
    "blobfuse2": "az",
}  # fmt: skip
"""What mounts of buckets call themselves, and the URLs of what lies behind them."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """A line of /proc/mounts."""

    source: str
    folder: str
    kind: str


def probe_folder(root: str, probe: str, renamed: str) -> None:
    """Make a file in a folder, write it in place, flush, rename and remove it, as every output is written.

    Hard links are not asked for: where there are none, names are given by renaming.

    Args:
        root: the folder, for messages.
        probe: path of a temporary file in it that does not exist.
        renamed: another one.

    Raises:
        ResourceError: it is a mount that cannot do this; the message has the URL to use instead, where that is known.
        OSError: anything else that goes wrong.
    """
    descriptor = os.open(probe, NEW_FILE, FILE_MODE)
    step = "written"
    try:
        try:
            os.pwrite(descriptor, b"2", 1)
            os.pwrite(descriptor, b"1", 0)
            step = "flushed"
            os.fsync(descriptor)
        finally:
            os.close(descriptor)  # a mount that uploads now may fail only here
        step = "renamed"
        os.replace(probe, renamed)
        sync_folder(root)
        step = "removed"
        os.unlink(renamed)
    except OSError as error:
        _remove(probe, renamed)
        mount = _mount_of(root)
        if error.errno in _CANNOT or (error.errno == errno.EIO and mount.kind.startswith("fuse")):
            raise _refusal(root, mount, step, error) from error
        raise


def _remove(*paths: str) -> None:
    """Leave nothing, as far as the mount lets us."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _refusal(root: str, mount: Mount, step: str, error: OSError) -> ResourceError:
    url = bucket_url(mount, root)
    behind = f", a mount of {mount.kind.removeprefix('fuse.')}" if mount.kind.startswith("fuse") else ""
    hint = (
        f"Give the URL of the store itself as the output: {url}"
        if url
        else "Give the URL of the store itself as the output (s3://…, gs://… or az://…), or choose a local folder."
    )
    reads = "Inputs can be read from such a mount, and faster by their URLs."
    return ResourceError(
        f"{root}{behind}: files cannot be {step} there ({error.strerror}), so no output could appear whole",
        f"{hint} {reads}",
    )


def bucket_url(mount: Mount, path: str) -> str | None:
    """The URL of what a path below a mount of a bucket is in that bucket; None where the mount does not tell.

    Args:
        mount: where the path lies.
        path: absolute.
    """
    below = os.path.relpath(path, mount.folder)
    suffix = "" if below == "." else f"/{below}"
    if re.match(r"(s3|gs|az|abfss?)://", mount.source):
        return mount.source.rstrip("/") + suffix
    name = mount.kind.removeprefix("fuse.")
    scheme = _SCHEMES.get(name) or _SCHEMES.get(mount.source)
    if scheme is None:
        return None
    bucket, _, prefix = mount.source.partition(":")
    if bucket in _SCHEMES or not _BUCKET.fullmatch(bucket):
        return f"{scheme}://BUCKET{suffix}"
    prefix = prefix.strip("/")
    return f"{scheme}://{bucket}" + (f"/{prefix}" if prefix else "") + suffix


def _mount_of(path: str) -> Mount:
    """The mount that a path lies on; an empty one where the system does not tell."""
    real = os.path.realpath(path)
    found = Mount("", "/", "")
    with contextlib.suppress(OSError), open("/proc/mounts", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            source, folder, kind, *_ = (_unescaped(field) for field in line.split(" "))
            inside = real == folder or real.startswith(folder.rstrip("/") + "/")
            if inside and len(folder) >= len(found.folder):
                found = Mount(source, folder, kind)
    return found


def _unescaped(field: str) -> str:
    """A field of /proc/mounts, where blanks and the like are written in octal."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), field)
