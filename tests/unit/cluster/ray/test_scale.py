"""The modelled cluster of benchmarks/scale.py: its bookkeeping must add up, or its table means nothing."""

from __future__ import annotations

import math

import pytest

from anabranch.cluster.ray.events import ShardTask
from benchmarks.scale import (
    FAULTS,
    START_SECONDS,
    WORKER_BYTES_PER_SECOND,
    Faults,
    Replay,
    ceiling,
    llama_405b,
    main,
    plan,
)


def test_the_quick_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick"])
    text = capsys.readouterr().out
    assert text.count("| 405B | 506 of 2 GB |") == 2
    assert "Memory of this process" in text


def test_plans_have_the_size_that_they_are_named_after() -> None:
    assert sum(math.prod(shape) for _, _, shape in llama_405b()) == 405_853_388_800
    assert sum(task.size_bytes for task in plan("1T")) / 8 == pytest.approx(1.03e12, rel=0.01)
    assert len({task.id for task in plan("405B")}) == 506


@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize("reports", [True, False])
def test_every_task_is_done_whatever_happens(faults: str, reports: bool) -> None:
    tasks = plan("405B")
    outcome = Replay(tasks, 16, FAULTS[faults], 3, reports=reports).run()
    assert outcome.done == len(tasks)
    assert 0.5 < outcome.efficiency < 1.1
    assert outcome.tail < outcome.makespan
    assert bool(outcome.failures) == (faults != "none")
    assert outcome.twin_seconds + outcome.lost_seconds < 0.2 * 16 * outcome.makespan


def test_flawless_workers_lose_their_start_and_the_last_round_only() -> None:
    tasks = [ShardTask(i, int(10 * WORKER_BYTES_PER_SECOND), f"shard {i}") for i in range(40)]
    outcome = Replay(tasks, 4, Faults(spread=0.0), 0).run()
    assert 0.8 * START_SECONDS <= outcome.makespan - 100.0 <= 1.2 * START_SECONDS
    assert outcome.calls == 4 + 40 + 40 + 1  # starts of workers and tasks, one report in each, the end


def test_the_same_seed_gives_the_same_story() -> None:
    def story(seed: int) -> tuple[float, int]:
        outcome = Replay(plan("405B"), 16, FAULTS["spot"], seed).run()
        return outcome.makespan, outcome.failures

    assert story(1) == story(1) != story(2)


def test_largest_first_wastes_less_at_the_end() -> None:
    sizes = [1] * 8 + [8]
    assert ceiling(sizes, 2) == 0.5 * 16 / 12
    assert ceiling(sorted(sizes, reverse=True), 2) == 1.0
