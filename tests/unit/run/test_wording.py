"""Numbers, times and lists as people read them."""

from __future__ import annotations

import pytest

from anabranch.engine.errors import some_names
from anabranch.engine.run.wording import counted, duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "1 s"), (2.4, "2 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (7800, "2 h 10 min")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_nouns_agree_with_their_numbers() -> None:
    assert [counted(n, "shard") for n in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]


def test_long_lists_are_cut() -> None:
    assert some_names(["a", "b"]) == "a, b"
    assert some_names([str(i) for i in range(8)]) == "0, 1, 2 and 5 more"
