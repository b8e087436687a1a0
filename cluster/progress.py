"""How far a merge is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..engine.run import Meter, Silent
from .progress_lines import BytesDone, LineProgress

if TYPE_CHECKING:
    from .progress_bar import BarProgress


class Tally:
    """Bytes that several threads add up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = 0

    def add(self, size_bytes: int) -> None:
        with self._lock:
            self._bytes += size_bytes

    def read(self) -> int:
        return self._bytes


@contextmanager
def open_progress(
    bytes_done: BytesDone, silent: bool, shards: Sequence[str] = ()
) -> Iterator[LineProgress | BarProgress | Silent]:
    """The progress that fits where standard error goes.

    Args:
        bytes_done: the count that the working threads keep.
        silent: show nothing.
        shards: names of the output's shards, where the progress is about shards.
    """
    if silent:
        yield Silent()
    elif sys.stderr.isatty():
        from rich.console import Console

        from .progress_bar import BarProgress

        with BarProgress(bytes_done, shards, Console(stderr=True)) as bar:
            yield bar
    else:
        with LineProgress(bytes_done, shards, sys.stderr) as lines:
            yield lines


def folded_bytes(meter: Meter) -> BytesDone:
    """The count for merges and surveys: bytes of inputs that fold threads have looked at, and of shards read again."""
    return lambda: meter.usage["fold"].bytes + meter.usage["check"].bytes + meter.folded_elsewhere_bytes
