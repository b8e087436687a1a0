"""One number from the scores of all tasks, and which trials no other one beats."""

from __future__ import annotations

import pytest

from anabranch.cluster.search.objectives import check_reference, pareto, ranked, read_objective
from anabranch.engine.errors import RecipeError

SCORES = {"a": 0.5, "b": 0.2}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("mean", 0.35),
        ("min", 0.2),
        ("task:b", 0.2),
        ("weighted:a=3,b=1", 0.425),
        ("weighted:a=1,b=-1", 0.15),
        ("asymmetric", (0.25 - 100 * 0.5) / 2),  # 0.4 -> 0.5 is a quarter better, 0.4 -> 0.2 is half worse
    ],
)
def test_values(text: str, value: float) -> None:
    assert read_objective(text).value(SCORES, {"a": 0.4, "b": 0.4}) == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["", "best", "task:", "weighted:", "weighted:a", "weighted:a=x", "weighted:a=0", "mean:a"]
)
def test_what_is_no_objective(text: str) -> None:
    with pytest.raises(RecipeError, match="expected mean, min, task:NAME"):
        read_objective(text)


def test_a_task_that_has_no_score_is_named() -> None:
    with pytest.raises(RecipeError, match="no score for c; there are a, b"):
        read_objective("task:c").value(SCORES, {})


def test_nothing_is_relative_to_zero() -> None:
    with pytest.raises(RecipeError, match="scores 0 on b"):
        check_reference({"a": 1.0, "b": 0.0})


def test_the_front_comes_first() -> None:
    values = {0: (1.0, 0.0), 1: (0.0, 1.0), 2: (0.9, 0.0), 3: (0.5, 0.5), 4: (1.0, 0.0)}
    assert pareto(values) == [0, 1, 3, 4]
    assert ranked(values) == [0, 4, 3, 1, 2]
