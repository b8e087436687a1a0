"""Recipes that are right: what they mean, their canonical form, where models lie."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from anabranch.engine.errors import RecipeError
from anabranch.engine.methods import METHODS, Parameter
from anabranch.engine.methods.tadrop import TadropDensity
from anabranch.engine.models.references import ModelUrl, resolve_model, resolve_model_url
from anabranch.engine.recipe.canonical import canonical
from anabranch.engine.recipe.groups import groups_of
from anabranch.engine.recipe.parameters import TADROP, Rule
from anabranch.engine.recipe.parse import load_recipe, load_search, parse_recipe
from anabranch.engine.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parents[3]

CABS = """
merge_method: cabs
base_model: base
models:
  - model: math
    parameters: {weight: 1.2}
  - {model: code}
parameters: {density: 0.25}
"""


def recipe_with(extra: str) -> Recipe:
    return parse_recipe(CABS + extra, "r.yml")


def test_the_design_example_means_what_it_says() -> None:
    recipe = parse_recipe(
        """
merge_method: cabs
base_model: s3://models/base-30b
models:
  - model: s3://models/math-30b
    parameters: {weight: 1.2}
  - model: s3://models/code-30b
    parameters:
      weight: 1.2
      density:
        - {filter: mlp, value: 0.3}
        - {value: 0.2}
parameters:
  density: {tadrop: {mean: 0.25}}
  block: 256
exclude: ["*.embed_tokens.*"]
out_dtype: bfloat16
output: {shard_size: 2GB}
""",
        "r.yml",
    )
    assert [entry.model for entry in recipe.models] == ["s3://models/math-30b", "s3://models/code-30b"]
    assert recipe.models[1].parameters["density"] == (Rule(0.3, "mlp"), Rule(0.2))
    assert recipe.parameters["density"] == (Rule(TadropDensity(mean=0.25, spread=0.1)),)
    assert recipe.output.shard_size_bytes == 2_000_000_000
    assert recipe.output_dtype == "BF16"
    assert recipe.excludes("model.embed_tokens.weight")
    assert not recipe.excludes("lm_head.weight")


@pytest.mark.parametrize(
    "name", ["math_v1.5-x", "7", "\u00e9t\u00e9", "e\u0301te\u0301", "\u092e\u0949\u0921\u0932", "a" * 100]
)
def test_names_have_letters_of_any_script(name: str) -> None:
    """Marks that belong to letters, as accents and vowels of many scripts do, are part of them."""
    assert recipe_with(f"name: {json.dumps(name)}").name == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "a\n", "\u200b", "a" * 101])
def test_names_that_are_none_of_a_folder(name: str) -> None:
    with pytest.raises(RecipeError, match="name: expected"):
        recipe_with(f"name: {json.dumps(name)}")


def test_a_recipe_is_frozen_and_travels_to_workers() -> None:
    recipe = recipe_with("")
    with pytest.raises(ValidationError):
        recipe.seed = 1
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_dtype_is_the_output_dtype_when_there_is_no_other() -> None:
    assert recipe_with("").output_dtype is None
    assert recipe_with("dtype: torch.float16").output_dtype == "F16"
    assert recipe_with("dtype: float32\nout_dtype: bfloat16").output_dtype == "BF16"


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("2GB", 2 * 10**9),
        ("500MB", 500 * 10**6),
        ("1GiB", 2**30),
        ("1.5 GiB", 3 * 2**29),
        ("3kib", 3 * 2**10),
        ("1000", 1000),
        ("'1000'", 1000),
        ("1B", 1),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert recipe_with(f"output: {{shard_size: {text}}}").output.shard_size_bytes == size_bytes


def test_the_base_among_the_models_is_no_task_vector(caplog: pytest.LogCaptureFixture) -> None:
    text = "merge_method: ties\nbase_model: b\nmodels: [{model: b%s}, {model: m}]"
    with caplog.at_level(logging.WARNING):
        assert [entry.model for entry in parse_recipe(text % "", "r").models] == ["m"]
        assert caplog.text == ""
        assert [entry.model for entry in parse_recipe(text % ", parameters: {weight: 2}", "r").models] == ["m"]
    assert "parameters of 'b' have no effect" in caplog.text


def test_linear_keeps_the_base_among_its_models() -> None:
    recipe = parse_recipe("merge_method: linear\nbase_model: b\nmodels: [{model: b}, {model: m}]", "r")
    assert [entry.model for entry in recipe.models] == ["b", "m"]


def test_the_same_model_may_be_listed_twice() -> None:
    recipe = parse_recipe("merge_method: ties\nbase_model: b\nmodels: [{model: m}, {model: m}]", "r")
    assert [entry.model for entry in recipe.models] == ["m", "m"]


def test_a_mergekit_recipe_runs_as_it_is() -> None:
    recipe = parse_recipe(
        """
models:
  - model: psmathur/orca_mini_v3_13b
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: WizardLM/WizardMath-13B-V1.0
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: TheBloke/Llama-2-13B-fp16
parameters:
  normalize: true
  int8_mask: true
dtype: float16
tokenizer_source: base
name: wizard-orca
""",
        "r.yml",
    )
    assert recipe.models[0].parameters["density"] == (Rule((1.0, 0.7, 0.1)),)
    assert recipe.models[1].parameters["weight"] == (Rule(0.5, "mlp"), Rule(0.0))
    assert "int8_mask" not in recipe.parameters


def test_one_condition_without_a_list_and_the_star_filter() -> None:
    recipe = recipe_with("").model_copy()
    text = CABS.replace("{density: 0.25}", "{density: {filter: '*', value: 0.25}}")
    assert canonical(parse_recipe(text, "r")) == canonical(recipe)


def test_anchors_aliases_and_merge_keys() -> None:
    recipe = parse_recipe(
        """
merge_method: ties
base_model: b
models:
  - model: m
    parameters: &common {weight: 0.3, density: 0.5}
  - model: n
    parameters: {<<: *common, weight: 0.7}
  - {model: o, parameters: *common}
""",
        "r",
    )
    assert [entry.parameters["weight"] for entry in recipe.models] == [
        (Rule(0.3),),
        (Rule(0.7),),
        (Rule(0.3),),
    ]
    assert [entry.parameters["density"] for entry in recipe.models] == [(Rule(0.5),)] * 3


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("1E+2", 100.0), (".5", 0.5), ("010", 10.0), ("-2", -2.0)]
)
def test_numbers_are_those_of_yaml_1_2(text: str, value: float) -> None:
    recipe = parse_recipe(CABS.replace("1.2", text), "r")
    assert recipe.models[0].parameters["weight"] == (Rule(value),)


# --- canonical


def test_canonical_fills_in_defaults() -> None:
    assert canonical(recipe_with("")) == {
        "merge_method": "cabs",
        "base_model": "base",
        "models": [
            {"model": "math", "parameters": {"weight": 1.2, "density": 0.25}},
            {"model": "code", "parameters": {"weight": 1.0, "density": 0.25}},
        ],
        "parameters": {
            "lambda": 1.0,
            "normalize": False,
            "rescale": False,
            "rescale_norm": "none",
            "block": 256,
            "tail": "keep",
            "overlap": "allow",
            "overlap_merge": "sum",
        },
        "exclude": [],
        "seed": 0,
        "nonfinite": "error",
        "overflow": "error",
        "strict": False,
        "extra_tensors": "error",
        "vocab": "error",
        "output": {"shard_size": 2_000_000_000},
    }


@pytest.mark.parametrize(
    "extra",
    [
        "name: anything",
        "seed: 0",
        "tokenizer_source:",
        "tokenizer:",
        "chat_template:",
        "output: {shard_size: 2000MB}",
        "output: {}",
        "exclude: []",
        "strict: no",
    ],
)
def test_canonical_is_equal_for_the_same_thing_in_other_words(extra: str) -> None:
    assert canonical(recipe_with(extra)) == canonical(recipe_with(""))


def test_canonical_does_not_depend_on_where_a_setting_stands() -> None:
    everywhere = "merge_method: ties\nbase_model: b\nmodels: [{model: m}]\nparameters: {density: 0.5, int8_mask: true}"
    for_one = "merge_method: ties\nbase_model: b\nmodels: [{model: m, parameters: {density: [0.5, 0.5]}}]"
    assert canonical(parse_recipe(everywhere, "r")) == canonical(parse_recipe(for_one, "r"))
    assert json.dumps(canonical(parse_recipe(everywhere, "r"))) == json.dumps(canonical(parse_recipe(for_one, "r")))


@pytest.mark.parametrize(
    "extra",
    [
        "seed: 1",
        "exclude: [a]",
        "output: {shard_size: 1GB}",
        "out_dtype: bfloat16",
        "nonfinite: keep-base",
        "overflow: saturate",
        "strict: true",
        "extra_tensors: ignore",
        "vocab: intersect",
        "tokenizer_source: base",
        "tokenizer_source: code",
        "tokenizer_source: union",
        "tokenizer: {tokens: {x: {source: {kind: zero}}}}",
        "chat_template: auto",
    ],
)
def test_canonical_differs_when_the_output_may_differ(extra: str) -> None:
    assert canonical(recipe_with(extra)) != canonical(recipe_with(""))


def test_canonical_takes_urls_in_place_of_references() -> None:
    urls = {"base": "/m/base", "math": "/m/math", "code": "/m/code"}
    tokens = "{x: {source: math, force: true}, y: {source: {kind: model_token, model: base, token: a}}}"
    result = canonical(recipe_with(f"tokenizer: {{source: code, tokens: {tokens}}}"), urls)
    assert result["base_model"] == "/m/base"
    assert [entry["model"] for entry in result["models"]] == ["/m/math", "/m/code"]
    assert result["tokenizer"] == {
        "source": "/m/code",
        "tokens": {
            "x": {"source": "/m/math", "force": True},
            "y": {"source": {"kind": "model_token", "model": "/m/base", "token": "a"}, "force": False},
        },
        "pad_to_multiple_of": None,
        "embeddings": [],
    }


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("tokenizer_source: base", "tokenizer: {source: base}"),
        ("tokenizer_source: base", "tokenizer_source: base\ntokenizer:"),
        ("tokenizer_source: base", "tokenizer: {source: base, tokens: {}, pad_to_multiple_of: null, embeddings: []}"),
        ("tokenizer_source: union", "tokenizer: {}"),
        ("tokenizer: {tokens: {x: {source: math}}}", "tokenizer: {tokens: {x: {force: no, source: math}}}"),
        ("tokenizer: {pad_to_multiple_of: 64}", "tokenizer: {pad_to_multiple_of: '64'}"),
        (
            "tokenizer: {tokens: {x: {source: {kind: model_token, model: math, token_id: 7}}}}",
            "tokenizer: {tokens: {x: {source: {kind: model_token, model: math, token_id: '7'}}}}",
        ),
        (
            "tokenizer: {tokens: {x: {source: math, force: yes}}}",
            "tokenizer: {tokens: {x: {source: math, force: '1'}}}",
        ),
    ],
)
def test_the_same_vocabulary_in_other_words(one: str, two: str) -> None:
    urls = {"base": "/m/base", "math": "/m/math", "code": "/m/code"}
    assert canonical(recipe_with(one), urls) == canonical(recipe_with(two), urls)
    again = parse_recipe(yaml.safe_dump(canonical(recipe_with(one))), "r")
    assert canonical(again) == canonical(recipe_with(one))


def test_the_base_by_its_name_is_the_base() -> None:
    assert canonical(recipe_with("tokenizer_source: base")) == canonical(
        recipe_with("tokenizer: {source: ./base}"), {"base": "base", "./base": "base", "math": "math", "code": "code"}
    )


def values_of(parameter: Parameter) -> st.SearchStrategy[Any]:
    match parameter.kind:
        case "flag":
            return st.booleans()
        case "choice":
            return st.sampled_from(parameter.choices)
        case "integer":
            return st.integers(int(parameter.lowest), int(parameter.highest))
        case _:
            number = st.floats(parameter.lowest, parameter.highest) | st.integers(0, 1)
            value = number | st.lists(number, min_size=1, max_size=4)
            return value | tadrop_values() if parameter.kind == "density" else value


def tadrop_values() -> st.SearchStrategy[Any]:
    statistic = {"statistic": st.sampled_from(TADROP["statistic"].choices)}
    of_mean = {"spread": st.floats(0, 1), "mean_of": st.sampled_from(TADROP["mean_of"].choices)}
    with_mean = st.fixed_dictionaries({"mean": st.floats(0.01, 1)}, optional=of_mean | statistic)
    return st.fixed_dictionaries({"tadrop": st.fixed_dictionaries({}, optional=statistic) | with_mean})


def settings_of(parameter: Parameter) -> st.SearchStrategy[Any]:
    value = values_of(parameter)
    if not parameter.by_tensor:
        return value
    rule = st.fixed_dictionaries({"filter": st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1)})
    rules = st.lists(st.tuples(rule, value).map(lambda pair: {**pair[0], "value": pair[1]}), min_size=1, max_size=3)
    with_default = st.tuples(rules, value).map(lambda pair: [*pair[0], {"value": pair[1]}])
    return value | rules | with_default


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    method = draw(st.sampled_from(list(METHODS)))
    schema = METHODS[method].schema
    models = draw(st.integers(schema.fewest, min(schema.most or 3, 3)))

    def parameters(names: list[str], required: list[str]) -> dict[str, Any]:
        chosen = {name for name in names if draw(st.booleans())} | set(required)
        return {name: draw(settings_of(schema.parameters[name])) for name in names if name in chosen}

    names = list(schema.parameters)
    data: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": f"m{i}", "parameters": parameters(schema.per_model, [])} for i in range(models)],
        "parameters": parameters(names, [name for name in names if schema.parameters[name].default is None]),
        "exclude": draw(
            st.lists(
                st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), min_size=1),
                max_size=3,
            )
        ),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "strict": draw(st.booleans()),
        "output": {"shard_size": draw(st.integers(1, 2**40))},
    }
    if schema.base == "required":
        data["base_model"] = "base"
    return without_contradictions(data)


def without_contradictions(data: dict[str, Any]) -> dict[str, Any]:
    shared = data["parameters"]
    if "rescale_norm" in shared:
        shared["rescale"] = True
    if "overlap_merge" in shared:
        shared.pop("normalize", None)
    if shared.get("scope") == "model":
        shared["density"] = 0.5
        for entry in data["models"]:
            entry["parameters"].pop("density", None)
    return data


@given(recipes())
def test_canonical_is_a_recipe_with_the_same_canonical_form(data: dict[str, Any]) -> None:
    recipe = parse_recipe(json.dumps(data), "r")
    once = canonical(recipe)
    again = canonical(parse_recipe(json.dumps(once), "canonical"))
    assert again == once
    assert json.dumps(again) == json.dumps(once)


# --- files and references


def test_load_recipe_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yml"
    path.write_bytes(b"\xef\xbb\xbf" + CABS.encode())
    assert load_recipe(path) == recipe_with("")
    assert load_recipe(str(path)) == recipe_with("")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"merge_method: \xff", "UTF-8 text; byte 14 is not"),
        (b"#" * (1 << 20) + b"\n", "at most 1048576 bytes"),
        (None, "cannot read the recipe: No such file"),
    ],
)
def test_load_recipe_refuses_what_is_no_recipe(data: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe(path)
    assert "r.yml" in str(caught.value)


def test_models_are_found_from_the_working_directory_then_from_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, recipes_here = tmp_path / "work", tmp_path / "recipes"
    for folder in (work / "both", work / "org" / "model", recipes_here / "both", recipes_here / "beside"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(work)
    assert resolve_model_url("both", recipes_here) == str(work / "both")
    assert resolve_model_url("./both/../both/", recipes_here) == str(work / "both")
    assert resolve_model_url("beside", recipes_here) == str(recipes_here / "beside")
    assert resolve_model_url("org/model", recipes_here) == str(work / "org" / "model")
    assert resolve_model_url(str(work / "both"), Path("elsewhere")) == str(work / "both")


@pytest.mark.parametrize(
    ("reference", "url"),
    [
        ("s3://bucket/folder", "s3://bucket/folder"),
        ("hf://owner/name@main", "hf://owner/name@main"),
        ("memory://x", "memory://x"),
        ("owner/name", "hf://owner/name"),
        ("Owner-1/name_2.5@v1.0", "hf://Owner-1/name_2.5@v1.0"),
    ],
)
def test_urls_and_hub_names(reference: str, url: str, tmp_path: Path) -> None:
    assert resolve_model_url(reference, tmp_path) == url


@pytest.mark.parametrize("reference", ["name", "./owner/name", "/no/such", "a/b/c", "../owner", "owner/na me"])
def test_a_model_that_does_not_exist(reference: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist") as caught:
        resolve_model_url(reference, tmp_path)
    assert str(tmp_path) in caught.value.hint


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(RecipeError, match=r"expected a directory .* got a file"):
        resolve_model_url("model.safetensors", tmp_path)


@pytest.mark.parametrize(
    ("reference", "base", "adapter"),
    [
        ("owner/name+owner/adapter", "hf://owner/name", "hf://owner/adapter"),
        ("owner/name@main+owner/adapter@v1", "hf://owner/name@main", "hf://owner/adapter@v1"),
        ("s3://bucket/base+s3://bucket/lora", "s3://bucket/base", "s3://bucket/lora"),
        ("s3://bucket/ba+se+owner/lora", "s3://bucket/ba+se", "hf://owner/lora"),
        ("owner/name+here", "hf://owner/name", "HERE/here"),
        ("c++/model+c++/lora", "HERE/c++/model", "HERE/c++/lora"),
        ("c++/model", "HERE/c++/model", None),
        ("a+b", "HERE/a+b", None),
        ("s3://bucket/x+y", "s3://bucket/x+y", None),
    ],
)
def test_a_model_and_its_adapter(
    reference: str, base: str, adapter: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("here", "c++/model", "c++/lora", "a+b", "a", "b"):
        (tmp_path / folder).mkdir(parents=True)
    here = str(tmp_path)
    expected = ModelUrl(base.replace("HERE", here), adapter and adapter.replace("HERE", here))
    assert resolve_model(reference, tmp_path) == expected


@pytest.mark.parametrize("reference", ["owner/name+", "+owner/name", "owner/name+nothing", "no such+owner/lora"])
def test_half_a_pair_is_no_model(reference: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist") as caught:
        resolve_model(reference, tmp_path)
    assert "BASE+ADAPTER" in caught.value.hint


@pytest.mark.parametrize(
    "entry",
    [
        "{model: org/base, adapter: org/lora}",
        "{model: org/base, lora: org/lora}",
        "{model: {path: org/base}, lora: {path: org/lora, revision: null}}",
        "org/base+org/lora",
        "org/base, adapter: {path: org/lora}",
    ],
)
def test_forms_of_a_model_with_an_adapter(entry: str) -> None:
    recipe = parse_recipe(f"merge_method: linear\nmodels: [{{model: {entry}}}]\n", "r.yml")
    assert recipe.models[0].model == "org/base+org/lora"


def test_an_adapter_beside_its_model() -> None:
    recipe = parse_recipe("merge_method: linear\nmodels: [{model: org/base, adapter: org/lora}]\n", "r.yml")
    assert recipe.models[0].model == "org/base+org/lora"


def test_a_revision_in_the_form_of_a_mapping() -> None:
    entry = "{model: {path: org/base, revision: v2}, adapter: org/lora}"
    recipe = parse_recipe(f"merge_method: linear\nmodels: [{{model: {entry}}}]\n", "r.yml")
    assert recipe.models[0].model == "org/base@v2+org/lora"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{model: org/base, adaptor: org/lora}", "expected a directory, a URL or owner/name"),
        ("{adapter: org/lora}", "expected a directory, a URL or owner/name"),
        ("{model: org/base, adapter: a/b, lora: c/d}", "expected one model and one adapter"),
        ("{model: org/base, adapter: 7}", "expected a directory, a URL or owner/name"),
        ("org/base, adapter: 7", "adapter: expected a directory, a URL or owner/name"),
        ("org/base, adaptor: org/lora", "unknown key; .* did you mean 'adapter'"),
    ],
)
def test_forms_that_are_not_understood(entry: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_recipe(f"merge_method: linear\nmodels: [{{model: {entry}}}]\n", "r.yml")


# --- the repository's own recipes

CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yml") if not path.stem.startswith("search_"))
SEARCHES = sorted((ROOT / "configs").glob("search_*.yml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_right(path: Path) -> None:
    recipe = load_recipe(path)
    assert path.stem.startswith(recipe.merge_method)
    expected = min(2, recipe.method.most or 2)
    assert all(len(group.entries) == expected for group in groups_of(recipe))
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_every_search_of_the_repository_is_right(path: Path) -> None:
    space = load_search(path)
    assert space is not None and len(space.parameters()) >= 2
    assert f"# anabranch search configs/{path.name} out/ --evaluate" in path.read_text()


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("{model: {path: acme/base}}", "acme/base"),
        ("{model: {path: acme/base, revision: v2}}", "acme/base@v2"),
        ("{model: acme/base, lora: {path: acme/style, revision: v3}}", "acme/base+acme/style@v3"),
        ("{model: {path: acme/base, revision: null}, lora: null}", "acme/base"),
    ],
)
def test_references_as_mergekit_dumps_them(written: str, means: str) -> None:
    recipe = parse_recipe(f"merge_method: linear\nmodels: [{{model: {written}}}]", "r.yml")
    assert recipe.models[0].model == means


def test_keys_that_only_hold_an_anchor() -> None:
    text = """\
shared: &even {weight: 0.5}
numbers: [&third 0.3, 0.5]
merge_method: ties
base_model: base
models:
  - {model: math, parameters: *even}
  - {model: code, parameters: {<<: *even, density: *third}}
"""
    plain = parse_recipe(text, "r.yml")
    assert [entry.parameters["weight"] for entry in plain.models] == [(Rule(0.5),)] * 2
    assert plain.models[1].parameters["density"] == (Rule(0.3),)


def test_quotes_change_no_number_and_no_flag() -> None:
    quoted = parse_recipe(TIES_WITH.format("density: '5e-1', weight: ['1', \" .5 \"], normalize: 'True'"), "r.yml")
    plain = parse_recipe(TIES_WITH.format("density: 0.5, weight: [1, 0.5], normalize: 1.0"), "r.yml")
    assert quoted == plain == parse_recipe(TIES_WITH.format("density: .5, weight: [1, 5e-1], normalize: true"), "r.yml")


TIES_WITH = "merge_method: ties\nbase_model: base\nmodels: [{{model: math}}]\nparameters: {{{}}}"
