"""Where names of tensors put them in a picture."""

from __future__ import annotations

import pytest

from anabranch.cluster.report.places import MAX_KINDS, NO_LAYER, OTHERS, OUTSIDE, Places, place_of


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.12.mlp.up_proj.weight", (12, "model.layers", "mlp.up_proj")),
        ("model.layers.3.mlp.experts.17.down_proj.weight", (3, "model.layers", "mlp.experts.*.down_proj")),
        ("model.layers.3.self_attn.q_proj.bias", (3, "model.layers", "self_attn.q_proj.bias")),
        ("encoder.layer.0.weight", (0, "encoder.layer", "itself")),
        ("transformer.h.5.ln_1.weight", (5, "transformer.h", "ln_1")),
        ("model.embed_tokens.weight", (OUTSIDE, "", "model.embed_tokens")),
        ("lm_head", (OUTSIDE, "", "lm_head")),
        ("x.99999999999999999999.y", (OUTSIDE, "", "x.99999999999999999999.y")),
    ],
)
def test_a_name_says_layer_and_kind(name: str, place: tuple[int, str, str]) -> None:
    assert place_of(name) == place


def test_several_stacks_of_layers_are_told_apart_and_the_largest_has_short_names() -> None:
    names = [(f"model.layers.{i}.q.weight", 4) for i in range(3)] + [
        ("visual.blocks.0.q.weight", 4),
        ("norm.weight", 1),
    ]
    places = Places(names, 100)
    assert places.kinds == ("q", "visual.blocks.*.q", "norm")
    assert places.layers == ("0", "1", "2", NO_LAYER)
    assert places.find("visual.blocks.0.q.weight") == ("0", "visual.blocks.*.q")
    assert places.find("norm.weight") == (NO_LAYER, "norm")


def test_layers_are_taken_together_where_there_are_more_than_a_picture_holds() -> None:
    places = Places([(f"layers.{i}.{kind}.weight", 1) for i in range(100) for kind in "abcd"], 120)
    assert len(places.layers) * len(places.kinds) <= 120
    assert places.layers[0] == "0-3" and places.find("layers.7.b.weight") == ("4-7", "b")


def test_names_without_any_order_become_few_kinds() -> None:
    places = Places([(f"tensor{i}x", i) for i in range(5000)], 2000)
    assert len(places.kinds) == MAX_KINDS and places.kinds[-1] == OTHERS
    assert places.find("tensor4999x") == (NO_LAYER, "tensor4999x")
    assert places.find("tensor1x") == (NO_LAYER, OTHERS)
