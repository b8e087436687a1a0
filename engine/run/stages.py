"""What a whole command did one after the other: start, survey, merge, commit; together they are its time."""

from __future__ import annotations

import time

from .meter import Meter, Stage
from .protocols import Progress
from .work import Step


class Stages:
    """Passes progress on, and tells the meter how long each stage took.

    Args:
        progress: who else wants to know.
        meter: gets the stages.
        began: when the first one began, on the clock of `time.perf_counter`.
    """

    def __init__(self, progress: Progress, meter: Meter, began: float) -> None:
        self._progress = progress
        self._meter = meter
        self._stage: Stage = "start"
        self._began = began

    def phase(self, name: Step, total_bytes: int, done_bytes: int) -> None:
        self._enter(name)
        self._progress.phase(name, total_bytes, done_bytes)

    def shard_done(self, shard: int) -> None:
        self._progress.shard_done(shard)

    def note(self, text: str) -> None:
        self._progress.note(text)

    def finish(self) -> None:
        """The last stage ends now."""
        self._enter(self._stage)

    def _enter(self, stage: Stage) -> None:
        now = time.perf_counter()
        self._meter.add_stage(self._stage, self._began, now)
        self._stage, self._began = stage, now
