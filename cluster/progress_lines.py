"""How far a merge is, without a terminal: plain lines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Self, TextIO

from rich.filesize import decimal

from ..engine.run import duration

LINE_SECONDS = 5.0
"""Between two lines where there is no terminal."""
BytesDone = Callable[[], int]
"""Bytes that all threads together have worked through so far; asked for a few times per second."""


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
        self._write(f"{self._counter.name} {shard_name(self._shards, shard)} done{self._state()}")

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


def shard_name(shards: Sequence[str], shard: int) -> str:
    """What a shard is called, or which part it is where shards have no names."""
    return shards[shard] if shards else f"part {shard + 1}"
