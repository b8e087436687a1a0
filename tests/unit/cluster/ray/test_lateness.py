"""What makes a run late, and what is expected of it."""

from __future__ import annotations

from math import inf

import pytest

from anabranch.cluster.ray.lateness import ends_at, judge, note_progress
from anabranch.cluster.ray.limits import Limits, Pace
from anabranch.cluster.ray.records import Run
from anabranch.cluster.ray.workforce import Member

GB = 1_000_000_000


@pytest.fixture
def pace() -> Pace:
    """1 GB takes 100 s."""
    pace = Pace(Limits(late_factor=1.5, overdue_factor=2.0), GB)
    pace.learn(GB, 100.0)
    return pace


def test_a_run_becomes_late_and_overdue_with_its_age(pace: Pace) -> None:
    run = Run(0, 1, 0.0)
    assert judge(run, GB, Member(), pace, 149.0) == 150.0
    assert (run.late, run.overdue) == (False, False)
    assert judge(run, GB, Member(), pace, 150.0) == 200.0
    assert (run.late, run.overdue) == (True, False)
    assert judge(run, GB, Member(), pace, 200.0) == inf
    assert (run.late, run.overdue) == (True, True)


def test_a_worker_that_was_never_faster_has_more_time(pace: Pace) -> None:
    run = Run(0, 1, 0.0)
    assert judge(run, GB, Member(bytes_per_second=GB / 200), pace, 399.0) == 400.0
    assert (run.late, run.overdue) == (True, False)


def test_the_first_seconds_say_nothing(pace: Pace) -> None:
    run = Run(0, 1, 0.0)
    assert not note_progress(run, GB, GB // 1000, pace, 9.9)
    assert not note_progress(run, GB, 0, pace, 30.0)
    assert run.projected_seconds == 0.0
    assert note_progress(run, GB, GB // 10, pace, 20.0)
    assert run.projected_seconds == 200.0


def test_progress_makes_a_run_late_before_its_time(pace: Pace) -> None:
    run = Run(0, 1, 0.0)
    for _ in range(9):
        pace.learn(GB, 100.0)
    note_progress(run, GB, GB // 10, pace, 20.0)
    judge(run, GB, Member(), pace, 20.0)
    assert run.overdue
    assert ends_at(run, GB, pace, 20.0) == 200.0


@pytest.mark.parametrize(("deadline", "late"), [(100.0, True), (101.0, False)])
def test_a_run_that_ends_after_its_worker_is_late(pace: Pace, deadline: float, late: bool) -> None:
    run = Run(0, 1, 0.0)
    judge(run, GB, Member(leaving=True, deadline=deadline), pace, 1.0)
    assert run.late is run.overdue is late
