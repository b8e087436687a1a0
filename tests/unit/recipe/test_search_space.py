"""Recipes with `search` in place of values: what they stand for, how many, and what is wrong with them."""

from __future__ import annotations

import pytest

from anabranch.engine.errors import RecipeError
from anabranch.engine.recipe import Interval, SearchSpace, recipe_of
from anabranch.engine.recipe.parse import parse_recipe, parse_search

HEAD = "merge_method: task_arithmetic\nbase_model: org/base\n"
TWO = """models:
  - {model: org/a, parameters: {weight: {search: {from: 0.2, to: 0.4, step: 0.1}}}}
  - {model: org/b, parameters: {weight: {search: {choice: [1, 2]}}}}
"""


def space_of(text: str) -> SearchSpace:
    space = parse_search(text, "r.yml")
    assert space is not None
    return space


def recipes(space: SearchSpace) -> list[dict[str, object]]:
    return [dict(space.at(lambda name, _, point=point: point[name]).data) for point in space.points()]


def test_every_recipe_of_a_space_with_steps_is_listed_once_in_order() -> None:
    space = space_of(HEAD + TWO)
    weights = [[entry["parameters"]["weight"] for entry in recipe["models"]] for recipe in recipes(space)]  # type: ignore[attr-defined]
    assert weights == [[0.2, 1], [0.2, 2], [0.3, 1], [0.3, 2], [0.4, 1], [0.4, 2]]
    assert space.size == 6
    assert list(space.parameters()) == ["models[0].parameters.weight", "models[1].parameters.weight"]


def test_a_plain_recipe_is_no_search() -> None:
    assert parse_search(HEAD + "models: [{model: org/a}]", "r.yml") is None


def test_steps_are_decimal_and_end_inside() -> None:
    numbers = Interval(0.2, 2.0, 0.1)
    assert [numbers.number(i) for i in range(numbers.size or 0)] == [round(0.2 + i / 10, 1) for i in range(19)]
    assert Interval(0, 1, 0.3).size == 4
    assert Interval(1, 9, 2).number(3) == 7 and isinstance(Interval(1, 9, 2).number(3), int)
    assert Interval(0.2, 2.0, 0.1).snap(0.30000000000000004) == 0.3
    assert Interval(0.2, 2.0).size is None


def test_keys_that_go_with_a_method_count_only_with_it() -> None:
    space = space_of("""
merge_method:
  search:
    choice:
      task_arithmetic:
      cabs:
        parameters:
          density: {search: {choice: [0.1, {tadrop: {mean: {search: {from: 0.2, to: 0.3, step: 0.1}}}}]}}
base_model: org/base
parameters: {lambda: 0.5}
models: [{model: org/a}, {model: org/b}]
""")
    assert [(recipe["merge_method"], recipe["parameters"]) for recipe in recipes(space)] == [
        ("task_arithmetic", {"lambda": 0.5}),
        ("cabs", {"lambda": 0.5, "density": 0.1}),
        ("cabs", {"lambda": 0.5, "density": {"tadrop": {"mean": 0.2}}}),
        ("cabs", {"lambda": 0.5, "density": {"tadrop": {"mean": 0.3}}}),
    ]
    assert space.size == 4
    names = list(space.parameters())
    assert names[:2] == ["merge_method", "parameters.density if merge_method=cabs"]
    assert names[2].endswith("and merge_method=cabs")


@pytest.mark.parametrize(("count", "size"), [(2, 2), (3, 6), (5, 120), (6, None)])
def test_orders_of_models(count: int, size: int | None) -> None:
    models = ", ".join(f"{{model: org/m{i}}}" for i in range(count))
    space = space_of(f"{HEAD}models: [{models}]\norder: search\n")
    assert space.size == size
    if size is not None:
        orders = {tuple(entry["model"] for entry in recipe["models"]) for recipe in recipes(space)}  # type: ignore[attr-defined]
        assert len(orders) == size
    else:
        last_first = space.at(lambda name, _: -float(name[6:-1])).data["models"]
        assert [entry["model"] for entry in last_first] == [f"org/m{i}" for i in reversed(range(count))]


def test_searches_in_filters_and_of_models() -> None:
    space = space_of("""
merge_method: cabs
base_model: org/base
models: [{model: org/a}, {model: {search: {choice: [org/b, org/c]}}}]
parameters: {density: [{filter: mlp, value: {search: {choice: [0.1, 0.2]}}}, {value: 0.25}]}
""")
    assert space.size == 4
    for point in space.points():
        recipe_of(space.at(lambda name, _, point=point: point[name]))


def test_a_recipe_to_merge_has_no_search() -> None:
    with pytest.raises(RecipeError, match=r"r\.yml:4: models\[0\]\.parameters\.weight: .*use `anabranch search"):
        parse_recipe(HEAD + TWO, "r.yml")
    with pytest.raises(RecipeError, match=r"order: .*anabranch search"):
        parse_recipe(HEAD + "models: [{model: org/a}]\norder: search\n", "r.yml")


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("7", "expected {from: 0.2, to: 2, step: 0.1} or"),
        ("{form: 1, to: 2}", "form: unknown key; expected from, to and step, or choice; did you mean 'from'"),
        ("{from: 1}", "to is missing"),
        ("{from: 1, to: 1}", "to: expected more than 1, got 1"),
        ("{from: 1, to: 2, step: 3}", "step: expected more than 0 and at most 1, got 3"),
        ("{from: .nan, to: 2}", "from: expected a number"),
        ("{from: 1, to: true}", "to: expected a number"),
        ("{choice: []}", "choice: expected a list of values"),
        ("{choice: {a: 1}}", "choice: expected a list of values"),
        ("{choice: [1, 1.0]}", "choice: expected values that differ"),
        ("{choice: [1], from: 2}", "expected either a choice or a range"),
        ("{choice: [1, {search: {from: 3}}]}", r"choice\[1\]\.search: to is missing"),
    ],
)
def test_what_is_wrong_with_a_search(search: str, said: str) -> None:
    with pytest.raises(RecipeError, match=r"r\.yml:3: " + r".*" + said):
        parse_search(f"{HEAD}models: [{{model: org/a, parameters: {{weight: {{search: {search}}}}}}}]", "r.yml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            HEAD + "models: [{model: org/a, parameters: {weight: {search: {choice: [1, x]}}}}]",
            "weight: expected .*, got 'x'",
        ),
        (HEAD + "models: [{model: org/a, parameters: {weights: {search: {choice: [1]}}}}]", "unknown parameter"),
        (HEAD + "models: [{model: org/a}]\norder: search\n", "expected a list of two or more `models`"),
        (HEAD + "models: [{model: {search: {choice: [org/a]}, b: 1}}]", "expected `search` alone"),
        (
            "merge_method: {search: {choice: [slerp, ties]}}\nbase_model: org/b\nmodels: [{model: org/a}]",
            "slerp needs a t",
        ),
        (
            "merge_method: {search: {choice: {cabs: 7}}}\nmodels: [{model: org/a}]",
            "expected recipe keys that go with cabs",
        ),
        ("merge_method: {search: {choice: [7]}}\nmodels: [{model: org/a}]", "expected names of methods"),
        (
            "merge_method: {search: {choice: [ram, tise]}}\nbase_model: org/b\nmodels: [{model: org/a}]",
            "unknown method 'tise'",
        ),
    ],
)
def test_recipes_of_a_space_are_checked_before_any_is_tried(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_search(text, "r.yml")
