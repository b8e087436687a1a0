"""A method is its function: what signatures say, what they cannot say, and which methods activations may order."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest

from anabranch.engine.errors import RecipeError
from anabranch.engine.methods import (
    METHODS,
    SAME_FOR_ALL_TENSORS,
    Agreement,
    All,
    Band,
    Beyond,
    Blocks,
    CombinationMerge,
    Density,
    HasBase,
    Means,
    ModelThreshold,
    Parameter,
    PerModel,
    Random,
    Range,
    RankedRandom,
    Selection,
    TaskVectorMerge,
    Top,
    TopInTurn,
    Variance,
    Weight,
    Weights,
    merge_method,
)
from anabranch.engine.recipe.parse import parse_recipe

ROOT = Path(__file__).resolve().parents[3]
ORDERING = {Blocks, Top, TopInTurn, Band, ModelThreshold, RankedRandom}
"""Selections that follow an order of magnitudes."""
OTHERS = {Agreement, All, Random, Variance, Beyond}
"""Those that do not; Variance orders elements by how models differ."""


def test_a_signature_is_the_schema() -> None:
    @merge_method(base="optional", fewest=2)
    def mine(
        *,
        has_base: HasBase,
        density: Density,
        lambda_: float = 0.5,
        steps: Annotated[int, Range(1, 9), Means("how often")] = 3,
        mode: Annotated[Literal["up", "down"], SAME_FOR_ALL_TENSORS] = "up",
        flag: bool = True,
        share: PerModel[Annotated[float, Range(0, 1)]] = (0.25,),
    ) -> TaskVectorMerge[All | Top]:
        raise AssertionError("a schema is read without a call")

    schema = mine.schema
    assert (schema.name, schema.base, schema.fewest, schema.most, schema.differences) == (
        "mine",
        "optional",
        2,
        None,
        True,
    )
    assert schema.orders_magnitudes and not schema.writes_tasks
    assert schema.per_model == ["density", "share"]
    assert next(iter(schema.parameters.values())).meaning == "share of a tensor's elements to keep"
    assert list(schema.parameters.values())[1:] == [
        Parameter("lambda", "number", default=0.5),
        Parameter("steps", "integer", 1, 9, default=3, meaning="how often"),
        Parameter("mode", "choice", choices=("up", "down"), by_tensor=False, default="up"),
        Parameter("flag", "flag", default=True),
        Parameter("share", "number", 0, 1, per_model=True, default=0.25),
    ]
    assert schema.parameters["density"].default is None
    assert pickle.loads(pickle.dumps(schema)) == schema


def test_arguments_arrive_as_the_function_names_them() -> None:
    seen: dict[str, Any] = {}

    @merge_method(base="optional")
    def mine(*, apart: HasBase, weight: Weight = (1.0,), lambda_: float = 1.0) -> CombinationMerge:
        seen.update(apart=apart, weight=weight, lambda_=lambda_)
        return CombinationMerge(coefficients=Weights(), weights=weight)

    mine.make({"weight": (1.0, 2.0), "lambda": 3.0}, has_base=True)
    assert seen == {"apart": True, "weight": (1.0, 2.0), "lambda_": 3.0}


def test_another_return_than_the_signature_says_is_refused() -> None:
    @merge_method()
    def mine() -> TaskVectorMerge[Top]:
        return TaskVectorMerge(selection=All())  # type: ignore[arg-type]

    with pytest.raises(TypeError, match=r"it returned TaskVectorMerge\(.*and its signature says TaskVectorMerge, Top"):
        mine.make({}, has_base=True)


def test_signatures_that_no_recipe_can_follow() -> None:
    def returns_nothing():
        return None

    def selects_nothing() -> TaskVectorMerge:  # type: ignore[type-arg]
        raise AssertionError

    def takes_text(*, name: str = "x") -> TaskVectorMerge[All]:
        raise AssertionError

    for function in (returns_nothing, selects_nothing):
        with pytest.raises(TypeError, match="must say which stages it returns"):
            merge_method()(function)
    with pytest.raises(TypeError, match="name: expected bool, int, float, a Literal, Density, or PerModel of these"):
        merge_method()(takes_text)


@pytest.mark.parametrize("selection", [Blocks, Beyond])
def test_what_counts_in_a_byte_takes_so_many_models(selection: Any) -> None:
    def mine():
        raise AssertionError

    mine.__annotations__["return"] = TaskVectorMerge[selection]
    assert [merge_method(most=most)(mine).schema.most for most in (None, 2, 1000)] == [255, 2, 255]


@pytest.mark.parametrize("method", METHODS)
def test_activations_order_the_methods_that_choose_by_magnitude_and_no_others(method: str) -> None:
    schema = METHODS[method].schema
    models = ", ".join(f"{{model: m{i}}}" for i in range(schema.fewest))
    required = [name for name, parameter in schema.parameters.items() if parameter.default is None]
    text = f"merge_method: {method}\nmodels: [{models}]\nactivations: a.safetensors\n"
    text += "base_model: b\n" if schema.base == "required" else ""
    text += f"parameters: {{{', '.join(f'{name}: 0.5' for name in required)}}}\n"
    if ORDERING & set(METHODS[method].selections):
        assert parse_recipe(text, "r").activations == "a.safetensors"
        return
    with pytest.raises(RecipeError, match=f"{method} does not order changes by magnitude; these methods do: magnitude"):
        parse_recipe(text, "r")


def test_every_selection_is_known_to_order_or_not_to() -> None:
    assert set(get_args(Selection)) == ORDERING | OTHERS
    named = {"magnitude", "cabs", "ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties"}
    assert named <= {name for name, method in METHODS.items() if ORDERING & set(method.selections)}
