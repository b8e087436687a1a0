"""What config.json must say of the output's tensors."""

from __future__ import annotations

from typing import Any

import pytest

from anabranch.engine.models.header import TensorInfo
from anabranch.engine.models.location import TensorLocation
from anabranch.engine.plan.output_config import vocabulary_edits
from anabranch.engine.plan.task import TensorTask, make_task

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tasks(**rows: int) -> list[TensorTask]:
    infos = [TensorInfo(name, "F32", (count, 4), 0) for name, count in rows.items()]
    return [make_task(i.name, TensorLocation(0, i), (), (0,), "F32", None, "excluded") for i in infos]


@pytest.mark.parametrize(
    ("config", "rows", "expected"),
    [
        ({"vocab_size": 32}, {EMBEDDING: 32, HEAD: 32}, {}),
        ({"vocab_size": 30}, {EMBEDDING: 32, HEAD: 32}, {"vocab_size": 32}),
        ({"vocab_size": 30}, {EMBEDDING: 32}, {"vocab_size": 32}),
        ({"text_config": {"vocab_size": 30}}, {EMBEDDING: 32}, {"text_config/vocab_size": 32}),
        (
            {"vocab_size": 30, "text_config": {"vocab_size": 30}},
            {EMBEDDING: 32},
            {"vocab_size": 32, "text_config/vocab_size": 32},
        ),
        ({"vocab_size": 30, "text_config": {"vocab_size": 32}}, {EMBEDDING: 32}, {}),  # the first means something else
        ({"audio_config": {"vocab_size": 7}}, {EMBEDDING: 32}, {}),
        ({"vocab_size": 32}, {EMBEDDING: 40, HEAD: 32}, {}),  # Mllama has rows for images
        ({"vocab_size": 30}, {EMBEDDING: 32, "decoder.embed_tokens.weight": 33}, {}),
        ({}, {EMBEDDING: 32}, {}),
        ({"vocab_size": 30}, {"model.norm.weight": 32}, {}),
    ],
)
def test_the_number_of_rows(config: dict[str, Any], rows: dict[str, int], expected: dict[str, int]) -> None:
    assert vocabulary_edits(config, tasks(**rows)) == expected
