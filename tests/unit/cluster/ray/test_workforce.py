"""The workers of a run: how many more are asked for, whatever happens to those that there are."""

from __future__ import annotations

import random

import pytest

from anabranch.cluster.ray.limits import Limits
from anabranch.cluster.ray.workforce import Workforce


@pytest.mark.parametrize("seed", range(20))
def test_all_who_stay_are_counted_whatever_happens(seed: int) -> None:
    chance, woken = random.Random(seed), list[float]()
    workforce = Workforce(Limits(), seed, woken.append)
    workforce.slots = 8
    for step in range(200):
        now = 1000.0 * step  # so that the pause after failed starts is over
        workforce.grow(100, now)
        assert sum(not member.leaving for member in workforce.members.values()) == 8
        number = chance.choice(list(workforce.members))
        match chance.randrange(4):
            case 0:
                workforce.join(number)
            case 1:
                workforce.leave(number, now)  # again, too
            case 2:
                workforce.forget(number)
            case _:
                workforce.lose(number, "crashed", now)
        assert workforce.joined == sum(member.joined for member in workforce.members.values())


def test_nobody_is_started_for_the_room_that_is_lost() -> None:
    workforce = Workforce(Limits(), 0, lambda when: None)
    workforce.slots = 4
    assert list(workforce.grow(100, 0.0)) == [1, 2, 3, 4]
    workforce.slots = 3
    workforce.leave(2, 30.0)
    assert list(workforce.grow(100, 1.0)) == []
    workforce.slots = 4
    assert list(workforce.grow(100, 2.0)) == [5]
