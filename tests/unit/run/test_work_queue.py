"""Fold threads take the earliest window that is ready, and none is lost whatever happens."""

from __future__ import annotations

import random
import threading

import pytest

from anabranch.engine.run.work_queue import WorkQueue

pytestmark = pytest.mark.timeout(30)


def test_what_waits_for_a_turn_comes_after_it_and_before_what_was_put_later() -> None:
    work: WorkQueue[str] = WorkQueue()
    first, second = threading.Event(), threading.Event()
    work.put("tensor 1, turn 0")
    work.put("tensor 1, turn 1, window 0", first)
    work.put("tensor 1, turn 1, window 1", first)
    work.put("tensor 1, turn 2", second)
    work.put("tensor 2, turn 0, window 0")
    work.put("tensor 2, turn 0, window 1")
    work.close()
    assert work.take() == "tensor 1, turn 0"
    assert work.take() == "tensor 2, turn 0, window 0"  # turn 1 is not ready
    work.over(first)
    assert first.is_set()
    assert work.take() == "tensor 1, turn 1, window 0"
    assert work.take() == "tensor 1, turn 1, window 1"
    work.over(second)
    assert [work.take() for _ in range(3)] == ["tensor 1, turn 2", "tensor 2, turn 0, window 1", None]
    work.put("late", first)  # the turn was over before
    assert work.take() == "late"


def test_a_stopped_queue_hands_everything_out() -> None:
    work: WorkQueue[int] = WorkQueue()
    work.put(0, threading.Event())
    work.put(1)
    work.put(2, threading.Event())
    work.stop()
    work.put(3, threading.Event())
    work.close()
    assert [work.take() for _ in range(5)] == [0, 1, 2, 3, None]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_finish_turns_in_order(threads: int) -> None:
    """Turns of several tensors, each of which starts when the last item of the turn before is done."""
    chance = random.Random(threads)
    work: WorkQueue[tuple[int, int]] = WorkQueue()
    sizes = [[chance.randint(1, 4) for _ in range(chance.randint(1, 5))] for _ in range(30)]
    events = [[threading.Event() for _ in turns] for turns in sizes]
    missing = [list(turns) for turns in sizes]
    lock, done = threading.Lock(), []

    def run() -> None:
        while (item := work.take()) is not None:
            tensor, turn = item
            with lock:
                assert turn == 0 or missing[tensor][turn - 1] == 0
                done.append(item)
                missing[tensor][turn] -= 1
                over = missing[tensor][turn] == 0
            if over:
                work.over(events[tensor][turn])

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for tensor, turns in enumerate(sizes):
        for turn, size in enumerate(turns):
            for _ in range(size):
                work.put((tensor, turn), events[tensor][turn - 1] if turn else None)
    work.close()
    for worker in workers:
        worker.join()
    assert len(done) == sum(map(sum, sizes))
    assert all(count == 0 for turns in missing for count in turns)
