"""Who worked at what and when, in a bounded number of stretches: what a picture of a run has room for."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass, field

MOST_STRETCHES = 3000
FIRST_GAP_SECONDS = 0.01
"""Stretches that lie closer together are one; twice as much whenever there are too many."""


@dataclass(slots=True)
class Stretch:
    """One worker or thread at one kind of work, with pauses that are too short to be seen."""

    who: str
    what: str
    begin_seconds: float
    end_seconds: float
    busy_seconds: float
    bytes: int


@dataclass
class Lanes:
    """Stretches of a run; any thread may add to them."""

    stretches: list[Stretch] = field(default_factory=list)
    _gap: float = FIRST_GAP_SECONDS
    _last: dict[Hashable, Stretch] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, who: str, what: str, begin: float, end: float, size_bytes: int = 0) -> None:
        """Times are those of `time.perf_counter`, and come in order for each `who` and `what`."""
        with self._lock:
            self._add(Stretch(who, what, begin, end, end - begin, size_bytes))
            while len(self.stretches) > MOST_STRETCHES:
                self._gap *= 2
                before, self.stretches, self._last = self.stretches, [], {}
                for stretch in before:
                    self._add(stretch)

    def _add(self, new: Stretch) -> None:
        last = self._last.get((new.who, new.what))
        if last is None or new.begin_seconds - last.end_seconds > self._gap:
            self._last[new.who, new.what] = new
            self.stretches.append(new)
            return
        last.end_seconds = max(last.end_seconds, new.end_seconds)
        last.busy_seconds += new.busy_seconds
        last.bytes += new.bytes
