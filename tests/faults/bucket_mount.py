"""A FUSE file system that takes files as mounts of buckets do: written once from the start, never renamed."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import mfusepy


class BucketMount(mfusepy.Operations):
    """A folder, less what `without` names: overwrite, fsync, rename, unlink."""

    use_ns = True

    def __init__(self, folder: str, without: set[str]) -> None:
        self.folder = folder
        self.without = without

    def _refuse(self, what: str, number: int) -> None:
        if what in self.without:
            raise mfusepy.FuseOSError(number)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.lstat(self.folder + path)
        times = {f"st_{kind}time": getattr(status, f"st_{kind}time_ns") for kind in "amc"}
        names = ("mode", "nlink", "size", "uid", "gid", "ino")
        return times | {f"st_{name}": getattr(status, f"st_{name}") for name in names}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self.folder + path)]

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self.folder + path, mode)
        return 0

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self.folder + path, os.O_RDWR | os.O_CREAT, mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(self.folder + path, flags & ~os.O_DIRECT)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if offset != os.fstat(fh).st_size:
            self._refuse("overwrite", errno.EINVAL)
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self.folder + path, length)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._refuse("fsync", errno.EOPNOTSUPP)
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def rename(self, old: str, new: str) -> int:
        self._refuse("rename", errno.ENOSYS)
        os.rename(self.folder + old, self.folder + new)
        return 0

    def unlink(self, path: str) -> int:
        self._refuse("unlink", errno.EPERM)
        os.unlink(self.folder + path)
        return 0


if __name__ == "__main__":
    folder, place, source, kind, *missing = sys.argv[1:]
    mfusepy.FUSE(BucketMount(folder, {*missing}), place, foreground=True, nothreads=True, fsname=source, subtype=kind)
