"""How far a merge is, on a terminal: a bar with throughput and time left. Only there is the library for it loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from .progress_lines import BytesDone, Counter, shard_name


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
        text = f"{self._counter.name} ({shard_name(self._shards, shard)} done)"
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
