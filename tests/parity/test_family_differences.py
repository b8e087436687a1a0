"""Differences on purpose in which tensors of a model count, and under which names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .conftest import Peer
from .recipes import Case, recipe
from .test_differences import checkpoint
from .test_parity import differs, sizes

pytestmark = pytest.mark.parity


@recipe(
    "a tied model that stores its head, too",
    """
    merge_method: task_arithmetic
    base_model: qwen/base
    models: [{model: odd/copied_head, parameters: {weight: 0.6}}]
    dtype: float32
    """,
)
def test_theirs_writes_the_copy_of_a_tied_embedding_ours_leaves_it_out(case: Case, peer: Peer, tmp_path: Path) -> None:
    ours, theirs = peer.both(case, tmp_path / "out")
    assert set(theirs) - set(ours) == {"lm_head.weight"}
    assert not any(differs(ours[name], theirs[name]).any() for name in ours)


@recipe(
    "slices of a family without a list of tensors",
    """
    merge_method: passthrough
    slices:
      - sources: [{model: nemotron/base, layer_range: [0, 2]}]
      - sources: [{model: nemotron/a, layer_range: [1, 3]}]
    dtype: float32
    """,
)
def test_where_theirs_guesses_the_layers_the_end_is_the_first_slices_and_the_count_is_old(
    case: Case, peer: Peer, tmp_path: Path
) -> None:
    ours, theirs = peer.both(case, tmp_path / "out")
    base, a = checkpoint(peer, "nemotron/base"), checkpoint(peer, "nemotron/a")
    behind = {"lm_head.weight", "model.norm.weight", "model.norm.bias"}
    assert set(ours) == set(theirs)
    for name in ours:
        if name in behind:
            assert torch.equal(ours[name], a[name])
            assert torch.equal(theirs[name], base[name])
        else:
            assert torch.equal(ours[name], theirs[name])
    counts = (sizes(tmp_path / "out")[0], sizes(peer.output(case))[0])
    assert counts == (4, 3)


@recipe(
    "experts",
    """
    merge_method: linear
    models:
      - {model: mixtral/base, parameters: {weight: 1}}
      - {model: mixtral/a, parameters: {weight: 2}}
    dtype: float32
    """,
)
def test_theirs_joins_experts_as_transformers_holds_them_ours_keeps_their_names(
    case: Case, peer: Peer, tmp_path: Path
) -> None:
    ours, theirs = peer.both(case, tmp_path / "out")
    assert set(ours) == set(checkpoint(peer, "mixtral/base"))
    for layer in range(3):
        experts = [
            {
                part: ours[f"model.layers.{layer}.block_sparse_moe.experts.{i}.{part}.weight"]
                for part in ("w1", "w2", "w3")
            }
            for i in range(3)
        ]
        joined = f"model.layers.{layer}.mlp.experts"
        pairs = torch.stack([torch.cat((expert["w1"], expert["w3"])) for expert in experts])
        assert not differs(pairs, theirs[f"{joined}.gate_up_proj"]).any()
        assert not differs(torch.stack([expert["w2"] for expert in experts]), theirs[f"{joined}.down_proj"]).any()
