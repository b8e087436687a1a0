"""Files of a local (or mounted) folder: positioned reads, and writes that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterator, Mapping

from ..errors import InputError
from .local_files import MAX_CALL_BYTES, absolute_path, make_folder, translate, translated, write_fully
from .local_folders import NEW_FILE, open_below, opened_folder, status_below, unlink_below
from .local_open_files import OpenFiles, check_version
from .local_probe import probe_folder
from .local_ranges import RULES, LocalRange, complete_file
from .local_writer import LocalWriter
from .protocol import (
    DEFAULT_READ_LIMIT_BYTES,
    TEMPORARY_PREFIX,
    TEMPORARY_SUFFIX,
    FileInfo,
    Leftover,
    RangeRules,
    check_name,
)

__all__ = ["LocalStore", "LocalWriter", "translate"]

READ_AHEAD_BYTES = 16 << 20
"""How far ahead of a read the disk is asked to work. Several threads read one file in turns, each through a descriptor
of its own, so none of them looks sequential to the kernel. Measured from 4 to 64 MiB: all of them better than nothing,
none clearly better than another."""
LEAST_STREAMED_BYTES = 256 << 10
"""Smaller reads say nothing about what comes next: they are headers, which a plan reads alone, and single rows. The
kernel's own reading ahead covers small tensors that lie side by side."""

_TEMPORARY = re.compile(
    re.escape(TEMPORARY_PREFIX) + r"(?P<name>.+)-[A-Za-z0-9_]+\.[0-9a-f]{8}" + re.escape(TEMPORARY_SUFFIX)
)

_PROBE = "probe"
"""Of a temporary file that shows whether the folder can hold an output."""

READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""Opening a named pipe must not wait for a writer; regular files ignore it."""
_NO_HARD_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class LocalStore:
    """A folder of the file system.

    Args:
        path: the folder.
        create: make it when it is missing.
        own: it is an output, so no link below it is followed, for reading either. What is written or removed never goes
            through a link, whosever folder it is: a link to a folder is refused, one to a file is replaced.
    """

    takes_ranges = True

    def __init__(self, path: str, *, create: bool = False, own: bool = False) -> None:
        self._root = absolute_path(os.path.expanduser(path))
        self._own = own
        self._files = OpenFiles()
        if create:
            probes = [os.path.join(self._root, _temporary(_PROBE, "probe")) for _ in range(2)]
            with translated(self._root):
                make_folder(self._root)
                probe_folder(self._root, *probes)

    def __repr__(self) -> str:
        return f"LocalStore({self._root!r})"

    @property
    def url(self) -> str:
        """The absolute path."""
        return self._root

    def path(self, name: str) -> str:
        """Absolute path of a file."""
        return os.path.join(self._root, check_name(name))

    def info(self, name: str) -> FileInfo:
        """See `Store.info`."""
        path = self.path(name)
        with translated(path):
            if not self._own:
                return _file_info(os.stat(path), path)
            with self._folder(name) as (folder, base):
                return _file_info(status_below(folder, base, path), path)

    def list(self, folder: str = "") -> list[str]:
        """See `Store.list`; all but folders count, so that a broken link is seen and not skipped."""
        path = self.path(folder) if folder else self._root
        try:
            with translated(path), self._listed(folder) as place, os.scandir(place) as entries:
                names = [entry.name for entry in entries if not entry.is_dir()]
        except FileNotFoundError:
            return []
        prefix = f"{folder}/" if folder else ""
        return sorted(prefix + name for name in names if not _TEMPORARY.fullmatch(name))

    def read_into(self, name: str, offset: int, into: memoryview, version: str | None = None) -> None:
        """See `Store.read_into`.

        A file of a given version stays open for the next read, and where a read is large, one of a stream, the disk is
        asked for what comes later in the file.
        """
        path = self.path(name)
        with translated(path):
            if version is None:
                descriptor, _ = self._open(name)
                try:
                    _read_fully(descriptor, offset, into, path)
                finally:
                    os.close(descriptor)
                return
            with self._files.borrow(path, version, lambda: self._open(name)) as descriptor:
                if into.nbytes >= LEAST_STREAMED_BYTES:
                    os.posix_fadvise(descriptor, offset + READ_AHEAD_BYTES, into.nbytes, os.POSIX_FADV_WILLNEED)
                _read_fully(descriptor, offset, into, path)
                check_version(_file_info(os.fstat(descriptor), path), version, path)

    def read_bytes(self, name: str, limit_bytes: int = DEFAULT_READ_LIMIT_BYTES) -> bytes:
        """See `Store.read_bytes`."""
        path = self.path(name)
        with translated(path):
            descriptor, info = self._open(name)
            try:
                if info.size > limit_bytes:
                    raise InputError(f"{path}: {info.size} bytes, expected at most {limit_bytes}")
                data = bytearray(info.size)
                _read_fully(descriptor, 0, memoryview(data), path)
                return bytes(data)
            finally:
                os.close(descriptor)

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`: a link to a complete temporary file, O_EXCL alone could leave half a file."""
        with translated(self.path(name)), self._folder(name, make=True) as (folder, base):
            temporary = _write_temporary(folder, base, data)
            try:
                return _link_or_move(folder, temporary, base)
            finally:
                unlink_below(folder, temporary)
                os.fsync(folder)

    def replace(self, name: str, data: bytes) -> None:
        """See `Store.replace`."""
        with translated(self.path(name)), self._folder(name, make=True) as (folder, base):
            temporary = _write_temporary(folder, base, data)
            try:
                os.replace(temporary, base, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                unlink_below(folder, temporary)
                raise
            os.fsync(folder)

    def writer(self, name: str, size: int, attributes: Mapping[str, str], run_id: str) -> LocalWriter:
        """See `Store.writer`; the temporary file lies beside the final one, and attributes are not kept."""
        del attributes
        path = self.path(name)
        assert re.fullmatch(r"[A-Za-z0-9_]+", run_id), f"bad run id {run_id!r}"
        with translated(path):
            return LocalWriter(self._root, name, _temporary(os.path.basename(name), run_id), size)

    def range_rules(self, size: int) -> RangeRules:
        """See `PartedStore.range_rules`."""
        del size
        return RULES

    def begin(self, name: str, size: int, attributes: Mapping[str, str], run_id: str) -> str:
        """See `PartedStore.begin`: an empty temporary file."""
        del size, attributes
        with translated(self.path(name)), self._folder(name, make=True) as (folder, base):
            temporary = _temporary(base, run_id)
            os.close(open_below(folder, temporary, NEW_FILE, temporary))
            return temporary

    def range_writer(self, name: str, token: str, begin: int, end: int, size: int) -> LocalRange:
        """See `PartedStore.range_writer`."""
        del size
        with translated(self.path(name)):
            return LocalRange(self._root, name, token, begin, end - begin)

    def complete(self, name: str, token: str, size: int, attributes: Mapping[str, str]) -> None:
        """See `PartedStore.complete`."""
        del attributes
        complete_file(self._root, check_name(name), token, size)

    def give_up(self, name: str, token: str) -> None:
        """See `PartedStore.give_up`."""
        self.delete(os.path.join(os.path.dirname(name), token))

    def attributes(self, name: str) -> Mapping[str, str] | None:
        """None: receipts say what local files are."""
        del name
        return None

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        path = self.path(name)
        with translated(path), contextlib.suppress(FileNotFoundError), self._folder(name) as (folder, base):
            unlink_below(folder, base)

    def leftovers(self, names: Collection[str], older_than_seconds: float = 0.0) -> tuple[Leftover, ...]:
        """See `Store.leftovers`: temporary files of these names, and probes that a kill left."""
        wanted = {*map(check_name, names), _PROBE}
        found = []
        for folder in sorted({os.path.dirname(name) for name in wanted}):
            with contextlib.suppress(FileNotFoundError), self._entries(folder) as entries:
                found += [
                    leftover
                    for entry in entries
                    if (match := _TEMPORARY.fullmatch(entry.name))
                    and (name := os.path.join(folder, match["name"])) in wanted
                    and (leftover := _leftover(entry, name, folder)) is not None
                    and leftover.age_seconds >= older_than_seconds
                ]
        return tuple(sorted(found))

    def delete_leftover(self, leftover: Leftover) -> None:
        """See `Store.delete_leftover`."""
        if not _TEMPORARY.fullmatch(os.path.basename(leftover.token)):
            raise InputError(f"{leftover.token!r} is no temporary file of ours, so it is not removed")
        self.delete(leftover.token)

    def free_bytes(self) -> int | None:
        """Free space of the file system that holds the folder, or will hold it."""
        path = self._root
        while not os.path.exists(path):
            path = os.path.dirname(path)
        with translated(path):
            return shutil.disk_usage(path).free

    @contextlib.contextmanager
    def _folder(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """(a descriptor of the folder of a file, the file's name in it), reached through no link."""
        inner, base = os.path.split(name)
        with opened_folder(self._root, inner, make=make) as folder:
            yield folder, base

    @contextlib.contextmanager
    def _listed(self, inner: str) -> Iterator[int | str]:
        """A folder to be listed."""
        if not self._own:
            yield os.path.join(self._root, inner)
            return
        with opened_folder(self._root, inner) as folder:
            yield folder

    @contextlib.contextmanager
    def _entries(self, inner: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        """What lies in a folder from which something may be removed."""
        with (
            translated(os.path.join(self._root, inner)),
            opened_folder(self._root, inner) as folder,
            os.scandir(folder) as entries,
        ):
            yield entries

    def _open(self, name: str) -> tuple[int, FileInfo]:
        """A descriptor to read a file, and what it is."""
        path = self.path(name)
        if not self._own:
            return _described(os.open(path, READING), path)
        with self._folder(name) as (folder, base):
            return _described(open_below(folder, base, READING, path), path)


def _temporary(base: str, run_id: str) -> str:
    """A fresh name: twins of one run, and a retry after a kill, never share a temporary file."""
    return f"{TEMPORARY_PREFIX}{base}-{run_id}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"


def _write_temporary(folder: int, base: str, data: bytes) -> str:
    """Write and sync a temporary file for a file of a folder; returns its name."""
    name = _temporary(base, "small")
    descriptor = open_below(folder, name, NEW_FILE, name)
    try:
        write_fully(descriptor, memoryview(data))
        os.fsync(descriptor)
    except BaseException:
        unlink_below(folder, name)
        raise
    finally:
        os.close(descriptor)
    return name


def _described(descriptor: int, path: str) -> tuple[int, FileInfo]:
    """The descriptor and what it is open to; closed where that is no regular file."""
    try:
        return descriptor, _file_info(os.fstat(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise


def _file_info(status: os.stat_result, path: str) -> FileInfo:
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: expected a regular file, found a folder, device or pipe")
    version = f"{status.st_mtime_ns}-{status.st_size}"
    return FileInfo(status.st_size, version, status.st_ino, status.st_ctime_ns)


def _read_fully(descriptor: int, offset: int, into: memoryview, path: str) -> None:
    view = into.cast("B")
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done : done + MAX_CALL_BYTES]], offset + done)
        if count == 0:
            size = os.fstat(descriptor).st_size
            raise InputError(f"{path}: ends at byte {size}, expected {offset + len(view)} bytes")
        done += count


def _link_or_move(folder: int, temporary: str, base: str) -> bool:
    """Give a complete file its name unless something has it; True when this call did.

    A few file systems know no hard links. There two different plans that race for one name may both get it,
    and the later one wins; everything written later depends on the plan alone and checks it again.
    """
    try:
        os.link(temporary, base, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if base in os.listdir(folder):
            return False
        os.replace(temporary, base, src_dir_fd=folder, dst_dir_fd=folder)
    return True


def _leftover(entry: os.DirEntry[str], name: str, folder: str) -> Leftover | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    age_seconds = max(0.0, time.time() - status.st_mtime)
    return Leftover(name, os.path.join(folder, entry.name), age_seconds, status.st_size)
