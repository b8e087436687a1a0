"""Recipes with slices and modules: what is read, what is refused and where, and the one canonical spelling."""

from __future__ import annotations

import pytest
import yaml

from anabranch.engine.errors import RecipeError
from anabranch.engine.plan.parameters import ParameterResolver
from anabranch.engine.recipe.canonical import canonical
from anabranch.engine.recipe.groups import groups_of
from anabranch.engine.recipe.parameters import Rule
from anabranch.engine.recipe.parse import parse_recipe
from anabranch.engine.recipe.schema import Recipe

SLICED = """\
merge_method: linear
slices:
  - sources:
      - {model: a, layer_range: [0, 4], parameters: {weight: 0.25}}
      - {model: b, layer_range: ["2", 6]}
    parameters: {weight: [{filter: mlp, value: [0, 1]}]}
  - sources:
      - {model: a, layer_range: [2, 3]}
parameters: {weight: 3}
"""

TIES = """\
merge_method: ties
base_model: base
slices:
  - sources:
      - {model: m, layer_range: [0, 2]}
      - {model: base, layer_range: [1, 3]}
      - {model: n, layer_range: [4, 6], parameters: {density: 0.25}}
parameters: {density: 0.5}
"""


def message(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yml")
    return str(caught.value)


def test_ranges_and_parameters_are_read() -> None:
    recipe = parse_recipe(SLICED, "r.yml")
    first, second = recipe.slices
    assert [source.layer_range for source in first.sources] == [(0, 4), (2, 6)]
    assert (first.length, second.length) == (4, 1)
    assert first.sources[0].parameters == {"weight": (Rule(0.25),)}
    assert first.parameters == {"weight": (Rule((0.0, 1.0), "mlp"),)}
    assert recipe.models == ()


def test_a_source_comes_before_its_slice_and_the_slice_before_the_recipe() -> None:
    recipe = parse_recipe(SLICED, "r.yml")
    first, second = (ParameterResolver(recipe, group) for group in groups_of(recipe))
    mlp, attention = "model.layers.3.mlp.w", "model.layers.3.self_attn.w"
    assert [first.model(0, name, 0.5)[0] for name in (mlp, attention)] == [0.25, 0.25]
    assert [first.model(1, name, 0.5)[0] for name in (mlp, attention)] == [0.5, 3.0]
    assert [second.model(0, name, 0.5)[0] for name in (mlp, attention)] == [3.0, 3.0]


def test_the_base_of_a_slice_is_no_model_to_merge_but_its_layers_are_known() -> None:
    (group,) = groups_of(parse_recipe(TIES, "r.yml"))
    assert [entry.model for entry in group.entries] == ["m", "n"]
    assert group.base is not None and group.base.layer_range == (1, 3)
    assert [group.entry_path(i) for i in (0, 1)] == [("slices", 0, "sources", 0), ("slices", 0, "sources", 2)]


def test_a_module_means_what_its_content_means_at_the_top() -> None:
    inside = SLICED.split("slices:", 1)[1].split("parameters: {weight: 3}", maxsplit=1)[0]
    indented = "".join(f"    {line}\n" for line in f"slices:{inside}".splitlines())
    text = f"merge_method: linear\nmodules:\n  default:\n{indented}    parameters: {{weight: 3}}\n"
    assert parse_recipe(text, "m.yml") == parse_recipe(SLICED, "r.yml")
    whole = "merge_method: linear\nmodules: {text_decoder: {models: [{model: a}], parameters: {weight: 2}}}"
    assert canonical(parse_recipe(whole, "m"))["models"] == [{"model": "a", "parameters": {"weight": 2.0}}]


def test_a_module_comes_before_the_recipe() -> None:
    rules = "[{filter: mlp, value: 2}]"
    text = f"merge_method: linear\nmodules: {{default: {{models: [{{model: a}}], parameters: {{weight: {rules}}}}}}}\n"
    recipe = parse_recipe(text + "parameters: {weight: 3}", "m")
    assert recipe.parameters["weight"] == (Rule(2.0, "mlp"), Rule(3.0))


@pytest.mark.parametrize("text", [SLICED, TIES])
def test_the_canonical_recipe_is_a_recipe_that_says_the_same(text: str) -> None:
    told = canonical(parse_recipe(text, "r.yml"))
    again = parse_recipe(yaml.safe_dump(told), "again")
    assert canonical(again) == told
    assert told == canonical(Recipe.model_copy(parse_recipe(f"# a comment\n{text}", "other")))


def test_the_canonical_recipe_has_every_value_where_it_counts() -> None:
    first, second = canonical(parse_recipe(SLICED, "r"), {"a": "/x/a", "b": "/x/b"})["slices"]
    weights = [source["parameters"]["weight"] for source in first["sources"]]
    assert weights == [0.25, [{"filter": "mlp", "value": [0.0, 1.0]}, {"value": 3.0}]]
    assert [source["model"] for source in first["sources"]] == ["/x/a", "/x/b"]
    assert second["sources"] == [{"model": "/x/a", "parameters": {"weight": 3.0}, "layer_range": [2, 3]}]
    assert second["parameters"] == {"normalize": True}
    sources = canonical(parse_recipe(TIES, "r"))["slices"][0]["sources"]
    assert [source.get("parameters") for source in sources] == [
        {"weight": 1.0, "density": 0.5},
        None,
        {"weight": 1.0, "density": 0.25},
    ]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[0, 4]", "[4, 0]", "r.yml:4: slices[0].sources[0].layer_range: expected [first, end] with 0 <= first < end"),
        ("[0, 4]", "[0, 4.5]", "layer_range: expected [first, end] with 0 <= first < end"),
        ("[0, 4]", "4", "layer_range: expected [first, end]"),
        ('["2", 6]', "[2, 5]", "r.yml:5: slices[0].sources[1].layer_range: has 3 layers, the first source has 4"),
        (", layer_range: [2, 3]", "", "r.yml:8: slices[1].sources[0].layer_range: the key is missing"),
        (
            "layer_range: [2, 3]",
            "layers: [2, 3]",
            "layers: unknown key; expected one of model, adapter, parameters, activations,",
        ),
        (
            "  - sources:\n      - {model: a, layer_range: [2, 3]}",
            "  - {sources: []}",
            "slices[1].sources: expected at",
        ),
        ("weight: 0.25", "wieght: 0.25", "r.yml:4: slices[0].sources[0].parameters.wieght: unknown parameter"),
        ("weight: 0.25", "normalize: true", "sources[0].parameters.normalize: normalize is the same for all models"),
        (
            "    parameters: {weight: [",
            "    base: a\n    parameters: {weight: [",
            "slices[0].base: unknown key; expected",
        ),
        (
            "    parameters: {weight: [",
            "    residual_weight: 1\n    parameters: {weight: [",
            "residual_weight: not supp",
        ),
        ("parameters: {weight: 3}", "models: [{model: a}]", "slices: a recipe has one of models, slices, modules"),
        (
            "parameters: {weight: 3}",
            "tokenizer: {tokens: {x: {source: c}}}",
            "expected a model of this recipe as the source of a token's row, got 'c'",
        ),
    ],
)
def test_what_is_wrong_with_a_slice_is_said_with_its_line(old: str, new: str, words: str) -> None:
    assert old in SLICED
    assert words in message(SLICED.replace(old, new))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            TIES.replace("base_model: base\n", ""),
            "r.yml:3: slices[0]: base_model is missing, here and at the top; ties",
        ),
        (TIES.replace("model: base,", "model: c,"), "sources: the base model 'base' is not among the sources"),
        (TIES.replace("model: n,", "model: base,"), "the base model 'base' is 2 times among the sources"),
        (
            "merge_method: ties\nbase_model: m\nslices: [{sources: [{model: m, layer_range: [0, 1]}]}]",
            "besides the base",
        ),
        ("merge_method: linear\nslices: []", "r.yml:2: slices: the list is empty; expected at least one slice"),
        ("merge_method: linear", "models: the key is missing; models, slices or modules say what is merged"),
        (
            (
                "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 1]}, "
                "{model: b, layer_range: [0, 1]}]}]"
            ),
            "slices[0].sources: expected exactly one model to merge, got 2",
        ),
        (
            "merge_method: linear\nmodules: {text_decoder: {models: [{model: a}]}, vision_tower: {models: []}}",
            (
                "r.yml:2: modules: expected one module that is the whole language model, default or text_decoder, "
                "got text_decoder, vision_tower; other modules are not supported"
            ),
        ),
        ("merge_method: linear\nmodules: {encoder: {models: [{model: a}]}}", "got encoder; other modules"),
        (
            "merge_method: linear\nmodules: {default: {}}",
            "modules.default: expected either models or slices, got neither",
        ),
        ("merge_method: linear\nmodules: {default: 1}", "modules.default: expected a mapping with slices or models"),
        (
            "merge_method: linear\nmodules: {default: {models: [{model: a}], slices: [{sources: []}]}}",
            "modules.default: expected either models or slices, got both",
        ),
        (
            "merge_method: linear\nmodules: {default: {model: []}}",
            "modules.default.model: unknown key; expected one of",
        ),
        (
            "merge_method: linear\nmodules:\n  default:\n    models:\n      - {model: a, weight: 1}",
            "r.yml:5: modules.default.models[0].weight: unknown key",
        ),
        (
            "merge_method: linear\nmodules: {default: {models: [{model: a}], parameters: {density: 1}}}",
            "modules.default.parameters.density: linear takes no density",
        ),
    ],
)
def test_what_is_wrong_with_bases_and_modules_is_said_with_its_line(text: str, words: str) -> None:
    assert words in message(text)


def test_a_slice_may_have_a_base_of_its_own() -> None:
    text = TIES.replace("base_model: base\n", "").replace("  - sources:", "  - base_model: base\n    sources:")
    recipe = parse_recipe(text, "r")
    assert recipe.has_base and recipe.merges_differences
    assert canonical(recipe)["slices"][0]["base_model"] == "base"
