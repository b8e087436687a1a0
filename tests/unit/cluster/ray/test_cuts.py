"""Which shards are cut, where, and what waits for what."""

from __future__ import annotations

import pytest

from anabranch.cluster.ray.cuts import Stretch, cut_last, parted_tasks
from anabranch.cluster.ray.events import ShardTask
from anabranch.cluster.ray.limits import Limits

LIMITS = Limits(parted_rounds=2.0, part_share=0.5, least_part_bytes=10, longest_share=0.7)


def tasks(*sizes: int) -> list[ShardTask]:
    return [ShardTask(i, size, f"shard {i}") for i, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [(), (1000,), (1000, 1000)])
def test_one_worker_needs_no_parts(sizes: tuple[int, ...]) -> None:
    assert cut_last(tasks(*sizes), 1, LIMITS) == {}


def test_only_the_last_shards_are_cut() -> None:
    cut = cut_last(tasks(*[100] * 20), 3, LIMITS)
    assert sorted(cut) == [14, 15, 16, 17, 18, 19]


def test_parts_become_smaller_and_follow_each_other() -> None:
    cut = cut_last(tasks(*[80] * 4), 2, LIMITS)
    assert sorted(cut) == [0, 1, 2, 3]
    assert cut[0] == [
        Stretch(0.0, 0.5, False),
        Stretch(0.5, 0.75, True),
        Stretch(0.75, 0.875, True),
        Stretch(0.875, 1.0, True),
    ]


def test_what_would_take_too_long_is_begun_in_several_places() -> None:
    cut = cut_last(tasks(160, 40, 40, 40), 4, Limits(part_share=1.0, least_part_bytes=10))
    assert [(s.begin, s.waits) for s in cut[0]] == [(place / 4, False) for place in range(4)]


def test_shards_that_are_hardly_more_than_a_part_stay_whole() -> None:
    assert cut_last(tasks(*[15] * 8), 4, LIMITS) == {}


def test_a_chain_of_parts_and_its_end() -> None:
    first, second, third, end = parted_tasks(ShardTask(3, 800, "x"), [2, 1, 1], [False, True, True], 10)
    assert first == ShardTask(3, 400, "x, part 1", (), 800)
    assert second == ShardTask(10, 200, "x, part 2", (3,), 400)
    assert third == ShardTask(11, 200, "x, part 3", (10,), 200)
    assert end == ShardTask(12, 0, "x, its end", (11,), 0)


def test_the_end_waits_for_every_chain_and_reads_what_was_not_hashed() -> None:
    made = parted_tasks(ShardTask(0, 800, "x"), [1, 1, 1, 1], [False, True, False, True], 1)
    assert [task.after for task in made] == [(), (0,), (), (2,), (1, 3)]
    assert made[-1].size_bytes == 100
    assert [task.path_bytes for task in made] == [500, 300, 500, 300, 100]


@pytest.mark.parametrize("size", [400, 900, 1600, 6400, 8000, 8300])
def test_the_last_part_is_short_whatever_the_shard(size: int) -> None:
    """In MB that are read and written: who waits for a last part that went wrong waits for a second of work again."""
    limits = Limits()
    stretches = cut_last(tasks(*[size * 10**6] * 20), 10, limits)[0]
    lengths = [(stretch.end - stretch.begin) * size * 10**6 for stretch in stretches]
    assert sum(lengths) == pytest.approx(size * 10**6)
    assert lengths[-1] <= 1.5 * limits.least_part_bytes
    assert min(lengths[:-1]) >= limits.least_part_bytes * 0.999
    assert lengths[:-1] == sorted(lengths[:-1], reverse=True)
