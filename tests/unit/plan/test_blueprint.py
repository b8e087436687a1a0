"""The output of sliced recipes as a list of tensors, by hand; which tensors are layers; what config.json must say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from anabranch.engine.errors import InputError, RecipeError
from anabranch.engine.models.checkpoint import Checkpoint
from anabranch.engine.models.header import TensorInfo
from anabranch.engine.models.layers import Layers, config_edits, declared_layers, find_layers, layer_rules
from anabranch.engine.models.location import TensorLocation
from anabranch.engine.plan.blueprint import Blueprint, make_blueprint
from anabranch.engine.recipe.parse import parse_recipe

SHAPES = {"embed_tokens.weight": (9, 4), "norm.weight": (4,), "up.weight": (6, 4), "q.weight": (4, 4)}


def checkpoint(url: str, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Checkpoint:
    """Tensors in this order; shapes by the end of their names."""
    shape_of = {name: next((s for end, s in shapes.items() if name.endswith(end)), (9, 4)) for name in names}
    tensors = {name: TensorLocation(0, TensorInfo(name, "F32", shape_of[name], 0)) for name in names}
    return Checkpoint(url, (), tensors, (), ())


def names(layers: int, rests: Sequence[str] = ("up.weight", "q.weight"), head: bool = True) -> list[str]:
    own = [f"model.layers.{i}.{rest}" for i in range(layers) for rest in rests]
    return [*(["lm_head.weight"] if head else []), "model.embed_tokens.weight", *own, "model.norm.weight"]


def blueprint(recipe: str, configs: Mapping[str, Any] | None = None, **models: Checkpoint) -> Blueprint:
    return make_blueprint(parse_recipe(recipe, "r.yml"), models, configs or {})


def frankenmerge(*slices: str, method: str = "passthrough", more: str = "") -> str:
    lines = "".join(f"  - sources: [{sources}]\n" for sources in slices)
    return f"merge_method: {method}\n{more}slices:\n{lines}"


def of(model: str, first: int, end: int) -> str:
    return f"{{model: {model}, layer_range: [{first}, {end}]}}"


# -- the list of tensors -----------------------------------------------------------------------------------------------


def test_a_frankenmerge_by_hand() -> None:
    a, b = checkpoint("/a", names(3)), checkpoint("/b", names(4)[:-1])
    configs = {"a": {"num_hidden_layers": 3}}
    made = blueprint(frankenmerge(of("a", 0, 2), of("b", 2, 4), of("a", 1, 2)), configs, a=a, b=b)
    assert made.config_edits == {"num_hidden_layers": 5}
    assert [(t.name, t.group, t.position, t.names) for t in made.tensors] == [
        ("model.embed_tokens.weight", 0, 0.0, ("model.embed_tokens.weight",) * 2),
        ("model.layers.0.up.weight", 0, 0.0, ("model.layers.0.up.weight",) * 2),
        ("model.layers.0.q.weight", 0, 0.0, ("model.layers.0.q.weight",) * 2),
        ("model.layers.1.up.weight", 0, 1.0, ("model.layers.1.up.weight",) * 2),
        ("model.layers.1.q.weight", 0, 1.0, ("model.layers.1.q.weight",) * 2),
        ("model.layers.2.up.weight", 1, 0.0, ("model.layers.2.up.weight",) * 2),
        ("model.layers.2.q.weight", 1, 0.0, ("model.layers.2.q.weight",) * 2),
        ("model.layers.3.up.weight", 1, 1.0, ("model.layers.3.up.weight",) * 2),
        ("model.layers.3.q.weight", 1, 1.0, ("model.layers.3.q.weight",) * 2),
        ("model.layers.4.up.weight", 2, 1.0, ("model.layers.1.up.weight",) * 2),
        ("model.layers.4.q.weight", 2, 1.0, ("model.layers.1.q.weight",) * 2),
        ("lm_head.weight", 2, 0.0, ("lm_head.weight",) * 2),
        ("model.norm.weight", 2, 0.0, ("model.norm.weight",) * 2),
    ]
    assert made.models == (a, b)
    assert made.sources == (a, a, b)
    assert made.origins == ((0, 1), (2, 2), (0, 1))
    assert made.warnings == ()
    assert made.notes == (
        "/a: layers that no slice uses are left out: 2",
        "/b: layers that no slice uses are left out: 0 to 1",
        "/b: left out, because another slice gives them: lm_head.weight, model.embed_tokens.weight",
    )


def test_the_base_of_each_slice_gives_its_own_layers() -> None:
    base, m, n = (checkpoint(f"/{name}", names(4)) for name in ("base", "m", "n"))
    recipe = frankenmerge(
        f"{of('m', 0, 2)}, {of('base', 1, 3)}, {of('n', 2, 4)}",
        f"{of('n', 3, 4)}, {of('base', 3, 4)}",
        method="ties",
        more="base_model: base\n",
    )
    made = blueprint(recipe, base=base, m=m, n=n)
    assert (made.models, made.sources) == ((m, n), (base, m, n))
    assert made.origins == ((0, 1, 2), (0, 2))
    found = {t.name: t.names for t in made.tensors}
    assert found["model.layers.1.q.weight"] == tuple(f"model.layers.{i}.q.weight" for i in (2, 1, 3))
    assert found["model.layers.2.q.weight"] == ("model.layers.3.q.weight",) * 2


def test_a_base_of_one_slice_only_is_one_more_source() -> None:
    a, b, c = (checkpoint(f"/{name}", names(2)) for name in "abc")
    recipe = "merge_method: ties\nslices:\n"
    for base in ("a", "b"):
        recipe += f"  - base_model: {base}\n    sources: [{of('c', 0, 2)}, {of(base, 0, 2)}]\n"
    made = blueprint(recipe, a=a, b=b, c=c)
    assert (made.models, made.sources, made.origins) == ((c,), (a, c, b), ((0, 1), (2, 1)))


def test_a_model_that_a_slice_lists_twice_is_two_models() -> None:
    a = checkpoint("/a", names(4))
    made = blueprint(frankenmerge(f"{of('a', 0, 2)}, {of('a', 2, 4)}", of("a", 3, 4), method="linear"), a=a)
    assert (made.models, made.origins) == ((a, a), ((0, 1, 2), (0, 1)))
    found = {t.name: t.names for t in made.tensors}
    assert found["model.layers.1.q.weight"][1:] == ("model.layers.1.q.weight", "model.layers.3.q.weight")


def test_base_model_chooses_the_reference_of_methods_without_a_base() -> None:
    a, b = checkpoint("/a", names(2)), checkpoint("/b", names(2))
    recipe = frankenmerge(f"{of('a', 0, 1)}, {of('b', 1, 2)}", of("a", 1, 2), method="linear", more="base_model: b\n")
    made = blueprint(recipe, a=a, b=b)
    assert made.sources[0] is b
    assert made.origins == ((0, 1, 2), (1, 1))
    assert {t.name: t.names[0] for t in made.tensors}["model.layers.0.q.weight"] == "model.layers.1.q.weight"


def test_layers_may_differ_in_kind_as_those_of_the_donor_do() -> None:
    rests = [f"model.layers.{i}.{rest}" for i, rest in enumerate(("dense.up", "moe.0.up", "moe.0.up"))]
    a = checkpoint("/a", ["embed", *rests], {})
    made = blueprint(frankenmerge(of("a", 0, 2), of("a", 1, 3)), a=a)
    assert [t.name for t in made.tensors][1:] == [
        "model.layers.0.dense.up",
        "model.layers.1.moe.0.up",
        "model.layers.2.moe.0.up",
        "model.layers.3.moe.0.up",
    ]


def test_what_only_a_source_beside_the_reference_has_is_extra() -> None:
    a, b = checkpoint("/a", names(2)), checkpoint("/b", [*names(2), "model.layers.1.bias", "extra.norm"])
    made = blueprint(frankenmerge(f"{of('a', 0, 2)}, {of('b', 0, 2)}", method="linear"), a=a, b=b)
    assert made.extra == {"/a": [], "/b": ["model.layers.1.bias", "extra.norm"]}


# -- what does not fit -------------------------------------------------------------------------------------------------


def test_a_range_beyond_the_layers_is_refused_with_its_line() -> None:
    with pytest.raises(RecipeError) as caught:
        blueprint(frankenmerge(of("a", 0, 2), of("a", 1, 5)), a=checkpoint("/a", names(4)))
    text = "r.yml:4: slices[1].sources[0].layer_range: [1, 5] ends behind the last of the 4 layers of /a"
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (names(2, head=False), "/b lacks 'lm_head.weight', which /a has"),
        (names(2, ("up.weight",)), "/b lacks 'model.layers.0.q.weight', which all layers of /a have"),
        (names(2, ("up.weight", "q.weight", "q.bias")), "/b has 'model.layers.0.q.bias', which no layer of /a has"),
    ],
)
def test_slices_of_unlike_models_do_not_fit_together(other: list[str], words: str) -> None:
    recipe = frankenmerge(of("a", 0, 2), of("b", 0, 2))
    models = {"a": checkpoint("/a", names(2)), "b": checkpoint("/b", other)}
    with pytest.raises(InputError, match="the slices do not fit together") as caught:
        blueprint(recipe, **models)
    assert words in str(caught.value)
    made = blueprint(f"{recipe}extra_tensors: ignore\n", **models)
    assert any(warning.startswith(words) and "left out" in warning for warning in made.warnings)
    assert all(t.names[0] in made.sources[made.origins[t.group][0]].tensors for t in made.tensors)


@pytest.mark.parametrize("slices", [(of("a", 0, 2), of("b", 0, 2)), (of("b", 0, 2), of("a", 0, 2))])
def test_buffers_that_code_computes_need_not_be_everywhere(slices: tuple[str, str]) -> None:
    buffers = ("up.weight", "q.weight", "rotary_emb.inv_freq")
    made = blueprint(frankenmerge(*slices), a=checkpoint("/a", names(2)), b=checkpoint("/b", names(2, buffers)))
    assert {"model.layers.0.q.weight", "model.layers.3.q.weight"} <= {t.name for t in made.tensors}
    assert any("rotary_emb.inv_freq" in warning and "left out" in warning for warning in made.warnings)


@pytest.mark.parametrize("end", ["q.weight", "norm.weight"])
def test_slices_of_models_of_other_sizes_do_not_fit_together(end: str) -> None:
    a, b = checkpoint("/a", names(2)), checkpoint("/b", names(2), SHAPES | {end: (5, 5)})
    with pytest.raises(InputError, match=r"/b: '.*' has shape \[5, 5\], /a has \["):
        blueprint(frankenmerge(of("a", 0, 2), of("b", 0, 2)), a=a, b=b)


# -- layers ------------------------------------------------------------------------------------------------------------

TOWERS = ["v.blocks.0.w", "v.blocks.1.w", "v.blocks.2.w", "lm.layers.0.w", "lm.layers.1.w", "lm.embed"]


@pytest.mark.parametrize(
    ("tensors", "declared", "layers"),
    [
        (names(3), None, Layers("model.layers.", 3)),
        (names(3), 3, Layers("model.layers.", 3)),
        (["h.0.attn.w", "h.1.attn.w", "wte.weight"], 2, Layers("h.", 2)),
        (
            ["model.layers.0.experts.0.w", "model.layers.0.experts.1.w", "0.weight", "x.7"],
            1,
            Layers("model.layers.", 1),
        ),
        (TOWERS, 2, Layers("lm.layers.", 2)),
        (TOWERS, 3, Layers("v.blocks.", 3)),
    ],
)
def test_the_layers_are_the_numbered_set_of_the_right_size(
    tensors: list[str], declared: int | None, layers: Layers
) -> None:
    assert find_layers(tensors, declared, "m") == layers


@pytest.mark.parametrize(
    ("tensors", "declared", "words"),
    [
        (
            TOWERS,
            None,
            "does not say how many there are; numbered sets found: lm.layers.* (2), v.blocks.* (3)",
        ),
        (names(3), 2, "config.json says 2; numbered sets found: model.layers.* (3)"),
        (["a.0.w", "a.1.w", "b.0.w", "b.1.w"], 2, "config.json says 2; numbered sets found: a.* (2), b.* (2)"),
        (["a.0.w", "a.2.w"], None, "numbered sets found: a.* (2)"),
        (["w", "1.w"], None, "numbered sets found: none"),
    ],
)
def test_layers_that_cannot_be_told_are_refused(tensors: list[str], declared: int | None, words: str) -> None:
    with pytest.raises(InputError) as caught:
        find_layers(tensors, declared, "m")
    assert words in str(caught.value)


def test_a_model_with_layers_of_another_name_or_number_is_refused() -> None:
    recipe = frankenmerge(of("a", 0, 2), of("b", 0, 2))
    a = checkpoint("/a", names(2))
    with pytest.raises(InputError, match=r"/b: expected layers model\.layers\.0 and following .* found 0"):
        blueprint(recipe, a=a, b=checkpoint("/b", ["h.0.w", "h.1.w"]))
    with pytest.raises(InputError, match=r"/b: expected layers .* found 2 and config\.json says 3"):
        blueprint(recipe, {"b": {"num_hidden_layers": 3}}, a=a, b=checkpoint("/b", names(2)))


@pytest.mark.parametrize(
    ("prefix", "behind", "before"),
    [
        ("model.layers.", ["model.norm.weight", "lm_head.weight", "score.weight"], ["model.embed_tokens.weight"]),
        ("model.layers.", [], ["model.embedding_norm.weight", "visual.merger.norm.weight", "projector.weight"]),
        ("h.", ["ln_f.weight", "lm_head.weight"], ["wte.weight", "wpe.weight"]),
        ("transformer.h.", ["transformer.ln_f.bias"], ["transformer.wte.weight"]),
        ("gpt_neox.layers.", ["gpt_neox.final_layer_norm.bias", "embed_out.weight"], ["gpt_neox.embed_in.weight"]),
        ("bert.encoder.layer.", ["bert.pooler.dense.weight", "classifier.bias"], ["bert.embeddings.LayerNorm.bias"]),
        ("model.language_model.layers.", ["model.language_model.norm.weight"], ["model.visual.pos_embed.weight"]),
        ("transformer.encoder.layers.", ["transformer.encoder.final_layernorm.weight"], ["transformer.embedding.w"]),
    ],
)
def test_norms_and_heads_stand_behind_the_layers(prefix: str, behind: list[str], before: list[str]) -> None:
    layers = Layers(prefix, 2)
    assert [name for name in [*behind, *before] if layers.is_behind(name)] == behind


# -- config.json -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "n_layers", "num_layers"])
def test_the_number_of_layers_is_found_and_corrected_under_every_name(key: str) -> None:
    config = {key: 3, "hidden_size": 3}
    assert declared_layers(config) == 3
    assert config_edits(config, [(config, 0), (config, 1), (config, 1), (config, 2)], "c") == {key: 4}
    assert config_edits(config, [(config, i) for i in range(3)], "c") == {}


def test_the_language_model_of_a_larger_one_has_its_own_configuration() -> None:
    config = {
        "text_config": {"num_hidden_layers": 2},
        "vision_config": {"num_hidden_layers": 7},
        "num_hidden_layers": 2,
    }
    assert declared_layers(config) == 2
    edits = config_edits(config, [(config, i) for i in (0, 1, 1)], "c")
    assert edits == {"text_config/num_hidden_layers": 3, "num_hidden_layers": 3}
    assert declared_layers({"vision_config": {"num_hidden_layers": 7}}) is None


def test_lists_by_layer_are_put_together_like_the_layers() -> None:
    a = {"num_hidden_layers": 2, "layer_types": ["a0", "a1"], "eos_token_id": [1, 2], "architectures": ["x", "y"]}
    b = {"n_layer": 3, "layer_types": ["b0", "b1", "b2"]}
    edits = config_edits(a, [(a, 0), (b, 2), (b, 1)], "c")
    assert edits == {"num_hidden_layers": 3, "layer_types": ["a0", "b2", "b1"]}
    with pytest.raises(InputError, match="layer_types has one entry per layer, and the configuration of another model"):
        config_edits(a, [(a, 0), ({"num_hidden_layers": 2}, 1)], "c")


def test_lists_of_layer_numbers_are_refused_when_layers_move() -> None:
    config = {"num_hidden_layers": 3, "mlp_only_layers": [0]}
    with pytest.raises(InputError, match="mlp_only_layers lists layers by number"):
        config_edits(config, [(config, 0), (config, 2)], "c")
    assert config_edits(config, [(config, i) for i in range(3)], "c") == {}
    assert config_edits({**config, "mlp_only_layers": []}, [(config, 0)], "c") == {"num_hidden_layers": 1}


def test_numbers_that_make_layers_differ_are_a_warning() -> None:
    config = {"num_hidden_layers": 4, "first_k_dense_replace": 1, "decoder_sparse_step": 1, "sliding_window_pattern": 6}
    assert layer_rules(config) == ["first_k_dense_replace: 1", "sliding_window_pattern: 6"]
    a = checkpoint("/a", names(4))
    text = "config.json says first_k_dense_replace: 1; check that it fits the new order of layers"
    assert text in blueprint(frankenmerge(of("a", 0, 3)), {"a": config}, a=a).warnings
    assert blueprint(frankenmerge(of("a", 0, 4)), {"a": config}, a=a).warnings == ()


def test_a_configuration_that_does_not_say_the_number_of_layers_is_a_warning() -> None:
    a = checkpoint("/a", names(4))
    (first, *_) = blueprint(frankenmerge(of("a", 0, 4), of("a", 3, 4)), {"a": {"model_type": "x"}}, a=a).warnings
    assert first == "/a has no config.json that says how many layers there are; write 5 into the configuration you use"
