"""Which names are one matrix, for architectures of transformers' table and for unknown ones."""

from __future__ import annotations

from typing import Any

import pytest

from anabranch.engine.models.architectures import find_architecture
from anabranch.engine.models.checkpoint import Checkpoint
from anabranch.engine.models.header import TensorInfo
from anabranch.engine.models.location import TensorLocation
from anabranch.engine.models.tied_embeddings import is_tied, tied_groups, tied_to, with_own_copies, with_the_names_of

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ENCODER, DECODER = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
T5, GEMMA, LLAMA = "T5ForConditionalGeneration", "Gemma2ForCausalLM", "LlamaForCausalLM"


def checkpoint(url: str, names: list[str], tied: bool | None = None, architecture: str | None = None) -> Checkpoint:
    tensors = {name: TensorLocation(0, TensorInfo(name, "F32", (4, 2), i)) for i, name in enumerate(names)}
    config = {} if architecture is None else {"architectures": [architecture]}
    return Checkpoint(url, (), tensors, (), (), tied=tied, config=config)


@pytest.mark.parametrize(
    ("architecture", "groups"),
    [
        (None, [(EMBEDDING, HEAD)]),
        (LLAMA, [(EMBEDDING, HEAD)]),
        ("GPT2LMHeadModel", [("transformer.wte.weight", HEAD)]),
        ("GPT2LMHeadModel", [("wte.weight", HEAD)]),  # without the prefix
        ("GPTNeoXForCausalLM", [("gpt_neox.embed_in.weight", "embed_out.weight")]),  # as older files call the head
        ("CohereForCausalLM", [(EMBEDDING, HEAD)]),
        (T5, [("shared.weight", DECODER, ENCODER, HEAD)]),
        (T5, [(DECODER, ENCODER)]),
        (
            "BartForConditionalGeneration",
            [("model.shared.weight", HEAD, f"model.{DECODER}", f"model.{ENCODER}")],
        ),
        ("BartForConditionalGeneration", [("shared.weight", DECODER, ENCODER)]),
        ("WhisperForConditionalGeneration", [(f"model.{DECODER}", "proj_out.weight")]),
        (
            "BertForMaskedLM",
            [
                ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
                ("cls.predictions.bias", "cls.predictions.decoder.bias"),
            ],
        ),
    ],
)
def test_names_of_one_matrix(architecture: str | None, groups: list[tuple[str, ...]]) -> None:
    others = ["model.layers.0.mlp.up_proj.weight", "model.norm.weight", "encoder.block.0.layer.0.layer_norm.weight"]
    found = tied_groups(
        [*others, *(name for group in groups for name in reversed(group))],
        find_architecture({"architectures": [architecture]}) if architecture else None,
    )
    assert sorted(found) == sorted(groups)


@pytest.mark.parametrize(
    ("tied", "architecture", "expected"),
    [
        (None, None, None),
        (None, GEMMA, True),
        (None, "CohereForCausalLM", True),
        (None, "GPT2LMHeadModel", True),
        (None, T5, True),
        (None, LLAMA, False),
        (True, LLAMA, True),
        (False, GEMMA, False),
    ],
)
def test_what_holds_where_nothing_is_said(tied: bool | None, architecture: str | None, expected: Any) -> None:
    assert is_tied(checkpoint("/a", [EMBEDDING], tied, architecture)) is expected


def origins(made: Checkpoint, stored: Checkpoint) -> dict[str, str]:
    """By name, the stored tensor that it is read from."""
    names = {location.info.offset: name for name, location in stored.tensors.items()}
    return {name: names[location.info.offset] for name, location in made.tensors.items()}


@pytest.mark.parametrize(
    ("reference", "stored", "expected"),
    [
        (["shared.weight"], ["shared.weight", ENCODER, DECODER, HEAD], {"shared.weight": "shared.weight"}),
        (["shared.weight"], [DECODER], {"shared.weight": DECODER}),
        ([ENCODER, DECODER], ["shared.weight"], dict.fromkeys([ENCODER, DECODER], "shared.weight")),
        ([ENCODER, HEAD], ["shared.weight", DECODER], dict.fromkeys([ENCODER, HEAD], "shared.weight")),
    ],
)  # fmt: skip
def test_whichever_copies_a_file_stores(reference: list[str], stored: list[str], expected: dict[str, str]) -> None:
    model = checkpoint("/m", stored, architecture=T5)
    made = with_the_names_of(checkpoint("/base", reference, architecture=T5), model)
    assert origins(made, model) == expected
    assert made.notes
    assert made.decoding["tied"]


def test_a_reference_that_says_more_than_the_default() -> None:
    reference = checkpoint("/base", [EMBEDDING], True, LLAMA)
    model = checkpoint("/m", [EMBEDDING, HEAD], None, LLAMA)
    assert list(with_the_names_of(reference, model).tensors) == [EMBEDDING]
    silent = checkpoint("/base", [EMBEDDING], None, LLAMA)
    assert with_the_names_of(silent, model) is model


def test_copies_that_differ_are_tensors_of_their_own() -> None:
    model = checkpoint("/m", [EMBEDDING, HEAD], architecture=GEMMA)
    assert with_own_copies(model, lambda first, second: False) is model
    made = with_own_copies(model, lambda first, second: True)
    assert made.tied is False
    assert f"{HEAD} differs from {EMBEDDING}" in made.notes[0]
    untied = checkpoint("/m", [EMBEDDING, HEAD], False, GEMMA)
    assert with_own_copies(untied, lambda first, second: True) is untied


def test_what_a_tensor_that_is_not_stored_is_tied_to() -> None:
    assert tied_to(checkpoint("/m", [EMBEDDING], architecture=GEMMA), HEAD) == EMBEDDING
    assert tied_to(checkpoint("/m", [EMBEDDING], False, GEMMA), HEAD) is None
    assert tied_to(checkpoint("/m", ["shared.weight"], architecture=T5), ENCODER) == "shared.weight"
    assert tied_to(checkpoint("/m", [EMBEDDING], architecture=GEMMA), "model.norm.weight") is None
