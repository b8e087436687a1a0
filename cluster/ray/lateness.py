"""Whether a run is late, by its age and by its progress, and when it will be over. Pure."""

from __future__ import annotations

from math import inf

from .limits import Pace
from .records import Run
from .workforce import Member


def note_progress(run: Run, size_bytes: int, done_bytes: int, pace: Pace, now: float) -> bool:
    """Project a run's time from what it has moved of its task's bytes.

    Returns:
        Whether that says anything: the first seconds go into opening files and say little.
    """
    if done_bytes <= 0 or now < run.started + pace.floor_seconds(size_bytes):
        return False
    run.projected_seconds = (now - run.started) * size_bytes / done_bytes
    if done_bytes > run.done_bytes:
        # Slow is what is slower than the others now. A run that stands still must not teach patience.
        run.done_bytes = done_bytes
        pace.learn(size_bytes, run.projected_seconds)
    return True


def judge(run: Run, size_bytes: int, worker: Member, pace: Pace, now: float) -> float:
    """Say in a run whether it is late (it may have a twin) and overdue (it needs one).

    Returns:
        When to judge it again if nothing is heard of it before.
    """
    late = run.started + pace.late_seconds(size_bytes)
    overdue = run.started + pace.overdue_seconds(size_bytes, worker.bytes_per_second)
    reached = max(now, run.started + run.projected_seconds)
    cut_off = ends_at(run, size_bytes, pace, now) >= worker.deadline
    run.late, run.overdue = cut_off or reached >= late, cut_off or reached >= overdue
    return min((when for when in (late, overdue) if when > now), default=inf)


def ends_at(run: Run, size_bytes: int, pace: Pace, now: float) -> float:
    """When a run will be over, by its progress or else by the pace of others; now, where nothing is known."""
    expected = pace.expected_seconds(size_bytes) if pace.is_known else 0.0
    return max(now, run.started + (run.projected_seconds or expected))
