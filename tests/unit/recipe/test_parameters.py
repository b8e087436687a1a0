"""Parameters of one tensor and one model: precedence, gradients and filters, worked by hand."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.engine.errors import RecipeError
from anabranch.engine.methods import METHODS, Blocks, TadropDensity, TaskVectorMerge
from anabranch.engine.plan.parameters import (
    ParameterResolver,
    count_layers,
    interpolate,
    layer_of,
    layer_position,
)
from anabranch.engine.recipe.groups import groups_of
from anabranch.engine.recipe.parse import parse_recipe
from anabranch.engine.recipe.schema import Recipe


class Resolver:
    """Values by tensor name in a model with so many layers."""

    def __init__(self, recipe: Recipe, num_layers: int) -> None:
        self._resolver = ParameterResolver(recipe, groups_of(recipe)[0])
        self._schema = recipe.method
        self._counts = {"model.layers": num_layers}

    def model(self, index: int, name: str) -> SimpleNamespace:
        values = self._resolver.model(index, name, layer_position(name, self._counts))
        return SimpleNamespace(**dict(zip(self._schema.per_model, values, strict=True)))

    def shared(self, name: str) -> SimpleNamespace:
        values = self._resolver.shared(name, layer_position(name, self._counts))
        return SimpleNamespace(**dict(zip(self._schema.shared, values, strict=True)))

    def method(self, name: str) -> Any:
        """The stages that the method makes of these values, for one model."""
        values = vars(self.shared(name)) | {key: (value,) for key, value in vars(self.model(0, name)).items()}
        return METHODS[self._schema.name].make(values, has_base=True)


def resolver(models: str, parameters: str = "{}", method: str = "ties", num_layers: int = 5) -> Resolver:
    text = f"merge_method: {method}\nmodels: {models}\nparameters: {parameters}\n"
    text += "base_model: base\n" if METHODS[method].schema.base == "required" else ""
    return Resolver(parse_recipe(text, "r"), num_layers)


ATTENTION = "model.layers.1.self_attn.q_proj.weight"
MLP = "model.layers.3.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def test_defaults_of_a_method() -> None:
    found = resolver("[{model: m}]")
    assert vars(found.model(0, MLP)) == {"weight": 1.0, "density": 1.0}
    rest = {"rescale": False, "rescale_norm": "l1"}
    assert vars(found.shared(MLP)) == {"normalize": True, "scope": "tensor", "lambda": 1.0} | rest


def test_a_model_comes_before_the_recipe() -> None:
    found = resolver("[{model: m, parameters: {weight: 0.5}}, {model: n}]", "{weight: 2, density: 0.25}")
    assert found.model(0, MLP) == SimpleNamespace(weight=0.5, density=0.25)
    assert found.model(1, MLP) == SimpleNamespace(weight=2.0, density=0.25)


def test_the_first_filter_that_matches_wins() -> None:
    found = resolver(
        """
        - model: m
          parameters:
            weight:
              - {filter: up_proj, value: 0.1}
              - {filter: mlp, value: 0.2}
              - {value: 0.3}
        """,
    )
    assert found.model(0, MLP).weight == 0.1
    assert found.model(0, "model.layers.3.mlp.down_proj.weight").weight == 0.2
    assert found.model(0, ATTENTION).weight == 0.3


def test_filters_fall_through_to_the_recipe_and_then_to_the_default() -> None:
    found = resolver(
        "[{model: m, parameters: {weight: [{filter: mlp, value: 0.1}]}}]",
        "{weight: {filter: self_attn, value: 0.2}}",
    )
    assert found.model(0, MLP).weight == 0.1
    assert found.model(0, ATTENTION).weight == 0.2
    assert found.model(0, EMBEDDING).weight == 1.0


def test_a_filter_is_case_sensitive_text_not_a_pattern() -> None:
    found = resolver("[{model: m, parameters: {weight: [{filter: 'mlp.*', value: 0.1}, {filter: MLP, value: 0.2}]}}]")
    assert found.model(0, MLP).weight == 1.0


def test_a_gradient_by_hand() -> None:
    found = resolver("[{model: m, parameters: {weight: [0.0, 1.0, 0.0], density: [1.0, 0.0]}}]")
    values = [found.model(0, f"model.layers.{i}.mlp.up_proj.weight") for i in range(5)]
    assert [value.weight for value in values] == [0.0, 0.5, 1.0, 0.5, 0.0]
    assert [value.density for value in values] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_gradient_inside_a_filter() -> None:
    found = resolver(
        "[{model: m, parameters: {weight: [{filter: mlp, value: [0, 4]}, {filter: attn, value: [8, 0]}]}}]"
    )
    assert found.model(0, MLP).weight == 3.0  # layer 3 of 5: three quarters of the way
    assert found.model(0, ATTENTION).weight == 6.0  # layer 1 of 5: one quarter
    assert found.model(0, EMBEDDING).weight == 1.0


def test_outside_the_layers_a_gradient_begins() -> None:
    found = resolver("[{model: m, parameters: {weight: [0.25, 0.75]}}]")
    for name in (EMBEDDING, "model.norm.weight", "lm_head.weight"):
        assert found.model(0, name).weight == 0.25


def test_the_only_layer_takes_the_end_of_a_gradient() -> None:
    found = resolver("[{model: m, parameters: {weight: [0.25, 0.75]}}]", num_layers=1)
    assert found.model(0, "model.layers.0.mlp.weight").weight == 0.75
    assert found.model(0, EMBEDDING).weight == 0.25


def test_lambda_may_be_a_gradient_and_normalize_may_be_filtered() -> None:
    found = resolver("[{model: m}]", "{lambda: [0, 1], normalize: [{filter: mlp, value: false}]}")
    assert (vars(found.shared(MLP))["lambda"], found.shared(MLP).normalize) == (0.75, False)
    assert (vars(found.shared(ATTENTION))["lambda"], found.shared(ATTENTION).normalize) == (0.25, True)


def test_tadrop_for_some_tensors() -> None:
    found = resolver(
        "[{model: m, parameters: {density: [{filter: mlp, value: {tadrop: {mean: 0.25}}}, {value: 0.5}]}}]"
    )
    assert found.model(0, MLP).density == TadropDensity(mean=0.25, spread=0.1, statistic="participation")
    assert found.model(0, ATTENTION).density == 0.5


def test_the_base_is_not_counted() -> None:
    found = resolver("[{model: base}, {model: m, parameters: {weight: 3}}]")
    assert found.model(0, MLP).weight == 3.0


@pytest.mark.parametrize(
    ("method", "parameters", "rescale"),
    [
        ("ties", "{}", "none"),
        ("ties", "{rescale: true}", "l1"),
        ("ties", "{rescale: true, rescale_norm: none}", "density"),
        ("dare_linear", "{}", "density"),
        ("dare_ties", "{rescale_norm: l1}", "l1"),
        ("breadcrumbs", "{rescale: true}", "l1"),
        ("della", "{}", "density"),
        ("della_linear", "{rescale_norm: l1}", "l1"),
        ("dare_ties", "{rescale_norm: l2}", "l2"),
        ("dare_linear", "{rescale: false}", "none"),
        ("task_arithmetic", "{rescale: true}", "none"),
        ("magnitude", "{density: 1, rescale: true}", "density"),
    ],
)
def test_rescale_and_its_norm_are_one_value(method: str, parameters: str, rescale: str) -> None:
    assert resolver("[{model: m}]", parameters, method).method(MLP).rescale == rescale


def test_linear_takes_weights_and_nothing_else() -> None:
    found = resolver("[{model: m}, {model: n, parameters: {weight: 3}}]", method="linear")
    assert [found.model(i, MLP).weight for i in (0, 1)] == [1.0, 3.0]
    assert vars(found.shared(MLP)) == {"normalize": True}


def test_cabs_options_reach_the_merge() -> None:
    parameters = "{density: 0.5, block: 32, tail: drop, overlap: never, overlap_merge: ties}"
    found = resolver("[{model: m}]", parameters, "cabs").method(MLP)
    selection = Blocks((0.5,), 32, drop_tail=True, overlap_never=True)
    assert found == TaskVectorMerge(selection=selection, weights=(1.0,), consensus="overlap_ties")


def test_gamma_and_epsilon_are_per_model() -> None:
    found = resolver("[{model: m, parameters: {gamma: 0.05}}, {model: n}]", method="breadcrumbs")
    assert [found.model(i, MLP).gamma for i in (0, 1)] == [0.05, 0.01]
    found = resolver("[{model: m}, {model: n, parameters: {epsilon: 0.2}}]", method="della")
    assert [found.model(i, MLP).epsilon for i in (0, 1)] == [0.15, 0.2]


def test_a_tensor_without_a_density_is_refused_by_name() -> None:
    found = resolver("[{model: m, parameters: {density: [{filter: mlp, value: 0.3}]}}]", method="cabs")
    assert found.model(0, MLP).density == 0.3
    with pytest.raises(RecipeError, match=r"density has no value for tensor 'model\.embed.* of model 'm'") as caught:
        found.model(0, EMBEDDING)
    assert "Add an entry without a filter" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        (MLP, ("model.layers", 3)),
        ("transformer.h.11.attn.c_attn.weight", ("transformer.h", 11)),
        ("model.layers.7.mlp.experts.3.up_proj.weight", ("model.layers", 7)),
        ("encoder.layer.0.output", ("encoder.layer", 0)),
        ("0.weight", ("", 0)),
        (EMBEDDING, None),
        ("layer3.conv1", None),
        ("layers.\u0663.x", None),
        ("layers.\u00b2.x", None),
        ("", None),
    ],
)
def test_the_layer_of_a_tensor(name: str, layer: tuple[str, int] | None) -> None:
    assert layer_of(name) == layer


def test_layers_are_counted_up_to_the_largest() -> None:
    assert count_layers([EMBEDDING, MLP, ATTENTION]) == {"model.layers": 4}
    assert count_layers([EMBEDDING]) == count_layers([]) == {}


def test_digits_without_end_are_no_layer() -> None:
    name = f"model.layers.{'9' * 5000}.w"
    assert layer_of(name) is None
    assert layer_position(name, count_layers([name])) == 0.0


def test_each_stack_of_layers_has_a_gradient_of_its_own() -> None:
    names = [f"{stack}.{i}.w" for stack, count in (("encoder", 5), ("decoder", 3), ("head", 1)) for i in range(count)]
    counts = count_layers(names)
    assert counts == {"encoder": 5, "decoder": 3, "head": 1}
    assert [layer_position(name, counts) for name in names] == [0.0, 0.25, 0.5, 0.75, 1.0, 0.0, 0.5, 1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.integers(1, 200))
def test_gradients_stay_between_their_numbers_and_meet_the_ends(numbers: list[float], num_layers: int) -> None:
    gradient = tuple(numbers)
    positions = [layer_position(f"layers.{i}.w", {"layers": num_layers}) for i in range(num_layers)]
    values = [interpolate(gradient, position) for position in positions]
    assert values[-1] == gradient[-1]
    assert num_layers == 1 or values[0] == gradient[0]
    assert all(min(gradient) - 1e-15 <= value <= max(gradient) + 1e-15 for value in values)
    assert all(0.0 <= value <= 1.0 for value in values)


def test_many_tensors_are_quick() -> None:
    """A fifth of 100,000 tensors of 5 models, which take a second; the bound leaves room for a busy core."""
    density = "[{filter: self_attn, value: 0.1}, {value: [0, 1]}]"
    entry = f"{{model: m, parameters: {{weight: [0, 1], density: {density}}}}}"
    found = resolver(f"[{', '.join([entry] * 5)}]", num_layers=100)
    names = [f"model.layers.{i % 100}.mlp.experts.{i}.up_proj.weight" for i in range(20_000)]
    started = time.process_time()
    for name in names:
        found.shared(name)
        for index in range(5):
            found.model(index, name)
    assert time.process_time() - started < 2.5
