"""Local files that stay open between reads."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

from ..errors import InputError
from .protocol import FileInfo

MAX_IDLE_FILES = 64
"""Open files kept for the next read; far below the usual limit of 1024 descriptors per process."""


class OpenFiles:
    """Open descriptors by path, so that thousands of positioned reads of a shard open it once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: OrderedDict[tuple[str, str], list[int]] = OrderedDict()
        self._idle_count = 0

    @contextlib.contextmanager
    def borrow(self, path: str, version: str, open_file: Callable[[], tuple[int, FileInfo]]) -> Iterator[int]:
        """A descriptor of the file in exactly this version, for one thread at a time; `open_file` makes another."""
        key = (path, version)
        with self._lock:
            descriptors = self._idle.get(key)
            descriptor = descriptors.pop() if descriptors else None
            if descriptor is not None:
                self._idle_count -= 1
                if not descriptors:
                    del self._idle[key]
        if descriptor is None:
            descriptor, info = open_file()
            try:
                check_version(info, version, path)
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


def check_version(info: FileInfo, version: str, path: str) -> None:
    """InputError where a file is not in the version that was asked for."""
    if info.version != version:
        raise InputError(
            f"{path}: changed while in use (modification time and size {info.version}, expected {version})",
            "Restore the file, or start a new output from the changed inputs.",
        )
