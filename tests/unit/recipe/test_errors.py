"""Recipes that are wrong: each is refused with the line, the key path, and words that help."""

from __future__ import annotations

import time

import pytest

from anabranch.engine.errors import RecipeError
from anabranch.engine.recipe.parse import parse_recipe
from anabranch.engine.recipe.text import MAX_PROBLEMS_SHOWN, did_you_mean, dotted, read_document, shorten


def message(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yml")
    assert caught.value.exit_code == 2
    return str(caught.value)


CABS = """\
merge_method: cabs
base_model: base
models:
  - model: math
    parameters:
      weight: 1
  - model: code
parameters:
  density: 0.25
"""

# what is added below CABS, which starts line 10, and what the message must contain
ADDED = [
    ("densty: 1", "r.yml:10: densty: unknown key; expected one of merge_method, "),
    ("exclud: [a]", "did you mean 'exclude'?"),
    ("weight: 1", "r.yml:10: weight: unknown key; "),
    ("weight: 1", "; did you mean `parameters: {weight: ...}`?"),
    ("seed: 1.5", "r.yml:10: seed: expected a whole number from 0 to 9223372036854775807, got 1.5"),
    ("seed: -1", "seed: expected a whole number from 0"),
    ("seed: true", "got true"),
    ("seed: 9223372036854775808", "seed: expected a whole number"),
    ("seed: '1'", "seed: expected a whole number"),
    ("dtype: bf16", "dtype: expected one of float64, float32, float16, bfloat16"),
    ("dtype: bfloat", "did you mean 'bfloat16'?"),
    ("out_dtype: int64", "out_dtype: expected one of float64"),
    ("out_dtype: 16", "out_dtype: expected one of float64"),
    ("nonfinite: keepbase", "expected one of error, keep-base, got 'keepbase'; did you mean 'keep-base'?"),
    ("overflow: true", "overflow: expected one of error, saturate, got true"),
    ("strict: 1", "strict: expected true or false, got 1"),
    ("strict: 'true'", "strict: expected true or false, got 'true'"),
    ("extra_tensors: drop", "extra_tensors: expected one of error, ignore"),
    ("vocab: union", "vocab: expected one of error, intersect"),
    ("exclude: lm_head", "exclude: expected a list of tensor name patterns"),
    ("exclude: [1]", "exclude: expected a list of tensor name patterns"),
    ("exclude: ['']", "exclude: expected a list of tensor name patterns"),
    ("tokenizer_source: 1", "tokenizer_source: expected a directory, a URL or owner/name, got 1"),
    (
        "tokenizer_source: base\ntokenizer: {}",
        "tokenizer_source: say it with `tokenizer: {source: ...}` or with this key",
    ),
    ("tokenizer: union", "r.yml:10: tokenizer: expected a mapping of source, tokens, pad_to_multiple_of, embeddings"),
    ("tokenizer: {sorce: base}", "tokenizer: unknown key 'sorce'; expected one of source, tokens, "),
    ("tokenizer: {source: 1}", "tokenizer: source: expected a directory, a URL or owner/name, got 1"),
    ("tokenizer: {tokens: [a]}", "tokenizer: tokens: expected a mapping of tokens, got ['a']"),
    ("tokenizer: {tokens: {a: b}}", "tokenizer: tokens['a']: expected a mapping of source, force, got 'b'"),
    ("tokenizer: {tokens: {a: {kind: zero}}}", "tokens['a']: unknown key 'kind'; expected one of source, force"),
    ("tokenizer: {tokens: {a: {force: 2}}}", "tokens['a'].force: expected true or false, got 2"),
    ("tokenizer: {tokens: {a: {force: true}}}", "tokens['a']: force needs a source"),
    (
        "tokenizer: {tokens: {a: {source: cod}}}",
        "expected a model of this recipe as the source of a token's row, got 'cod'",
    ),
    ("tokenizer: {tokens: {a: {source: {kind: one}}}}", "expected a model, {kind: zero} or {kind: model_token, ...}"),
    ("tokenizer: {tokens: {a: {source: {kind: zero, token: b}}}}", "expected a model, {kind: zero} or"),
    (
        "tokenizer: {tokens: {a: {source: {kind: model_token, model: code}}}}",
        "needs a model, and either token or token_id",
    ),
    (
        "tokenizer: {tokens: {a: {source: {kind: model_token, model: code, token: b, token_id: 1}}}}",
        "needs a model, and either token or token_id",
    ),
    (
        "tokenizer: {tokens: {a: {source: {kind: model_token, model: code, token_id: -1}}}}",
        "source.token_id: expected a whole number, at least 0, got -1",
    ),
    (
        "tokenizer: {tokens: {a: {source: {kind: model_token, model: code, token: 1}}}}",
        "source.token: expected text, got 1",
    ),
    ("tokenizer: {pad_to_multiple_of: 0}", "pad_to_multiple_of: expected a whole number from 1 to 65536, got 0"),
    ("tokenizer: {pad_to_multiple_of: true}", "pad_to_multiple_of: expected a whole number"),
    ("tokenizer: {embeddings: wte}", "embeddings: expected a list of tensor name patterns, got 'wte'"),
    ("chat_template: chatlm", "expected auto, one of alpaca, chatml, exaone, llama3, mistral, or a Jinja template"),
    ("chat_template: chatlm", "did you mean 'chatml'?"),
    ("chat_template: 3", "chat_template: expected auto, the name of a template, or a Jinja template, got 3"),
    ("name: a/b", "name: expected letters, digits"),
    ("output: 2GB", "r.yml:10: output: expected a mapping, got '2GB'"),
    (
        "output: {shard: 2GB}",
        "output.shard: unknown key; expected one of shard_size, experts, card, ties; did you mean 'shard_size'?",
    ),
    ("output: {shard_size: 2G}", "output.shard_size: expected a size such as 2GB"),
    ("output: {shard_size: 0}", "expected a whole number of bytes, at least 1, got 0"),
    ("output: {shard_size: 0.5B}", "expected a whole number of bytes"),
    ("output: {shard_size: -1GB}", "expected a size such as 2GB"),
    ("output: {shard_size: true}", "expected a size such as 2GB"),
    ("output:\n  shard_size: 99999999TiB", "r.yml:11: output.shard_size: expected a whole number of bytes"),
    ("slices: [{sources: []}]", "r.yml:10: slices: a recipe has one of models, slices, modules; this one has models"),
    ("modules: {default: {models: []}}", "r.yml:10: modules: a recipe has one of models, slices, modules; this one"),
]


@pytest.mark.parametrize(("added", "words"), ADDED, ids=[added for added, _ in ADDED])
def test_a_wrong_key_at_the_top(added: str, words: str) -> None:
    assert words in message(CABS + added)


# what stands in place of `density: 0.25` on line 9
IN_PARAMETERS = [
    ("density: 1.01", "r.yml:9: parameters.density: expected a number from 0 to 1 or {tadrop: {}}, got 1.01"),
    ("density: -0.1", "expected a number from 0 to 1"),
    ("density: .nan", "expected a number from 0 to 1 or {tadrop: {}}, got nan"),
    ("density: true", "got true"),
    ("density: '1.5'", "got '1.5'"),
    ("density: '0.5.1'", "got '0.5.1'"),
    ("density: half", "got 'half'"),
    ("density: 'nan'", "got 'nan'"),
    ("density: tadrop", "expected a number from 0 to 1 or {tadrop: {}}, got 'tadrop'"),
    ("density:", "expected a number from 0 to 1 or {tadrop: {}}, got nothing"),
    ("density: []", "the list is empty"),
    ("density: [0.1, 2]", "parameters.density[1]: expected a number from 0 to 1, got 2"),
    ("density: [0.1, true]", "parameters.density[1]: expected a number from 0 to 1, got true"),
    ("density: [[0.1]]", "parameters.density[0]: expected a number from 0 to 1, got [0.1]"),
    ("density: [{value: 0.1}, 0.2]", "parameters.density[1]: expected {filter: TEXT, value: ...}, got 0.2"),
    ("density: [{filter: mlp}]", "parameters.density[0]: the value is missing"),
    (
        "density: [{filtr: mlp, value: 1}]",
        "density[0].filtr: unknown key; expected filter and value; did you",
    ),
    ("density: [{filter: 3, value: 1}]", "density[0].filter: expected text that tensor names contain, got 3"),
    ("density: [{filter: '', value: 1}]", "density[0].filter: expected text that tensor names contain"),
    ("density: [{value: 1}, {filter: mlp, value: 0}]", "density[1]: never used: the entry before it applies"),
    ("density: [{filter: '*', value: 1}, {value: 0}]", "density[1]: never used"),
    ("density: {tadrop: 3}", "parameters.density.tadrop: expected {} or {mean: 0.25}, got 3"),
    (
        "density: {tadrop: {men: 0.2}}",
        "density.tadrop.men: unknown key; expected mean, spread, statistic, mean_of; did",
    ),
    ("density: {tadrop: {mean: 0}}", "density.tadrop.mean: expected a number from 0.01 to 1, got 0"),
    ("density: {tadrop: {mean: true}}", "density.tadrop.mean: expected a number from 0.01 to 1, got true"),
    ("density: {tadrop: {spread: 0.2}}", "density.tadrop.spread: spread has an effect only with mean"),
    ("density: {tadrop: {mean_of: changed}}", "density.tadrop.mean_of: mean_of has an effect only with mean"),
    ("density: {tadrop: {mean: 0.2, mean_of: zeros}}", "density.tadrop.mean_of: expected one of all, changed"),
    ("density: {tadrop: {mean: 0.2, spread: -1}}", "density.tadrop.spread: expected a number from 0 to 1"),
    ("density: {tadrop: {statistic: gini}}", "expected one of participation, quantile, kurtosis, got 'gini'"),
    ("density: {tadrop: {}, mean: 0.2}", "density.mean: unknown key beside tadrop"),
    ("density: [{tadrop: {}}]", "density[0].tadrop: unknown key; expected filter and value"),
    ("density: 1\n  block: 0", "r.yml:10: parameters.block: expected a whole number from 1 to 65536, got 0"),
    ("density: 1\n  block: 65537", "expected a whole number from 1 to 65536"),
    ("density: 1\n  block: 256.0", "expected a whole number from 1 to 65536, got 256.0"),
    ("density: 1\n  block: [16, 32]", "expected a whole number from 1 to 65536, got [16, 32]"),
    ("density: 1\n  block: true", "expected a whole number from 1 to 65536, got true"),
    (
        "density: 1\n  tail: kep",
        "parameters.tail: expected one of keep, drop, got 'kep'; did you mean 'keep'?",
    ),
    ("density: 1\n  lambda: .inf", "parameters.lambda: expected a finite number, got inf"),
    ("density: 1\n  lambda: 1e39", "parameters.lambda: expected a finite number"),
    ("density: 1\n  lambda: " + "9" * 400, "parameters.lambda: expected a finite number"),
    ("density: 1\n  normalize: 2", "parameters.normalize: expected true or false, got 2"),
    ("density: 1\n  normalize: 2.0", "parameters.normalize: expected true or false, got 2.0"),
    ("density: 1\n  normalize: [true, false]", "parameters.normalize: expected true or false"),
    ("density: 1\n  int8_mask: maybe", "parameters.int8_mask: expected true or false, got 'maybe'"),
    ("density: 1\n  wieght: 1", "parameters.wieght: unknown parameter; cabs takes weight, lambda"),
    ("density: 1\n  wieght: 1", "did you mean 'weight'?"),
    ("density: 1\n  epsilom: 1", "parameters.epsilom: unknown parameter; cabs takes"),
    ("density: 1\n  epsilon: 0.1", "parameters.epsilon: cabs takes no epsilon; it takes weight"),
    ("density: 1\n  scope: model", "parameters.scope: cabs takes no scope; it takes weight"),
    (
        "density: 1\n  weight: {tadrop: {}}",
        "parameters.weight: expected a finite number, got {'tadrop': {}}",
    ),
    ("density: 1\n  rescale_norm: l1", "parameters.rescale_norm: has an effect only with rescale: true"),
    (
        "density: 1\n  overlap_merge: ties\n  normalize: true",
        "r.yml:10: parameters.overlap_merge: ties takes the",
    ),
    (
        "block: 16",
        "r.yml:4: models[0]: cabs needs a density for 'math': a number from 0 to 1 or {tadrop: {}}",
    ),
    ("block: 16", "r.yml:7: models[1]: cabs needs a density for 'code'"),
]


@pytest.mark.parametrize(("line", "words"), IN_PARAMETERS, ids=[line[:50] for line, _ in IN_PARAMETERS])
def test_a_wrong_parameter(line: str, words: str) -> None:
    assert words in message(CABS.replace("density: 0.25", line))


TIES = "merge_method: ties\nbase_model: b\nmodels: [{model: m}]\n"
EMR = "merge_method: emr\nbase_model: b\n"

OTHERS = [
    ("", "r.yml: the recipe is empty"),
    ("# nothing", "r.yml: the recipe is empty"),
    ("null", "r.yml:1: expected a mapping of recipe keys, got nothing"),
    ("[1]", "r.yml:1: expected a mapping of recipe keys, got [1]"),
    ("merge_method: ties", "r.yml:1: models: the key is missing"),
    ("models: [{model: m}]", "merge_method: the key is missing"),
    ("merge_method: 3\nmodels: [{model: m}]", "merge_method: expected text, got 3"),
    (
        "merge_method: cab\nmodels: []",
        "merge_method: unknown method 'cab'; supported: task_arithmetic, magnitude",
    ),
    ("merge_method: cab\nmodels: []", "did you mean 'cabs'?"),
    (
        "merge_method: ties\nmodels: [{model: m}]",
        "base_model is missing; ties merges differences to a base model",
    ),
    (
        "merge_method: ties\nbase_model: b\nmodels: []",
        "models: expected at least one model to merge, besides",
    ),
    (
        "merge_method: ties\nbase_model: b\nmodels: [{model: b}]",
        "models: expected at least one model to merge",
    ),
    ("merge_method: linear\nmodels: []", "r.yml:2: models: expected at least one model to merge"),
    (
        "merge_method: linear\nbase_model: b\nmodels: [{model: m}]",
        "base_model: linear merges what `models` lists",
    ),
    ("merge_method: linear\nmodels: m", "models: expected a list, got 'm'"),
    ("merge_method: linear\nmodels: [m]", "models[0]: expected a mapping such as {model: m}, got 'm'"),
    (
        "merge_method: linear\nmodels: [{modle: m}]",
        "models[0].modle: unknown key; expected one of model, adapter, param",
    ),
    ("merge_method: linear\nmodels: [{modle: m}]", "models[0].model: the key is missing"),
    (
        "merge_method: linear\nmodels: [{model: }]",
        "models[0].model: expected a directory, a URL or owner/name",
    ),
    (
        "merge_method: linear\nmodels: [{model: {path: x}}]",
        "models[0].model: expected a directory, a URL or own",
    ),
    (
        'merge_method: linear\nmodels: [{model: "a\\0b"}]',
        "models[0].model: expected a directory, a URL or own",
    ),
    (
        "merge_method: linear\nmodels: [{model: m, parameters: 3}]",
        "models[0].parameters: expected a mapping of",
    ),
    (
        "merge_method: linear\nmodels: [{model: m, parameters: {density: {tadrop: {}}}}]",
        "models[0].parameters.density: linear takes no density; it takes weight, normalize",
    ),
    (
        "merge_method: task_arithmetic\nbase_model: b\nmodels: [{model: m}]\nparameters: {density: 0.5}",
        "r.yml:4: parameters.density: task_arithmetic takes no density",
    ),
    (
        "merge_method: ties\nbase_model: b\nmodels: [{model: m, parameters: {normalize: true}}]",
        "models[0].parameters.normalize: normalize is the same for all models; write it under the",
    ),
    (
        "merge_method: ties\nbase_model: b\nmodels: [{model: m, parameters: {lambda: 1}}]",
        "models[0].parameters.lambda: lambda is the same for all models",
    ),
    (
        TIES + "parameters: {scope: model, density: [0.1, 0.2]}",
        "scope: model has one threshold for a whole model, so the density must be one number",
    ),
    (
        TIES + "parameters: {scope: model, density: {tadrop: {}}}",
        "models[0].parameters.density: scope: model has one threshold",
    ),
    (
        TIES + "parameters: {scope: [{filter: a, value: model}]}",
        "parameters.scope: scope is the same for all tensors and takes no filters",
    ),
    # outputs per task
    (
        EMR + "models: [{model: m, parameters: {weight: 1}}]",
        "models[0].parameters.weight: emr takes no weight; it takes density",
    ),
    (
        EMR + "models: [{model: a/m}, {model: b/m}]",
        "models[1].name: the task's folder would be called 'm', but 'a/m' has it, too",
    ),
    (
        EMR + "models: [{model: a/unified}]",
        "models[0].name: the task's folder would be called 'unified', but it is no name",
    ),
    (
        EMR + "models: [{model: a+b}]",
        "called 'a+b', but it is no name for a folder here; give the model another `name`",
    ),
    (
        EMR + "models: [{model: m}]\ntokenizer_source: union",
        "tokenizer_source: emr writes masks on the base's own tensors",
    ),
    (EMR + "models: [{model: m}]\nchat_template: auto", "chat_template: emr writes masks on the base's own tensors"),
    (
        EMR + "slices: [{sources: [{model: b, layer_range: [0, 1]}, {model: m, layer_range: [0, 1]}]}]",
        "slices: emr writes masks on the base's own tensors",
    ),
    (
        EMR.replace("emr", "ties") + "models: [{model: m, name: t}]",
        "models[0].name: names a task; only emr has an output per task",
    ),
    # what mergekit ignores, and files of its other tools
    (TIES + "random_seed: 3", "r.yml:4: random_seed: unknown key; expected one of"),
    (TIES + "random_seed: 3", "; did you mean 'seed'?"),
    (
        "merge_method: linear\nmodels: [{model: m, layer_range: [0, 2]}]",
        (
            "models[0].layer_range: unknown key; expected one of model, adapter, parameters, activations, names, name; "
            "layers are chosen under `slices`"
        ),
    ),
    ("base_model: b\nexperts: []", "r.yml:2: experts: not a merge recipe: mergekit-moe builds mixtures of experts"),
    ("genome: {}", "r.yml:1: genome: not a merge recipe: mergekit-evolve"),
    (
        "merge_method: linear\nmodels: [{model: {model: {path: x}, override_architecture: A}}]",
        "models[0].model.override_architecture: not supported: tensors are merged by name",
    ),
    (
        "merge_method: linear\nmodels: [{model: {model: {path: x, branch: y}}}]",
        "models[0].model: expected a directory, a URL or owner/name, got {'model'",
    ),
    (TIES + "spare: &unused 3", "spare: unknown key"),
    ("merge_method: &m ties\nbase_model: b\nmodels: [{model: m}]\nspare: *m", "spare: unknown key"),
    # YAML itself
    ("a: 1\nb: 2\na: 3", "r.yml:1: a: the key is given twice, on lines 1 and 3"),
    ("models: [{model: m, model: n}]", "models[0].model: the key is given twice, on lines 1 and 1"),
    ("a: [1", "r.yml:1: not valid YAML"),
    ("a: b: c", "r.yml:1: not valid YAML: mapping values are not allowed here"),
    ("a: \tb\n\tc: d", "r.yml:1: not valid YAML"),
    ("a: 1\n---\nb: 2", "r.yml:2: another document; one recipe per file, so cut the file here"),
    ("a: \x01", "r.yml: not valid YAML"),
    ("a: *x", "r.yml:1: not valid YAML"),
    (
        "a: !!python/object/apply:os.system [ls]",
        "r.yml:1: a: tags are not allowed in recipes, got '!!python/obj",
    ),
    ("a: !x 3", "a: tags are not allowed in recipes, got '!x'"),
    ("a: !!binary aGk=", "a: tags are not allowed"),
    ("a: !!set {x, y}", "a: tags are not allowed"),
    ("a: !!int x", "a: cannot be read as a number: 'x'"),
    ("a: " + "9" * 5000, "a: cannot be read as a number"),
    ("{[1]: 2}", "a key must be text"),
    ("a: &x [*x]", "a[0]: an alias refers to the value that contains it"),
    ("<<: 3", "`<<` merges mappings only"),
    ("[" * 5000, "nested too deeply"),
    ("#" * (1 << 20) + "\n", "a recipe has at most 1048576 bytes"),
]


@pytest.mark.parametrize(("text", "words"), OTHERS, ids=[repr(text)[:70] for text, _ in OTHERS])
def test_a_recipe_that_is_wrong_as_a_whole(text: str, words: str) -> None:
    assert words in message(text)


@pytest.mark.parametrize("method", ["magnitude", "cabs", "ram"])
def test_more_models_than_a_byte_counts_are_refused(method: str) -> None:
    models = ", ".join(f"{{model: m{i}}}" for i in range(256))
    density = "" if method == "ram" else "\nparameters: {density: 0.5}"
    said = message(f"merge_method: {method}\nbase_model: base\nmodels: [{models}]{density}\n")
    assert "models: expected at most 255 models to merge, besides the base, got 256" in said


def test_aliases_cannot_multiply_without_bound() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 12):
        levels.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    started = time.monotonic()
    assert "more than 20000 values after aliases are expanded" in message("\n".join(levels))
    assert time.monotonic() - started < 30


def test_several_problems_come_in_one_message_by_line() -> None:
    text = message(CABS.replace("weight: 1", "weight: x") + "strict: 3\nseed: -1")
    first, *rest = text.splitlines()
    assert first == "3 problems in the recipe:"
    assert [line.strip().split(" ")[0] for line in rest] == ["r.yml:6:", "r.yml:10:", "r.yml:11:"]


def test_a_long_list_of_problems_is_cut() -> None:
    text = message(CABS + "\n".join(f"unknown{i}: 1" for i in range(MAX_PROBLEMS_SHOWN + 3)))
    assert text.splitlines()[0] == "13 problems in the recipe:"
    assert len(text.splitlines()) == MAX_PROBLEMS_SHOWN + 2
    assert text.endswith("... and 3 more")


def test_credentials_never_reach_a_message() -> None:
    text = message("merge_method: linear\nmodels: [{model: 's3://key:hunter2@bucket/x'}]\nstrict: 3")
    assert "models[0].model: a URL must hold no credentials" in text
    assert "hunter2" not in text


def test_a_line_is_found_for_a_missing_key_too() -> None:
    document = read_document("a:\n  - b: 1\n  - c: 2\n", "r")
    assert document.line(("a", 1, "c")) == 3
    assert document.line(("a", 1, "missing")) == 3
    assert document.line(("missing", 0)) == 1


def test_small_words() -> None:
    assert dotted(("models", 0, "parameters", "weight")) == "models[0].parameters.weight"
    assert dotted(()) == ""
    assert did_you_mean("base", ["base_model", "models"]) == "; did you mean 'base_model'?"
    assert did_you_mean("zzz", ["base_model"]) == ""
    assert shorten("x" * 100) == "'" + "x" * 56 + "..."
    assert [shorten(value) for value in (None, True, 1, 0.5)] == ["nothing", "true", "1", "0.5"]
