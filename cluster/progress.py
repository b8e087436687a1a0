"""How far a merge is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self, TextIO

from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ..engine.run import Meter, Silent, duration

LINE_SECONDS = 5.0
"""Between two lines where there is no terminal."""


BytesDone = Callable[[], int]
"""Bytes that all threads together have worked through so far; asked for a few times per second."""


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


class Counter:
    """How far the current phase is.

    Args:
        bytes_done: the count that the working threads keep.
    """

    def __init__(self, bytes_done: BytesDone) -> None:
        self._bytes_done = bytes_done
        self._before = 0
        self.name = ""
        self.total = 0
        self.resumed = 0
        """Bytes that an earlier run had done."""
        self.began = time.monotonic()

    def start(self, name: str, total_bytes: int, done_bytes: int) -> None:
        self.name, self.total, self.resumed = name, total_bytes, done_bytes
        self._before = self._bytes_done()
        self.began = time.monotonic()

    @property
    def done(self) -> int:
        """Bytes done, at most the total: windows that overlap are read a little more than once."""
        return min(self.total, self.resumed + self._bytes_done() - self._before)

    @property
    def bytes_per_second(self) -> float:
        """Of this run."""
        return (self.done - self.resumed) / max(time.monotonic() - self.began, 1e-9)

    @property
    def remaining_seconds(self) -> float | None:
        speed = self.bytes_per_second
        return (self.total - self.done) / speed if speed > 0 else None


class LineProgress:
    """Plain lines: one per phase and finished shard, and one every few seconds between them.

    Args:
        bytes_done: the count that the working threads keep.
        shards: names of the output's shards, where the progress is about shards.
        stream: where the lines go.
        line_seconds: time between lines.
    """

    def __init__(
        self, bytes_done: BytesDone, shards: Sequence[str], stream: TextIO, line_seconds: float = LINE_SECONDS
    ) -> None:
        self._counter = Counter(bytes_done)
        self._shards = shards
        self._stream = stream
        self._line_seconds = line_seconds
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)

    def phase(self, name: str, total_bytes: int, done_bytes: int) -> None:
        self._counter.start(name, total_bytes, done_bytes)
        size = f" {decimal(total_bytes)}" if total_bytes else ""
        resumed = f", {decimal(done_bytes)} done before" if done_bytes else ""
        self._write(f"{name}{size}{resumed}")

    def shard_done(self, shard: int) -> None:
        self._write(f"{self._counter.name} {_shard_name(self._shards, shard)} done{self._state()}")

    def note(self, text: str) -> None:
        self._write(text)

    def _state(self) -> str:
        counter = self._counter
        if not counter.total:
            return ""
        remaining = counter.remaining_seconds
        left = f", {duration(remaining)} left" if remaining is not None and counter.done < counter.total else ""
        return (
            f": {counter.done / counter.total:.0%} of {decimal(counter.total)}, "
            f"{decimal(int(counter.bytes_per_second))}/s{left}"
        )

    def _tick(self) -> None:
        while not self._closed.wait(self._line_seconds):
            if self._counter.total:
                self._write(f"{self._counter.name}{self._state()}")

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()


class _MeterBar(Progress):
    """A bar that looks at the meter each time it is drawn."""

    counter: Counter | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.counter is not None and self.task_ids and self.counter.total:
            self.update(self.task_ids[-1], completed=self.counter.done)
        return super().get_renderables()


class BarProgress:
    """A bar with throughput and time left; finished phases stay above it."""

    def __init__(self, bytes_done: BytesDone, shards: Sequence[str], console: Console) -> None:
        self._counter = Counter(bytes_done)
        self._shards = shards
        self._bar = _MeterBar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
        )

    def phase(self, name: str, total_bytes: int, done_bytes: int) -> None:
        self._complete()
        self._counter.start(name, total_bytes, done_bytes)
        self._bar.counter = None
        self._bar.add_task(name, total=total_bytes or None, completed=done_bytes)
        self._bar.counter = self._counter

    def shard_done(self, shard: int) -> None:
        text = f"{self._counter.name} ({_shard_name(self._shards, shard)} done)"
        self._bar.update(self._bar.task_ids[-1], description=text)

    def note(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def _complete(self) -> None:
        """Show the last phase as finished: skipped tensors must not leave its bar short of the end."""
        if self._bar.task_ids:
            self._bar.update(self._bar.task_ids[-1], description=self._counter.name, completed=self._counter.total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._complete()
        self._bar.counter = None
        self._bar.stop()


def _shard_name(shards: Sequence[str], shard: int) -> str:
    return shards[shard] if shards else f"part {shard + 1}"


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
        with BarProgress(bytes_done, shards, Console(stderr=True)) as bar:
            yield bar
    else:
        with LineProgress(bytes_done, shards, sys.stderr) as lines:
            yield lines


def folded_bytes(meter: Meter) -> BytesDone:
    """The count for merges and surveys: bytes of inputs that fold threads have looked at, and of shards read again."""
    return lambda: meter.usage["fold"].bytes + meter.usage["check"].bytes
