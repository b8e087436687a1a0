"""The scheduler's promises one by one, each as a short story of events and the actions that must follow."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from time import process_time

import pytest

from anabranch.cluster.ray.events import (
    Action,
    Event,
    Finish,
    LookedUp,
    LookUp,
    LookUpFailed,
    ShardTask,
    SlotsChanged,
    StartTask,
    StartWorker,
    Stop,
    StopWorker,
    TaskDone,
    TaskFailed,
    TaskProgress,
    Tick,
    WorkerJoined,
    WorkerLeaving,
    WorkerLost,
)
from anabranch.cluster.ray.limits import Limits, Pace
from anabranch.cluster.ray.scheduler import Scheduler
from anabranch.engine.errors import AnabranchError, InputError, IntegrityError, ResourceError, TemporaryError

GB = 1_000_000_000


def tasks(*sizes: int) -> list[ShardTask]:
    return [ShardTask(i, size, f"shard-{i}") for i, size in enumerate(sizes)]


def running(sizes: Sequence[int], workers: int, limits: Limits | None = None) -> tuple[Scheduler, list[Action]]:
    """A scheduler at time 0 with all workers joined, and the actions of the last join."""
    scheduler = Scheduler(tasks(*sizes), limits=limits)
    actions = scheduler.handle(SlotsChanged(0.0, workers))
    started = []
    for action in actions:
        assert isinstance(action, StartWorker)
        started += scheduler.handle(WorkerJoined(0.0, action.worker))
    return scheduler, started


def stopped(actions: list[Action]) -> AnabranchError:
    (stop,) = (action for action in actions if isinstance(action, Stop))
    return stop.error


def test_largest_first_and_equal_ones_by_number() -> None:
    scheduler, actions = running([1, 5, 9, 5], 1)
    order = []
    while actions != [Finish()]:
        (start,) = actions
        assert isinstance(start, StartTask)
        order.append(start.task)
        actions = scheduler.handle(TaskDone(1.0, start.task, start.run))
    assert order == [2, 1, 3, 0]
    assert scheduler.done_tasks == 4


def test_nothing_to_do_is_done() -> None:
    assert Scheduler([]).handle(SlotsChanged(0.0, 4)) == [Finish()]


def test_no_more_workers_than_slots_nor_than_tasks_and_a_spare() -> None:
    assert len(Scheduler(tasks(1, 1, 1)).handle(SlotsChanged(0.0, 2))) == 2
    assert len(Scheduler(tasks(1, 1, 1)).handle(SlotsChanged(0.0, 64))) == 4


def test_new_nodes_are_used_as_they_join() -> None:
    scheduler, _ = running([1] * 9, 1)
    assert scheduler.handle(SlotsChanged(1.0, 3)) == [StartWorker(2), StartWorker(3)]
    assert scheduler.handle(WorkerJoined(2.0, 3)) == [StartTask(1, 3, 2)]
    assert scheduler.handle(WorkerJoined(2.0, 3)) == []


def test_a_lost_worker_is_replaced_and_its_receipt_settles_the_task() -> None:
    scheduler, _ = running([1, 1], 1)
    assert scheduler.handle(WorkerLost(1.0, 1, "node died")) == [LookUp(0, 1), StartWorker(2)]
    assert scheduler.handle(WorkerJoined(2.0, 2)) == [StartTask(1, 2, 2)]
    assert scheduler.handle(LookedUp(3.0, 0, 1, found=True)) == []
    assert scheduler.handle(TaskDone(4.0, 1, 2)) == [Finish()]


def test_without_a_receipt_another_worker_gets_the_task_at_once() -> None:
    scheduler, _ = running([2, 1, 1], 2)
    assert scheduler.handle(WorkerLost(1.0, 1, "died")) == [LookUp(0, 1), StartWorker(3)]
    assert scheduler.handle(LookedUp(1.0, 0, 1, found=False)) == []
    assert scheduler.handle(TaskDone(2.0, 1, 2)) == [StartTask(0, 2, 3)]


def test_an_answer_that_comes_after_its_worker_was_given_up_counts() -> None:
    scheduler, _ = running([1], 1)
    scheduler.handle(WorkerLost(1.0, 1, "unreachable"))
    assert scheduler.handle(TaskDone(2.0, 0, 1)) == [Finish()]


def test_a_stale_look_does_not_settle_a_later_loss() -> None:
    scheduler, _ = running([1], 1)
    scheduler.handle(WorkerLost(1.0, 1, "died"))
    assert scheduler.handle(LookedUp(1.0, 0, 1, found=False)) == []
    assert scheduler.handle(WorkerJoined(2.0, 2)) == [StartTask(0, 2, 2)]
    assert LookUp(0, 2) in scheduler.handle(WorkerLost(3.0, 2, "died"))
    scheduler.handle(WorkerJoined(4.0, 3))
    assert scheduler.handle(LookedUp(5.0, 0, 1, found=False)) == []
    assert scheduler.handle(LookedUp(6.0, 0, 2, found=False)) == [StartTask(0, 3, 3)]


def test_a_doubled_failure_does_not_free_a_worker_twice() -> None:
    scheduler, _ = running([1, 1], 1)
    failure = TaskFailed(1.0, 0, 1, TemporaryError("slow down"))
    assert scheduler.handle(failure) == [StartTask(1, 1, 2)]
    assert scheduler.handle(failure) == []


@pytest.mark.parametrize("error", [InputError("NaN in layer 3", "Look at it."), IntegrityError("x")])
def test_a_deterministic_error_stops_the_run_with_the_original_message(error: AnabranchError) -> None:
    scheduler, _ = running([1, 1], 2)
    assert scheduler.handle(TaskFailed(1.0, 0, 1, error)) == [Stop(error)]
    assert scheduler.handle(TaskDone(2.0, 1, 2)) == []
    assert scheduler.wake_at is None


def test_temporary_errors_are_retried_with_growing_waits_then_exit_75() -> None:
    scheduler, actions = running([1], 1, Limits(attempts=5))
    now, waits = 0.0, []
    for _ in range(4):
        (start,) = actions
        assert isinstance(start, StartTask)
        assert scheduler.handle(TaskFailed(now, 0, start.run, TemporaryError("503"))) == []
        assert scheduler.wake_at is not None
        waits.append(scheduler.wake_at - now)
        now = scheduler.wake_at
        actions = scheduler.handle(Tick(now))
    for wait, whole in zip(waits, [1, 3, 9, 27], strict=True):
        assert whole / 2 <= wait <= whole
    (start,) = actions
    assert isinstance(start, StartTask)
    error = stopped(scheduler.handle(TaskFailed(now, 0, start.run, TemporaryError("503"))))
    assert error.exit_code == 75
    assert "shard-0: failed 5 times; last: 503" in str(error)


def test_waits_depend_on_the_seed_and_nothing_else() -> None:
    def wait(seed: int) -> float | None:
        scheduler = Scheduler(tasks(1), seed=seed)
        scheduler.handle(SlotsChanged(0.0, 1))
        scheduler.handle(WorkerJoined(0.0, 1))
        scheduler.handle(TaskFailed(0.0, 0, 1, TemporaryError("503")))
        return scheduler.wake_at

    assert wait(1) == wait(1) != wait(2)


def test_lack_of_resources_is_tried_once_more_by_another_process_then_reported_as_it_is() -> None:
    scheduler, _ = running([1], 1)
    full = ResourceError("disk full on node a")
    assert scheduler.handle(TaskFailed(0.0, 0, 1, full)) == [StopWorker(1), StartWorker(2)]
    assert scheduler.handle(WorkerJoined(1.0, 2)) == [StartTask(0, 2, 2)]
    again = ResourceError("disk full on node b")
    assert stopped(scheduler.handle(TaskFailed(10.0, 0, 2, again))) is again


def test_a_task_that_kills_its_workers_ends_the_run() -> None:
    scheduler, actions = running([1], 1, Limits(attempts=3))
    for worker in (1, 2, 3):
        assert isinstance(actions[-1], StartTask)
        (look, *_) = scheduler.handle(WorkerLost(1.0, worker, "killed: out of memory"))
        assert isinstance(look, LookUp)
        actions = scheduler.handle(LookedUp(1.0, 0, look.look, found=False))
        if worker < 3:
            actions = scheduler.handle(WorkerJoined(1.0, worker + 1))
    assert "last: worker 3 was lost: killed: out of memory" in str(stopped(actions))


# 1 GB takes 100 s: a run is late after 150 s, overdue after 200 s and hung after 600 s.
ROUND = Limits(late_factor=1.5, overdue_factor=2.0, hang_factor=6.0)


def finished_pace(sizes: Sequence[int], workers: int, limits: Limits = ROUND) -> Scheduler:
    """Workers 1.. all did a first task of 1 GB in 100 s and run their second one since time 100."""
    scheduler, _ = running(sizes, workers, limits)
    for run in range(1, workers + 1):
        scheduler.handle(TaskDone(100.0, run - 1, run))
    return scheduler


def wake(scheduler: Scheduler, until: float) -> list[Action]:
    """Tick whenever it is due, and collect what comes of it."""
    actions: list[Action] = []
    while scheduler.wake_at is not None and scheduler.wake_at <= until:
        actions += scheduler.handle(Tick(scheduler.wake_at))
    return actions


def test_a_late_run_gets_a_twin_on_an_idle_worker_and_the_slower_one_is_stopped() -> None:
    scheduler = finished_pace([GB] * 4, 2)
    assert scheduler.handle(TaskDone(200.0, 2, 3)) == []
    assert wake(scheduler, 249.9) == []
    assert wake(scheduler, 250.0) == [LookUp(3, 1)]
    assert scheduler.handle(LookedUp(250.0, 3, 1, found=False)) == [StartTask(3, 1, 5)]
    assert wake(scheduler, 300.0) == []
    assert scheduler.handle(TaskDone(350.0, 3, 5)) == [StopWorker(2), Finish()]


def test_a_late_run_whose_answer_was_lost_needs_no_twin() -> None:
    scheduler = finished_pace([GB] * 4, 2)
    scheduler.handle(TaskDone(200.0, 2, 3))
    assert wake(scheduler, 250.0) == [LookUp(3, 1)]
    assert scheduler.handle(LookedUp(250.0, 3, 1, found=True)) == [StopWorker(2), Finish()]


def two_late_runs(fresh_tasks: int) -> Scheduler:
    """Worker 1 is late with task 2, worker 2 with task 3, neither has a receipt; small tasks wait."""
    scheduler = finished_pace([GB] * 4 + [GB // 2] * fresh_tasks, 2)
    wake(scheduler, 250.0)
    scheduler.handle(LookedUp(250.0, 2, 1, found=False))
    scheduler.handle(LookedUp(250.0, 3, 2, found=False))
    return scheduler


def test_the_twin_of_a_late_run_waits_for_all_fresh_tasks() -> None:
    scheduler = two_late_runs(1)
    assert scheduler.handle(TaskDone(251.0, 3, 4)) == [StartTask(4, 2, 5)]
    assert scheduler.handle(TaskDone(299.0, 4, 5)) == [StartTask(2, 2, 6)]


def test_the_twin_of_an_overdue_run_goes_before_smaller_tasks() -> None:
    scheduler = two_late_runs(2)
    assert scheduler.handle(TaskDone(251.0, 3, 4)) == [StartTask(4, 2, 5)]
    assert wake(scheduler, 300.0) == []
    assert scheduler.handle(TaskDone(301.0, 4, 5)) == [StartTask(2, 2, 6)]


def test_a_worker_that_is_always_slow_is_not_overdue_by_its_own_standard() -> None:
    """Twice as slow as the others, it would else have a twin in every run."""
    scheduler, _ = running([GB] * 6 + [GB // 2] * 3, 3, ROUND)
    scheduler.handle(TaskDone(100.0, 0, 1))
    scheduler.handle(TaskDone(100.0, 1, 2))
    assert scheduler.handle(TaskDone(199.0, 2, 3)) == [StartTask(5, 3, 6)]
    scheduler.handle(TaskDone(200.0, 3, 4))
    scheduler.handle(TaskDone(200.0, 4, 5))
    assert wake(scheduler, 349.0) == [LookUp(6, 1), LookUp(7, 2), LookUp(5, 3)]
    scheduler.handle(LookedUp(349.0, 5, 3, found=False))
    assert wake(scheduler, 400.0) == []
    assert scheduler.handle(TaskDone(401.0, 6, 7)) == [StartTask(8, 1, 9)]


def test_reported_progress_shows_a_slow_run_before_it_is_late() -> None:
    scheduler = finished_pace([GB] * 4, 2)
    for now, moved in ((105.0, 1), (150.0, 0), (150.0, GB // 2), (190.0, GB * 62 // 100)):
        assert scheduler.handle(TaskProgress(now, 3, 4, moved)) == []
    assert scheduler.handle(TaskDone(192.0, 2, 3)) == []
    assert scheduler.handle(TaskProgress(195.0, 3, 4, GB * 62 // 100)) == [LookUp(3, 1)]
    assert scheduler.handle(LookedUp(195.0, 3, 1, found=False)) == [StartTask(3, 1, 5)]
    assert scheduler.handle(TaskProgress(199.0, 2, 3, GB)) == []


def test_a_run_that_would_surely_lose_is_stopped_when_its_twin_starts() -> None:
    scheduler = finished_pace([GB] * 5, 2)
    assert scheduler.handle(TaskProgress(120.0, 3, 4, GB // 20)) == [LookUp(3, 1)]  # needs 400 s, 380 are left
    assert scheduler.handle(LookedUp(120.0, 3, 1, found=False)) == []
    twin = [StopWorker(2), StartTask(3, 1, 5), StartWorker(3)]
    assert scheduler.handle(TaskDone(200.0, 2, 3)) == twin
    assert scheduler.handle(WorkerJoined(210.0, 3)) == [StartTask(4, 3, 6)]


def test_a_run_that_stands_still_teaches_no_patience() -> None:
    scheduler = finished_pace([GB] * 2, 1)
    actions = []
    for now in range(110, 910, 10):  # the first report says 200 s, which makes 133 s and six times that the measure
        actions += scheduler.handle(TaskProgress(float(now), 1, 2, GB // 20))
    assert actions == [LookUp(1, 1), StopWorker(1), LookUp(1, 2), StartWorker(2)]


def test_when_all_become_slow_nobody_is() -> None:
    """A store that serves everybody four times slower: twins would only add to its load."""
    scheduler = finished_pace([GB] * 16, 4)
    actions = []
    for now in range(110, 490, 10):
        for run in range(5, 9):
            moved = int(GB * (now - 100) / 400)
            actions += scheduler.handle(TaskProgress(float(now), run - 1, run, moved))
    for look in actions:
        assert isinstance(look, LookUp)
        assert scheduler.handle(LookedUp(490.0, look.task, look.look, found=False)) == []
    assert scheduler.handle(TaskDone(500.0, 4, 5)) == [StartTask(8, 1, 9)]


def test_a_hung_worker_is_stopped_even_if_it_is_the_only_one() -> None:
    scheduler = finished_pace([GB] * 2, 1)
    assert wake(scheduler, 250.0) == [LookUp(1, 1)]
    assert scheduler.handle(LookedUp(250.0, 1, 1, found=False)) == []
    assert wake(scheduler, 699.0) == []
    assert wake(scheduler, 700.0) == [StopWorker(1), LookUp(1, 2), StartWorker(2)]
    scheduler.handle(LookedUp(700.0, 1, 2, found=False))
    assert scheduler.handle(WorkerJoined(1000.0, 2)) == [StartTask(1, 2, 3)]
    assert wake(scheduler, 2199.0) == [LookUp(1, 3)]
    assert wake(scheduler, 2200.0) == [StopWorker(2), LookUp(1, 4), StartWorker(3)]


def test_twins_count_as_attempts() -> None:
    scheduler = finished_pace([GB] * 4, 2, replace(ROUND, attempts=2))
    scheduler.handle(TaskDone(200.0, 2, 3))
    wake(scheduler, 250.0)
    assert scheduler.handle(LookedUp(250.0, 3, 1, found=False)) == [StartTask(3, 1, 5)]
    assert scheduler.handle(TaskFailed(250.0, 3, 5, TemporaryError("503"))) == []
    assert wake(scheduler, 260.0) == [StartTask(3, 1, 6)]
    assert scheduler.handle(TaskFailed(260.0, 3, 6, TemporaryError("503"))) == []
    assert wake(scheduler, 400.0) == []
    assert scheduler.handle(TaskDone(400.0, 3, 4)) == [Finish()]


def test_the_last_failure_says_how_long_to_wait() -> None:
    scheduler = finished_pace([GB] * 4, 2)
    scheduler.handle(TaskDone(200.0, 2, 3))
    wake(scheduler, 250.0)
    scheduler.handle(LookedUp(250.0, 3, 1, found=False))
    scheduler.handle(TaskFailed(250.0, 3, 5, TemporaryError("503")))
    scheduler.handle(TaskFailed(252.0, 3, 4, TemporaryError("503")))
    assert wake(scheduler, 253.4) == []
    assert wake(scheduler, 262.0) == [StartTask(3, 1, 6)]


def test_an_open_look_is_waited_for_before_a_failed_run_is_repeated() -> None:
    scheduler = finished_pace([GB] * 2, 1)
    assert wake(scheduler, 250.0) == [LookUp(1, 1)]
    assert scheduler.handle(TaskFailed(251.0, 1, 2, TemporaryError("503"))) == []
    assert wake(scheduler, 300.0) == []
    assert scheduler.handle(LookedUp(300.0, 1, 1, found=False)) == [StartTask(1, 1, 3)]


def test_a_draining_worker_ends_its_run_and_gets_no_other() -> None:
    scheduler, _ = running([1] * 4, 2)
    assert scheduler.handle(SlotsChanged(1.0, 1)) == []
    assert scheduler.handle(WorkerLeaving(1.0, 1)) == []
    assert scheduler.handle(TaskDone(1.0, 0, 1)) == [StopWorker(1)]
    assert scheduler.handle(WorkerLeaving(1.0, 2)) == [StartWorker(3)]
    assert scheduler.handle(WorkerLeaving(1.0, 3)) == [StopWorker(3), StartWorker(4)]


def test_a_draining_worker_that_will_not_be_done_in_time_hands_its_shard_to_another() -> None:
    scheduler = finished_pace([GB] * 5, 2)
    scheduler.handle(SlotsChanged(110.0, 1))
    scheduler.handle(TaskProgress(120.0, 2, 3, GB // 5))
    assert scheduler.handle(WorkerLeaving(121.0, 1, deadline=190.0)) == [LookUp(2, 1)]
    assert scheduler.handle(LookedUp(121.0, 2, 1, found=False)) == []
    assert scheduler.handle(TaskDone(140.0, 3, 4)) == [StartTask(2, 2, 5)], "it goes before shards that nobody has"
    assert scheduler.handle(WorkerLost(190.0, 1, "its node is gone")) == [LookUp(2, 2)]
    assert scheduler.handle(LookedUp(190.0, 2, 2, found=False)) == [], "nothing is left to be done for it"
    assert scheduler.handle(TaskDone(240.0, 2, 5)) == [StartTask(4, 2, 6)]


def test_a_draining_worker_is_told_of_by_its_pace_where_it_has_not_reported() -> None:
    scheduler = finished_pace([GB] * 5, 2)
    scheduler.handle(SlotsChanged(110.0, 0))
    assert scheduler.handle(WorkerLeaving(110.0, 1, deadline=201.0)) == []
    assert scheduler.handle(WorkerLeaving(110.0, 2, deadline=199.0)) == [LookUp(3, 1)]


def test_a_draining_worker_that_falls_behind_is_not_waited_for() -> None:
    scheduler = finished_pace([GB] * 5, 2)
    scheduler.handle(SlotsChanged(110.0, 1))
    assert scheduler.handle(WorkerLeaving(110.0, 1, deadline=205.0)) == []
    assert scheduler.handle(TaskProgress(150.0, 2, 3, GB // 2)) == []
    assert scheduler.handle(TaskProgress(155.0, 2, 3, GB // 2)) == [LookUp(2, 1)]


def test_a_draining_worker_is_believed_while_nothing_is_known() -> None:
    scheduler, _ = running([GB] * 2, 1)
    assert scheduler.handle(WorkerLeaving(1.0, 1, deadline=30.0)) == [StartWorker(2)]
    scheduler.handle(WorkerJoined(2.0, 2))
    assert scheduler.handle(TaskProgress(15.0, 0, 1, GB // 4)) == [LookUp(0, 1)]


def test_a_worker_is_started_beside_one_that_leaves() -> None:
    scheduler, _ = running([GB] * 4, 2)
    scheduler.handle(SlotsChanged(1.0, 1))
    assert scheduler.handle(WorkerLeaving(1.0, 1)) == []
    assert scheduler.handle(SlotsChanged(2.0, 2)) == [StartWorker(3)]


def test_a_task_waits_for_those_before_it_and_the_longest_way_goes_first() -> None:
    chain = [ShardTask(0, 4, "a1", path_bytes=9), ShardTask(1, 3, "a2", (0,), 5), ShardTask(2, 2, "a3", (1, 3), 2)]
    scheduler = Scheduler([*chain, ShardTask(3, 6, "b"), ShardTask(4, 8, "c")])
    scheduler.handle(SlotsChanged(0.0, 1))
    order = []
    actions = scheduler.handle(WorkerJoined(0.0, 1))
    while actions != [Finish()]:
        (start,) = actions
        assert isinstance(start, StartTask)
        order.append(start.task)
        actions = scheduler.handle(TaskDone(1.0, start.task, start.run))
    assert order == [0, 4, 3, 1, 2]


def test_what_follows_a_task_that_was_found_done_is_free_and_is_not_started_when_it_is_done_too() -> None:
    scheduler = Scheduler([ShardTask(0, 4, "a1"), ShardTask(1, 3, "a2", (0,)), ShardTask(2, 2, "a3", (1,))])
    scheduler.handle(SlotsChanged(0.0, 1))
    assert scheduler.handle(LookedUp(0.0, 1, 0, found=True)) == [], "what comes before it is not done"
    assert scheduler.handle(WorkerJoined(0.0, 1)) == [StartTask(0, 1, 1)]
    assert scheduler.handle(LookedUp(0.0, 2, 0, found=True)) == []
    assert scheduler.handle(TaskDone(1.0, 0, 1)) == [Finish()]


def test_an_unreadable_output_is_looked_at_again_later() -> None:
    scheduler, _ = running([1], 1)
    scheduler.handle(WorkerLost(0.0, 1, "died"))
    scheduler.handle(WorkerJoined(0.0, 2))
    assert scheduler.handle(LookUpFailed(0.0, 0, 1, TemporaryError("503"))) == []
    assert wake(scheduler, 10.0) == [LookUp(0, 2)]
    assert scheduler.handle(LookedUp(10.0, 0, 2, found=True)) == [Finish()]


def test_an_output_that_stays_unreadable_ends_the_run() -> None:
    scheduler, _ = running([1], 1, Limits(attempts=3))
    (look, *_) = scheduler.handle(WorkerLost(0.0, 1, "died"))
    for _ in range(2):
        assert isinstance(look, LookUp)
        actions = scheduler.handle(LookUpFailed(0.0, 0, look.look, TemporaryError("503")))
        (look, *_) = actions or wake(scheduler, 60.0)
    assert isinstance(look, Stop)
    assert look.error.exit_code == 75


def test_a_damaged_receipt_stops_the_run() -> None:
    scheduler, _ = running([1], 1)
    scheduler.handle(WorkerLost(0.0, 1, "died"))
    error = IntegrityError("receipt 0 is of another plan")
    assert stopped(scheduler.handle(LookUpFailed(0.0, 0, 1, error))) is error


def test_workers_that_do_not_start_are_asked_for_less_and_less_often_then_exit_75() -> None:
    scheduler = Scheduler(tasks(1))
    actions: list[Action] = scheduler.handle(SlotsChanged(0.0, 1))
    starts, now = 0, 0.0
    while not isinstance(actions[-1], Stop):
        (start,) = actions
        assert isinstance(start, StartWorker)
        starts += 1
        assert scheduler.handle(WorkerLost(now, start.worker, "no module named numba")) == []
        actions = []
        while not actions:
            assert scheduler.wake_at is not None
            now = scheduler.wake_at
            actions = scheduler.handle(Tick(now))
    assert now == 600.0
    assert starts < 12
    error = stopped(actions)
    assert error.exit_code == 75
    assert "no module named numba" in str(error)


def test_deadlines_follow_the_median_and_have_a_floor_and_a_cap() -> None:
    pace = Pace(ROUND, GB)
    assert pace.late_seconds(GB) == 1.5 * GB / 10e6
    for seconds in (90.0, 100.0, 100.0, 110.0, 4000.0):
        assert pace.learn(GB, seconds) == GB / seconds
    assert pace.late_seconds(GB) == 150.0
    assert [pace.floor_seconds(size) for size in (1, GB // 25, GB // 10, GB)] == [1.0, 2.0, 5.0, 10.0]
    assert pace.late_seconds(1) == 1.0
    assert pace.late_seconds(1000 * GB) == 7200.0
    assert [pace.overdue_seconds(GB, rate) for rate in (0.0, GB / 50, GB / 200)] == [200.0, 200.0, 400.0]
    assert [pace.hung_seconds(GB, n) for n in (0, 1, 9)] == [600.0, 1200.0, 7200.0]
    assert pace.hung_seconds(0, 0) == 30.0
    for _ in range(100):
        assert pace.learn(1, 50.0) == 0.0  # tiny tasks say nothing about throughput
    assert pace.late_seconds(GB) == 150.0


def test_cost_per_task_does_not_grow_with_the_plan() -> None:
    """Ten times the tasks take far less than a hundred times as long."""

    def seconds(count: int) -> float:
        began = process_time()
        scheduler = Scheduler(ShardTask(i, GB + i % 7, "t") for i in range(count))
        events: deque[Event] = deque([SlotsChanged(0.0, 256)])
        while events:
            for action in scheduler.handle(events.popleft()):
                if isinstance(action, StartWorker):
                    events.append(WorkerJoined(0.0, action.worker))
                elif isinstance(action, StartTask):
                    events.append(TaskDone(0.1 * action.run, action.task, action.run))
        assert scheduler.done_tasks == count
        return process_time() - began

    small, large = seconds(5_000), seconds(50_000)
    assert large < 40 * small, f"{small:.2f} s and {large:.2f} s"
