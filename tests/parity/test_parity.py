"""The same recipe, the same models: mergekit 0.1.5 and this project write the same checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from ..merging import Tensors, merge
from .checkpoints import TEMPLATES
from .conftest import Peer
from .recipes import CASES, Case, recipe

pytestmark = pytest.mark.parity

TOLERANCE = 1e-6
"""Absolute and relative: sums of fp32 numbers in another order differ in their last bits."""
AT_THE_THRESHOLD = {"arcee_fusion": 0.002}
"""Share of a tensor's elements that may fall on the other side: mergekit takes the divergence of rows in fp32, where it
is a small difference of large terms."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_outputs_are_equal(case: Case, peer: Peer, tmp_path: Path) -> None:
    ours, theirs = peer.both(case, tmp_path / "out")
    assert {name: (tuple(t.shape), t.dtype) for name, t in ours.items()} == {
        name: (tuple(t.shape), t.dtype) for name, t in theirs.items()
    }
    if case.name.startswith("tokenizers"):
        ours, theirs = by_token(ours, tmp_path / "out"), by_token(theirs, peer.output(case))
    allowed = AT_THE_THRESHOLD.get(case.name.partition(":")[0], 0.0)
    wrong = [
        f"{name}: {difference(ours[name], theirs[name])}"
        for name in ours
        if int(differs(ours[name], theirs[name]).sum()) > math.ceil(allowed * ours[name].numel())
    ]
    assert not wrong, "\n".join(wrong)
    assert sizes(tmp_path / "out") == sizes(peer.output(case))


@recipe(
    "the chat template of most models",
    """
    merge_method: linear
    models:
      - {model: words/base, parameters: {weight: 1}}
      - {model: words/more, parameters: {weight: 1}}
      - {model: words/other, parameters: {weight: 1}}
    base_model: words/base
    tokenizer_source: union
    chat_template: auto
    dtype: float32
    """,
)
def test_the_chat_template_is_the_same(case: Case, peer: Peer, tmp_path: Path) -> None:
    merge(peer.recipe(case), tmp_path / "out")
    ours, theirs = (
        AutoTokenizer.from_pretrained(str(output)).chat_template for output in (tmp_path / "out", peer.output(case))
    )
    assert ours == theirs == TEMPLATES["more"]["chat_template"]


def by_token(tensors: Tensors, checkpoint: Path) -> dict[str, torch.Tensor]:
    """Rows of embeddings as tensors named by their tokens, then those that no token has.

    mergekit numbers the tokens that it adds in the order of a hash table, another one in every run.
    """
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"] | {added["content"]: added["id"] for added in tokenizer["added_tokens"]}
    found = {}
    for name, tensor in tensors.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            found |= {f"{name}: {token}": tensor[row] for token, row in ids.items()}
            found[f"{name}: padding"] = tensor[len(ids) :]
        else:
            found[name] = tensor
    return found


def differs(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return ~torch.isclose(ours.double(), theirs.double(), rtol=tolerance(ours.dtype), atol=TOLERANCE)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    gap = (ours.double() - theirs.double()).abs()
    return f"{int((gap > TOLERANCE).sum())} of {gap.numel()} elements, at most {gap.max():.3g}"


def tolerance(dtype: torch.dtype) -> float:
    """A last bit of fp32 may decide how a value is rounded to a shorter type: one step of it, then."""
    return max(TOLERANCE, float(torch.finfo(dtype).eps))


def sizes(checkpoint: Path) -> tuple[int | None, int]:
    """Layers and tokens, as config.json has them; an encoder-decoder has no such number of layers."""
    config = json.loads((checkpoint / "config.json").read_text())
    return config.get("num_hidden_layers"), config["vocab_size"]
