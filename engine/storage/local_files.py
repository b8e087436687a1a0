"""What reading and writing local files share: errors that a user understands, new files and folders made durable."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from ..errors import AnabranchError, ResourceError, TemporaryError

MAX_CALL_BYTES = 2_147_479_552
"""Linux moves at most this many bytes in one read or write."""

FILE_MODE = 0o644
"""Mode of new files before the umask."""

_NEEDS_RESOURCES = {
    errno.ENOSPC: "Free some space, then run the same command again; it goes on where it stopped.",
    errno.EDQUOT: "Raise the quota, then run the same command again; it goes on where it stopped.",
    errno.EFBIG: "Raise the file size limit (ulimit -f) or use a smaller shard_size.",
    errno.EROFS: "The file system is read-only; choose another output folder.",
    errno.EACCES: "Give this user permission, or choose another folder.",
    errno.EPERM: "Give this user permission, or choose another folder.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    errno.ENFILE: "The system has too many open files.",
    errno.ENOMEM: "Free some memory.",
    errno.ENAMETOOLONG: "Choose a shorter output path.",
}


def absolute_path(path: str) -> str:
    """Absolute, without `.` and `..`; after a symbolic link `..` leaves the link's target, as the system means it."""
    place = "/" if os.path.isabs(path) else _working_folder()
    for part in path.split("/"):
        if part == "..":
            place = os.path.dirname(os.path.realpath(place) if os.path.islink(place) else place)
        elif part not in ("", "."):
            place = os.path.join(place, part)
    return place


def _working_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise ResourceError(
            "the working directory is gone, so a relative path means nothing",
            "Change to a folder that exists, or give absolute paths.",
        ) from None


def translate(error: OSError, where: str) -> Exception:
    """The exception that a user should see for an operating system error at `where`."""
    if isinstance(error, (AnabranchError, FileNotFoundError)):
        return error
    text = f"{where}: {error.strerror or error}"
    if error.errno in _NEEDS_RESOURCES:
        return ResourceError(text, _NEEDS_RESOURCES[error.errno])
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EEXIST):
        return ResourceError(text, "Something else is in the way; choose another folder or move it.")
    return TemporaryError(text, "Check the disk or mount, then run the same command again.")


@contextlib.contextmanager
def translated(where: str) -> Iterator[None]:
    """Raise what `translate` makes of an operating system error."""
    try:
        yield
    except OSError as error:
        replacement = translate(error, where)
        if replacement is error:
            raise
        raise replacement from error


def write_fully(descriptor: int, view: memoryview) -> None:
    """Write all bytes, whatever a single call takes."""
    done = 0
    while done < len(view):
        done += os.write(descriptor, view[done : done + MAX_CALL_BYTES])


def make_folder(path: str) -> None:
    """Like os.makedirs, with every new entry made durable."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_folder(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    if not os.path.isdir(path):
        raise NotADirectoryError(errno.ENOTDIR, "exists and is not a folder", path)
    sync_folder(parent)


def sync_folder(path: str) -> None:
    """Make renames and links in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
