"""Which tensors have rows of tokens, told by names and shapes."""

from __future__ import annotations

import pytest

from anabranch.engine.errors import InputError
from anabranch.engine.models.header import TensorInfo
from anabranch.engine.models.location import TensorLocation
from anabranch.engine.models.tokens.embeddings import find_embeddings

V = 1000


def tensors(dtype: str = "BF16", **shapes: tuple[int, ...]) -> dict[str, TensorLocation]:
    return {name: TensorLocation(0, TensorInfo(name, dtype, shape, 0)) for name, shape in shapes.items()}


def found(names: list[str], patterns: tuple[str, ...] = ()) -> list[str]:
    shapes = {name: (V,) if name.endswith("bias") else (V, 8) for name in names}
    rest = {"model.norm.weight": (8,), "model.layers.3.mlp.up.weight": (V, 8), "wpe.weight": (V, 8), "score": (2, 8)}
    return find_embeddings(tensors(**shapes, **rest), patterns, "m")


@pytest.mark.parametrize(
    "names",
    [
        ["model.embed_tokens.weight", "lm_head.weight"],  # Llama, Mistral, Qwen, Gemma
        ["model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"],  # Phi-2
        ["transformer.wte.weight"],  # GPT-2
        ["wte.weight"],
        ["transformer.word_embeddings.weight", "lm_head.weight"],  # Falcon
        ["gpt_neox.embed_in.weight", "embed_out.weight"],
        ["model.tok_embeddings.weight", "output.weight"],  # InternLM2
        ["transformer.embedding.word_embeddings.weight", "transformer.output_layer.weight"],  # ChatGLM
        ["backbone.embeddings.weight"],  # Mamba
        ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],  # T5
        [
            "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.weight",
            "cls.predictions.bias",
            "cls.predictions.decoder.bias",
        ],
        ["roberta.embeddings.word_embeddings.weight", "lm_head.bias", "lm_head.decoder.weight"],
        ["distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight", "vocab_projector.bias"],
        ["layers.0.wte.weight"],  # Phi-1
        ["model.language_model.embed_tokens.weight", "lm_head.weight"],  # vision-language models
    ],
)
def test_names_of_published_architectures(names: list[str]) -> None:
    assert found(names) == names


def test_an_unknown_name_with_as_many_rows_is_asked_about() -> None:
    with pytest.raises(
        InputError, match=r"are these rows tokens\? As many as in wte.weight, but unknown: odd"
    ) as error:
        found(["wte.weight", "odd"])
    assert "tokenizer: {embeddings: [...]}" in error.value.hint
    assert found(["wte.weight", "odd"], ("wte.*",)) == ["wte.weight"]
    assert found(["wte.weight", "odd"], ("wte.*", "odd")) == ["wte.weight", "odd"]


def test_a_bias_over_tokens_that_lies_across_is_asked_about() -> None:
    shapes = {"shared.weight": (V, 8), "final_logits_bias": (1, V)}
    with pytest.raises(InputError, match=r"final_logits_bias \[1, 1000\]"):
        find_embeddings(tensors(**shapes), (), "m")


def test_no_embedding_is_an_error() -> None:
    with pytest.raises(InputError, match="m: no tensor is known to be an embedding"):
        found([])
    with pytest.raises(InputError, match="no tensor is known"):
        found(["wte.weight"], ("nothing",))


@pytest.mark.parametrize(("dtype", "shape"), [("I8", (V, 8)), ("BF16", ())])
def test_what_has_no_rows_to_match_is_an_error(dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="its rows cannot be matched by token"):
        find_embeddings(tensors(dtype, **{"wte.weight": shape}), (), "m")
