"""Files of a local (or mounted) folder: positioned reads, and writes that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping

from ..errors import InputError, ResourceError
from .local_files import (
    FILE_MODE,
    MAX_CALL_BYTES,
    absolute_path,
    create_file,
    make_folder,
    sync_folder,
    translate,
    translated,
    unlink,
    write_fully,
)
from .local_writer import LocalWriter
from .protocol import DEFAULT_READ_LIMIT_BYTES, TEMPORARY_PREFIX, TEMPORARY_SUFFIX, FileInfo, Leftover, check_name

__all__ = ["LocalStore", "LocalWriter", "translate"]

READ_AHEAD_BYTES = 16 << 20
"""How far ahead of a read the disk is asked to work. Several threads read one file in turns, each through a descriptor
of its own, so none of them looks sequential to the kernel. Measured from 4 to 64 MiB: all of them better than nothing,
none clearly better than another."""
LEAST_STREAMED_BYTES = 256 << 10
"""Smaller reads say nothing about what comes next: they are headers, which a plan reads alone, and single rows. The
kernel's own reading ahead covers small tensors that lie side by side."""
MAX_IDLE_FILES = 64
"""Open files kept for the next read; far below the usual limit of 1024 descriptors per process."""

_TEMPORARY = re.compile(
    re.escape(TEMPORARY_PREFIX) + r"(?P<name>.+)-[A-Za-z0-9_]+\.[0-9a-f]{8}" + re.escape(TEMPORARY_SUFFIX)
)

_PROBE = "probe"
"""Of an empty temporary file that shows whether the folder can be written."""

_NO_HARD_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class LocalStore:
    """A folder of the file system."""

    def __init__(self, path: str, *, create: bool = False) -> None:
        self._root = absolute_path(os.path.expanduser(path))
        self._files = _OpenFiles()
        if create:
            with translated(self._root):
                make_folder(self._root)
                probe = self._temporary(_PROBE, "probe")
                os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
                unlink(probe)

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
            return _file_info(os.stat(path), path)

    def list(self, folder: str = "") -> list[str]:
        """See `Store.list`; all but folders count, so that a broken link is seen and not skipped."""
        path = self.path(folder) if folder else self._root
        try:
            with translated(path), os.scandir(path) as entries:
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
                descriptor, _ = _open_for_reading(path)
                try:
                    _read_fully(descriptor, offset, into, path)
                finally:
                    os.close(descriptor)
                return
            with self._files.borrow(path, version) as descriptor:
                if into.nbytes >= LEAST_STREAMED_BYTES:
                    os.posix_fadvise(descriptor, offset + READ_AHEAD_BYTES, into.nbytes, os.POSIX_FADV_WILLNEED)
                _read_fully(descriptor, offset, into, path)
                _check_version(_file_info(os.fstat(descriptor), path), version, path)

    def read_bytes(self, name: str, limit_bytes: int = DEFAULT_READ_LIMIT_BYTES) -> bytes:
        """See `Store.read_bytes`."""
        path = self.path(name)
        with translated(path):
            descriptor, info = _open_for_reading(path)
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
        path = self.path(name)
        with translated(path):
            temporary = self._write_temporary(name, data)
            try:
                return _link_or_move(temporary, path)
            finally:
                unlink(temporary)
                sync_folder(os.path.dirname(path))

    def replace(self, name: str, data: bytes) -> None:
        """See `Store.replace`."""
        path = self.path(name)
        with translated(path):
            temporary = self._write_temporary(name, data)
            try:
                os.replace(temporary, path)
            except BaseException:
                unlink(temporary)
                raise
            sync_folder(os.path.dirname(path))

    def writer(self, name: str, size: int, attributes: Mapping[str, str], run_id: str) -> LocalWriter:
        """See `Store.writer`; the temporary file lies beside the final one, and attributes are not kept."""
        del attributes
        path = self.path(name)
        assert re.fullmatch(r"[A-Za-z0-9_]+", run_id), f"bad run id {run_id!r}"
        with translated(path):
            return LocalWriter(path, self._temporary(name, run_id), size)

    def attributes(self, name: str) -> Mapping[str, str] | None:
        """None: receipts say what local files are."""
        del name
        return None

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        path = self.path(name)
        self._check_inside(name)
        with translated(path):
            unlink(path)

    def leftovers(self, names: Collection[str], older_than_seconds: float = 0.0) -> tuple[Leftover, ...]:
        """See `Store.leftovers`: temporary files of these names, and probes that a kill left."""
        wanted = {*map(check_name, names), _PROBE}
        found = []
        for folder in sorted({os.path.dirname(name) for name in wanted}):
            self._check_inside(os.path.join(folder, _PROBE))
            path = os.path.join(self._root, folder)
            with contextlib.suppress(FileNotFoundError), translated(path), os.scandir(path) as entries:
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

    def _check_inside(self, name: str) -> None:
        """ResourceError where a folder between this one and a file is a link, which would lead what is written away."""
        place = self._root
        for part in name.split("/")[:-1]:
            place = os.path.join(place, part)
            if os.path.islink(place):
                raise ResourceError(
                    f"{place} is a symbolic link, so what is written or removed there would lie elsewhere",
                    "Remove the link; a folder is made in its place.",
                )

    def _temporary(self, name: str, run_id: str) -> str:
        """A fresh path: twins of one run, and a retry after a kill, never share a temporary file."""
        self._check_inside(name)
        folder, base = os.path.split(self.path(name))
        token = secrets.token_hex(4)
        return os.path.join(folder, f"{TEMPORARY_PREFIX}{base}-{run_id}.{token}{TEMPORARY_SUFFIX}")

    def _write_temporary(self, name: str, data: bytes) -> str:
        """Write and sync a temporary file beside `name`; returns its path."""
        path = self._temporary(name, "small")
        descriptor = create_file(path)
        try:
            write_fully(descriptor, memoryview(data))
            os.fsync(descriptor)
        except BaseException:
            unlink(path)
            raise
        finally:
            os.close(descriptor)
        return path


class _OpenFiles:
    """Open descriptors by path, so that thousands of positioned reads of a shard open it once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: OrderedDict[tuple[str, str], list[int]] = OrderedDict()
        self._idle_count = 0

    @contextlib.contextmanager
    def borrow(self, path: str, version: str) -> Iterator[int]:
        """A descriptor of the file in exactly this version, for one thread at a time."""
        key = (path, version)
        with self._lock:
            descriptors = self._idle.get(key)
            descriptor = descriptors.pop() if descriptors else None
            if descriptor is not None:
                self._idle_count -= 1
                if not descriptors:
                    del self._idle[key]
        if descriptor is None:
            descriptor, info = _open_for_reading(path)
            try:
                _check_version(info, version, path)
            except BaseException:
                os.close(descriptor)
                raise
        try:
            yield descriptor
        except BaseException:
            os.close(descriptor)
            raise
        self._give_back(key, descriptor)

    def _give_back(self, key: tuple[str, str], descriptor: int) -> None:
        surplus = None
        with self._lock:
            self._idle.setdefault(key, []).append(descriptor)
            self._idle.move_to_end(key)
            self._idle_count += 1
            if self._idle_count > MAX_IDLE_FILES:
                oldest, descriptors = next(iter(self._idle.items()))
                surplus = descriptors.pop()
                self._idle_count -= 1
                if not descriptors:
                    del self._idle[oldest]
        if surplus is not None:
            os.close(surplus)

    def __del__(self) -> None:
        for descriptors in self._idle.values():
            for descriptor in descriptors:
                os.close(descriptor)


def _open_for_reading(path: str) -> tuple[int, FileInfo]:
    # O_NONBLOCK: opening a named pipe must not wait for a writer; regular files ignore it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
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


def _check_version(info: FileInfo, version: str, path: str) -> None:
    if info.version != version:
        raise InputError(
            f"{path}: changed while in use (modification time and size {info.version}, expected {version})",
            "Restore the file, or start a new output from the changed inputs.",
        )


def _read_fully(descriptor: int, offset: int, into: memoryview, path: str) -> None:
    view = into.cast("B")
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done : done + MAX_CALL_BYTES]], offset + done)
        if count == 0:
            size = os.fstat(descriptor).st_size
            raise InputError(f"{path}: ends at byte {size}, expected {offset + len(view)} bytes")
        done += count


def _link_or_move(temporary: str, path: str) -> bool:
    """Give a complete file its name unless something has it; True when this call did.

    A few file systems know no hard links. There two different plans that race for one name may both get it,
    and the later one wins; everything written later depends on the plan alone and checks it again.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if os.path.lexists(path):
            return False
        os.replace(temporary, path)
    return True


def _leftover(entry: os.DirEntry[str], name: str, folder: str) -> Leftover | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    age_seconds = max(0.0, time.time() - status.st_mtime)
    return Leftover(name, os.path.join(folder, entry.name), age_seconds, status.st_size)
