"""How often, how long: every number that tunes the scheduler, and the deadlines that follow from them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf
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
    backoff_seconds: float = 1.0
    """Wait after a task's first temporary failure: short, as the stores have retried before, and all wait for the last
    task of a run."""
    backoff_growth: float = 3.0
    """So many times longer after each further one."""
    backoff_cap_seconds: float = 300.0
    late_factor: float = 1.1
    """A run that takes (or by its progress will take) this many times the expected time is late: a worker that
    has nothing else to do starts a twin, which costs nothing."""
    overdue_factor: float = 1.6
    """From here on the twin goes before smaller tasks, unless the run's worker is just slower than others."""
    hopeless_factor: float = 2.0
    """If such a run still needs this many times what its twin needs, it is stopped when the twin starts."""
    hang_factor: float = 6.0
    """Here the run is given up and its worker stopped. Doubles each time that happens to a task: a store that
    became slow everywhere must not use up the attempts."""
    hang_least_seconds: float = 30.0
    """But not before this, however short the task: a store's own retries outlast 25 s."""
    deadline_floor_seconds: float = 10.0
    """Nothing is late before this, and running tasks are looked at this often."""
    deadline_least_seconds: float = 1.0
    """The same for tasks of which it is known that they take no longer, as the last parts of shards; between the two,
    half of what they take."""
    deadline_cap_seconds: float = 7200.0
    assumed_bytes_per_second: float = 10e6
    """What a worker is expected to do until tasks have finished; so slow that nobody is late by mistake."""
    no_worker_seconds: float = 600.0
    """Time without any worker before the run ends with exit 75."""
    parted_rounds: float = 2.0
    """So many shards for each worker, those that come last, are written in parts: all workers end together."""
    part_share: float = 0.45
    """Of what is left of such a shard, the next part: parts become smaller towards the end of the run. With
    more, who makes a slow first part again ends after all others; with less, the driver has more parts to hand out."""
    least_part_bytes: int = 200_000_000
    """Read and written for the smallest part: a second of a worker's time, of which its start is little. For a last
    part that fails or is slow all others wait, about twice as long."""
    longest_share: float = 0.7
    """Of the time that the run takes at best. What one worker would need longer for is begun in several places."""

    def wait_seconds(self, failures: int, seed: str) -> float:
        """Backoff: grows up to a cap, less up to half by the seed: tasks must not come back together."""
        whole = min(self.backoff_seconds * self.backoff_growth ** min(failures - 1, 30), self.backoff_cap_seconds)
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

    def learn(self, size_bytes: int, seconds: float) -> float:
        """Take a run's time, or its projected time, into account.

        Returns:
            Its bytes per second; 0 if it is too small to say anything.
        """
        if seconds <= 0 or size_bytes < self._sample_bytes:
            return 0.0
        self._recent.append(size_bytes / seconds)
        self._bytes_per_second = max(median(self._recent), 1.0)
        return self._recent[-1]

    @property
    def is_known(self) -> bool:
        """Whether any run has told it yet."""
        return bool(self._recent)

    def expected_seconds(self, size_bytes: int) -> float:
        """What a run of that size takes."""
        return size_bytes / self._bytes_per_second

    def late_seconds(self, size_bytes: int) -> float:
        """Age at which a run of that size may have a twin."""
        return self._deadline(self._limits.late_factor * size_bytes / self._bytes_per_second, size_bytes)

    def overdue_seconds(self, size_bytes: int, own_bytes_per_second: float) -> float:
        """Age at which it needs one, if its worker has done that many bytes per second (0: not known)."""
        slower = min(self._bytes_per_second, own_bytes_per_second or self._bytes_per_second)
        return self._deadline(self._limits.overdue_factor * size_bytes / slower, size_bytes)

    def hung_seconds(self, size_bytes: int, timeouts: int) -> float:
        """Age at which it is given up, after the same task was given up `timeouts` times before."""
        limits = self._limits
        seconds = max(limits.hang_factor * self.expected_seconds(size_bytes), limits.hang_least_seconds)
        return self._deadline(seconds * 2.0 ** min(timeouts, 30), size_bytes)

    def floor_seconds(self, size_bytes: int) -> float:
        """Age before which nothing is said of a run of that size: its first seconds go into opening files."""
        limits = self._limits
        known = max(self.expected_seconds(size_bytes) / 2, limits.deadline_least_seconds) if self.is_known else inf
        return min(known, limits.deadline_floor_seconds)

    def _deadline(self, seconds: float, size_bytes: int) -> float:
        return min(max(seconds, self.floor_seconds(size_bytes)), self._limits.deadline_cap_seconds)
