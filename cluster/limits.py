"""How often, how long: every number that tunes the scheduler, and the deadlines that follow from them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median
from zlib import crc32


@dataclass(frozen=True, slots=True)
class Limits:
    """Every number that tunes the scheduler."""

    attempts: int = 8
    """Failed runs (lost, hung, temporary error) of one task before all ends with exit 75. Their backoffs
    outlast an outage of five minutes; where 3 of 10 runs are lost, 1 task in 15,000 needs more."""
    resource_attempts: int = 2
    """Of those, failures for lack of disk, memory or permission: the second is not one bad worker."""
    backoff_seconds: float = 5.0
    """Wait after a task's first temporary failure; doubles each time. The stores have retried before that."""
    backoff_cap_seconds: float = 300.0
    twin_factor: float = 1.5
    """A run that takes this many times the expected time is late: an idle worker may start a twin."""
    hang_factor: float = 4.0
    """At this many times the late mark the run is given up and its worker stopped. Doubles each time that
    happens to a task: a store that became slow everywhere must not use up the attempts."""
    deadline_floor_seconds: float = 10.0
    """Nothing is late before this, and running tasks are looked at this often."""
    deadline_cap_seconds: float = 3600.0
    assumed_bytes_per_second: float = 10e6
    """What a worker is expected to do until tasks have finished; so slow that nobody is late by mistake."""
    no_worker_seconds: float = 600.0
    """Time without any worker before the run ends with exit 75."""

    def wait_seconds(self, failures: int, seed: str) -> float:
        """Backoff: doubles up to a cap, less up to half by the seed: tasks must not come back together."""
        whole = min(self.backoff_seconds * 2.0 ** min(failures - 1, 30), self.backoff_cap_seconds)
        return whole * (0.5 + 0.5 * crc32(f"{seed}/{failures}".encode()) / 2**32)


class Pace:
    """Deadlines from what finished runs took.

    Args:
        limits: see Limits.
        largest_bytes: size of the largest task. Tasks under an eighth of it measure latency, not throughput.
    """

    RECENT_RUNS = 63  # the median of these follows a store that becomes slower within a round or two

    def __init__(self, limits: Limits, largest_bytes: int) -> None:
        self._limits = limits
        self._sample_bytes = largest_bytes // 8
        self._recent: deque[float] = deque(maxlen=self.RECENT_RUNS)
        self._bytes_per_second = limits.assumed_bytes_per_second

    def learn(self, size_bytes: int, seconds: float) -> None:
        """Take a finished run into account."""
        if seconds > 0 and size_bytes >= self._sample_bytes:
            self._recent.append(size_bytes / seconds)
            self._bytes_per_second = max(median(self._recent), 1.0)

    def late_seconds(self, size_bytes: int) -> float:
        """Age at which a run of that size deserves a twin."""
        late = self._limits.twin_factor * size_bytes / self._bytes_per_second
        return min(max(late, self._limits.deadline_floor_seconds), self._limits.deadline_cap_seconds)

    def hung_seconds(self, size_bytes: int, timeouts: int) -> float:
        """Age at which it is given up, after the same task was given up `timeouts` times before."""
        late = self.late_seconds(size_bytes) * 2.0 ** min(timeouts, 30)
        return min(late, self._limits.deadline_cap_seconds) * self._limits.hang_factor
