"""Folders below a root, opened step by step: no link below the root is ever followed, whenever it was put there.

Whoever looks at a path first and opens it afterwards can be led astray by somebody who puts a link there in between.
Here every part is opened from the folder before it, and whatever is done to a file is done relative to what was opened.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from ..errors import ResourceError
from .local_files import FILE_MODE, make_folder

NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_IS_LINK = {errno.ELOOP, errno.ENOTDIR, errno.EMLINK}
"""What opening a link without following it ends with, by kind of file system and of what is opened."""


@contextlib.contextmanager
def opened_folder(root: str, inner: str, *, make: bool = False) -> Iterator[int]:
    """A descriptor of the folder `inner` of `root`, for the time of the context.

    Args:
        root: an absolute path; it may be or contain links, as whoever named it is trusted.
        inner: relative to it, with "/" between parts; empty for the root itself.
        make: make what is missing, durably.

    Raises:
        FileNotFoundError: a part is missing.
        ResourceError: a part below the root is a link.
    """
    if make:
        make_folder(root)
    descriptor, place = os.open(root, _FOLDER), root
    try:
        for part in inner.split("/") if inner else ():
            place = os.path.join(place, part)
            inside = _open_part(descriptor, part, place, make)
            os.close(descriptor)
            descriptor = inside
        yield descriptor
    finally:
        os.close(descriptor)


def _open_part(folder: int, part: str, place: str, make: bool) -> int:
    try:
        return open_below(folder, part, _FOLDER, place)
    except FileNotFoundError:
        if not make:
            raise
    with contextlib.suppress(FileExistsError):
        os.mkdir(part, dir_fd=folder)
    os.fsync(folder)
    return open_below(folder, part, _FOLDER, place)


def open_below(folder: int, name: str, flags: int, path: str) -> int:
    """Open a file or folder directly in an opened folder; `path` is what messages call it.

    Raises:
        ResourceError: it is a link.
    """
    try:
        return os.open(name, flags | os.O_NOFOLLOW, FILE_MODE, dir_fd=folder)
    except OSError as error:
        if error.errno in _IS_LINK:
            with contextlib.suppress(FileNotFoundError):
                status_below(folder, name, path)
        raise


def status_below(folder: int, name: str, path: str) -> os.stat_result:
    """As `os.stat`, of a file directly in an opened folder.

    Raises:
        ResourceError: it is a link.
    """
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        raise ResourceError(
            f"{path} is a symbolic link, so what is read, written or removed there would lie elsewhere",
            "Remove the link, or put in its place what it leads to; only the output's own folder may be a link.",
        )
    return status


def rename_below(folder: int, temporary: str, name: str) -> None:
    """Give a file its name, durably, whatever has it."""
    os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def unlink_below(folder: int, name: str) -> None:
    """Remove a file, or a link and not what it leads to; absent is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
