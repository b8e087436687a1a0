"""Where the time goes: seconds and bytes per phase, added up over all threads of a process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from .lanes import Lanes

Phase = Literal["check", "read", "fold", "hash", "write", "publish", "wait"]
Stage = Literal["start", "survey", "check", "merge", "commit"]
PHASES: tuple[Phase, ...] = ("check", "read", "fold", "hash", "write", "publish", "wait")


@dataclass(frozen=True, slots=True)
class Span:
    """One stretch of work of one thread, for a trace."""

    phase: Phase | Stage
    thread: str
    begin_seconds: float
    end_seconds: float
    bytes: int


@dataclass(slots=True)
class Usage:
    """What one phase used."""

    seconds: float = 0.0
    bytes: int = 0
    calls: int = 0


@dataclass
class Meter:
    """Adds up what threads report.

    Args:
        keep_spans: also remember every stretch of work, for `--profile`.
        lanes: get who worked at what and when, for `--report`.
    """

    keep_spans: bool = False
    lanes: Lanes | None = None
    usage: dict[Phase, Usage] = field(default_factory=lambda: {phase: Usage() for phase in PHASES})
    folded_elsewhere_bytes: int = 0
    """By other processes, in work of which `usage` is not told before it is done."""
    stages: dict[Stage, float] = field(default_factory=dict)
    """Seconds of what the whole run did one after the other."""
    spans: list[Span] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def measure(self, phase: Phase, size_bytes: int = 0) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add(phase, begin, time.perf_counter(), size_bytes)

    def add_stage(self, stage: Stage, begin: float, end: float) -> None:
        """A stage of the whole run; one that comes again is added up."""
        with self._lock:
            self.stages[stage] = self.stages.get(stage, 0.0) + end - begin
            if self.keep_spans:
                self.spans.append(Span(stage, "stages", begin, end, 0))

    def add(self, phase: Phase, begin: float, end: float, size_bytes: int = 0) -> None:
        with self._lock:
            usage = self.usage[phase]
            usage.seconds += end - begin
            usage.bytes += size_bytes
            usage.calls += 1
            if self.keep_spans:
                self.spans.append(Span(phase, threading.current_thread().name, begin, end, size_bytes))
        if self.lanes is not None:
            self.lanes.add(threading.current_thread().name, phase, begin, end, size_bytes)
