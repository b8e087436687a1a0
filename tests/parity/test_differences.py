"""Where both tools differ on purpose, the difference is what docs/mergekit.md says it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anabranch.engine.errors import InputError, RecipeError

from ..merging import load_output, merge, write_recipe
from .conftest import Peer
from .recipes import Case, recipe
from .test_parity import differs

pytestmark = pytest.mark.parity


def checkpoint(peer: Peer, name: str) -> dict[str, torch.Tensor]:
    return {name: t for file in (peer.folder / name).glob("*.safetensors") for name, t in load_file(file).items()}


@recipe(
    "arithmetic in bfloat16",
    """
    merge_method: task_arithmetic
    base_model: bf16/base
    models:
      - {model: bf16/a, parameters: {weight: 0.6}}
      - {model: bf16/b, parameters: {weight: 0.4}}
    dtype: bfloat16
    """,
)
def test_ours_rounds_once_theirs_at_every_step(case: Case, peer: Peer, tmp_path: Path) -> None:
    base, a, b = (checkpoint(peer, f"bf16/{name}") for name in ("base", "a", "b"))
    ours, theirs = peer.both(case, tmp_path / "out")
    wrong_of_ours = wrong_of_theirs = moved = 0
    for name, before in base.items():
        w0 = before.double()
        exact = (w0 + 0.6 * (a[name].double() - w0) + 0.4 * (b[name].double() - w0)).bfloat16()
        moved += int((exact != before).sum())
        wrong_of_ours += int((ours[name] != exact).sum())
        wrong_of_theirs += int((theirs[name] != exact).sum())
    assert wrong_of_ours < moved * 0.001  # values so near the middle that 0.6 in fp32 is not 0.6
    assert moved * 0.01 < wrong_of_theirs < moved * 0.5


@recipe(
    "no dtype, mixed types",
    """
    merge_method: task_arithmetic
    base_model: bf16/base
    models: [{model: llama/a, parameters: {weight: 1}}]
    """,
)
def test_without_a_dtype_ours_takes_that_of_the_base_theirs_the_widest(case: Case, peer: Peer, tmp_path: Path) -> None:
    ours, theirs = peer.both(case, tmp_path / "out")
    assert {t.dtype for t in ours.values()} == {torch.bfloat16}
    assert {t.dtype for t in theirs.values()} == {torch.float32}


@recipe(
    "a density that leaves nothing of a small tensor",
    """
    merge_method: ties
    base_model: llama/base
    models: [{model: llama/a, parameters: {weight: 1, density: 0.03}}]
    dtype: float32
    """,
)
def test_theirs_keeps_at_least_one_element(case: Case, peer: Peer, tmp_path: Path) -> None:
    base, (ours, theirs) = checkpoint(peer, "llama/base"), peer.both(case, tmp_path / "out")
    for name, tensor in base.items():
        kept = int(0.03 * tensor.numel())
        assert int((ours[name] != tensor).sum()) == kept
        assert int((theirs[name] != tensor).sum()) == max(kept, 1)
        assert kept == 0 or not differs(ours[name], theirs[name]).any()
    assert min(int(0.03 * tensor.numel()) for tensor in base.values()) == 0


@recipe(
    "equal magnitudes at the cut",
    """
    merge_method: ties
    base_model: bf16/base
    models: [{model: bf16/a, parameters: {weight: 1, density: 0.5}}]
    dtype: float32
    """,
)
def test_of_equal_magnitudes_ours_keeps_the_first(case: Case, peer: Peer, tmp_path: Path) -> None:
    base, a = checkpoint(peer, "bf16/base"), checkpoint(peer, "bf16/a")
    ours, theirs = peer.both(case, tmp_path / "out")
    with_a_choice = 0
    for name in base:
        change = (a[name].float() - base[name].float()).flatten()
        kept = {
            tool: (output[name] - base[name].float()).flatten() != 0 for tool, output in (("o", ours), ("t", theirs))
        }
        cut = change.abs()[kept["o"]].min()
        assert torch.equal(change.abs()[kept["o"]].sort().values, change.abs()[kept["t"]].sort().values)
        at_the_cut = kept["o"][change.abs() == cut]
        assert torch.equal(at_the_cut, at_the_cut.sort(descending=True, stable=True).values)
        with_a_choice += not at_the_cut.all()
    assert with_a_choice


@recipe(
    "a tensor that the architecture does not have",
    """
    merge_method: linear
    models:
      - {model: odd/extra, parameters: {weight: 1}}
      - {model: odd/extra_too, parameters: {weight: 1}}
    dtype: float32
    """,
)
def test_theirs_drops_tensors_that_it_does_not_know(case: Case, peer: Peer, tmp_path: Path) -> None:
    ours, theirs = peer.both(case, tmp_path / "out")
    assert set(ours) - set(theirs) == {"model.layers.0.self_attn.q_norm.weight"}
    assert set(theirs) <= set(ours)


@recipe(
    "a tensor that a model lacks",
    """
    merge_method: task_arithmetic
    base_model: one/base
    models: [{model: odd/missing, parameters: {weight: 1}}]
    dtype: float32
    """,
)
def test_a_tensor_that_a_model_lacks_is_unchanged_in_ours_and_an_error_in_theirs(
    case: Case, peer: Peer, tmp_path: Path
) -> None:
    assert "model.norm.weight required but not present" in peer.refusal(case)
    merge(peer.recipe(case), tmp_path / "out")
    ours = load_output(tmp_path / "out")
    assert torch.equal(ours["model.norm.weight"], checkpoint(peer, "one/base")["model.norm.weight"])


@recipe(
    "values that are not numbers",
    """
    merge_method: linear
    models:
      - {model: one/a, parameters: {weight: 1}}
      - {model: odd/nan, parameters: {weight: 1}}
    dtype: float32
    """,
)
def test_ours_stops_at_nan_theirs_writes_it(case: Case, peer: Peer, tmp_path: Path) -> None:
    assert any(t.isnan().any() for t in load_output(peer.output(case)).values())
    with pytest.raises(InputError, match="odd/nan"):
        merge(peer.recipe(case), tmp_path / "out")


@recipe(
    "a weight that nobody gave",
    """
    merge_method: task_arithmetic
    base_model: one/base
    models: [{model: one/a}]
    dtype: float32
    """,
)
def test_a_weight_is_1_in_ours_and_required_in_theirs(case: Case, peer: Peer, tmp_path: Path) -> None:
    assert "Missing required parameter weight" in peer.refusal(case)
    merge(peer.recipe(case), tmp_path / "out")
    ours, a = load_output(tmp_path / "out"), checkpoint(peer, "one/a")
    assert not any(differs(ours[name], a[name]).any() for name in a)


@recipe(
    "one model listed twice",
    """
    merge_method: task_arithmetic
    base_model: one/base
    models:
      - {model: one/a, parameters: {weight: 0.25}}
      - {model: one/a, parameters: {weight: 0.75}}
    dtype: float32
    """,
)
def test_a_model_may_be_listed_twice_in_ours_only(case: Case, peer: Peer, tmp_path: Path) -> None:
    assert "Duplicate merge inputs" in peer.refusal(case)
    merge(peer.recipe(case), tmp_path / "out")
    ours, a = load_output(tmp_path / "out"), checkpoint(peer, "one/a")
    assert not any(differs(ours[name], a[name]).any() for name in a)


@recipe(
    "sce: a share of 680 elements",
    """
    merge_method: sce
    base_model: llama/base
    models: [{model: llama/half_a}, {model: llama/half_b}]
    parameters: {select_topk: 0.35}
    dtype: float32
    """,
)
def test_ours_counts_the_selected_share_in_fp64_theirs_in_fp32(case: Case, peer: Peer, tmp_path: Path) -> None:
    ours, theirs = peer.both(case, tmp_path / "out")
    name = "model.layers.2.mlp.down_proj.weight"
    base, a, b = (checkpoint(peer, f"llama/{model}")[name] for model in ("base", "half_a", "half_b"))
    varied = int((a != b).sum())
    assert (varied, int(varied * 0.35), int(torch.tensor(varied) * 0.35)) == (680, 237, 238)
    assert int((ours[name] != base).sum()) == 237
    assert int((theirs[name] != base).sum()) == 238


@recipe(
    "sce: slight changes",
    """
    merge_method: sce
    base_model: one/base
    models: [{model: odd/slight_a}, {model: odd/slight_b}]
    dtype: float32
    """,
)
def test_theirs_weighs_all_models_alike_when_changes_are_slight(case: Case, peer: Peer, tmp_path: Path) -> None:
    ours, theirs = peer.both(case, tmp_path / "out")
    for name, before in checkpoint(peer, "one/base").items():
        t = torch.stack([checkpoint(peer, f"odd/{model}")[name] - before for model in ("slight_a", "slight_b")])
        sizes = t.double().square().flatten(1).mean(dim=1)
        assert sizes.sum() < 1e-6
        for output, weights in ((ours, sizes / sizes.sum()), (theirs, torch.tensor([0.5, 0.5]))):
            agree = (t >= 0) == (t.sum(dim=0) >= 0)
            part = weights.reshape(-1, *[1] * before.dim()) * agree
            expected = before + (part * t).sum(dim=0) / part.sum(dim=0)
            assert not differs(output[name], expected.float()).any()


@recipe(
    "arcee_fusion: more than a million elements",
    """
    merge_method: arcee_fusion
    base_model: odd/wide
    models: [{model: odd/wide_a}]
    dtype: float32
    """,
)
def test_ours_takes_quantiles_of_all_elements_theirs_of_a_sample(case: Case, peer: Peer, tmp_path: Path) -> None:
    ours, theirs = peer.both(case, tmp_path / "out")
    name = "model.embed_tokens.weight"
    base, tuned = checkpoint(peer, "odd/wide")[name], checkpoint(peer, "odd/wide_a")[name]
    p, q = (torch.softmax(t.double(), dim=-1) + 1e-8 for t in (tuned, base))
    importance = (tuned - base).double().abs() * (p * (p / q).log()).sum(dim=-1, keepdim=True)
    ordered = importance.flatten().sort().values
    low, middle, high = (ordered[int(share * (ordered.numel() - 1))] for share in (0.25, 0.5, 0.75))
    expected = (importance >= middle + 1.5 * (high - low)) & (tuned != base)
    assert int(((ours[name] != base) != expected).sum()) <= 2  # fp32 decides at the threshold itself
    assert 2 < int(((theirs[name] != base) != expected).sum()) < base.numel() * 0.01


@recipe(
    "a Qwen2 with more layers",
    """
    slices:
      - sources: [{model: qwen/a, layer_range: [0, 2]}]
      - sources: [{model: qwen/b, layer_range: [0, 2]}]
    merge_method: passthrough
    dtype: float32
    """,
)
def test_ours_changes_the_layer_count_of_families_whose_config_lists_layers(
    case: Case, peer: Peer, tmp_path: Path
) -> None:
    assert "`num_hidden_layers` (4) must be equal to the number of `layer_types` (2)" in peer.refusal(case)
    merge(peer.recipe(case), tmp_path / "out")
    ours = load_output(tmp_path / "out")
    for model, first in (("a", 0), ("b", 2)):
        for name, tensor in checkpoint(peer, f"qwen/{model}").items():
            if name.startswith("model.layers."):
                layer, _, rest = name.removeprefix("model.layers.").partition(".")
                assert torch.equal(ours[f"model.layers.{first + int(layer)}.{rest}"], tensor)


@recipe(
    "a head that only a model has",
    """
    merge_method: task_arithmetic
    base_model: qwen/base
    models: [{model: qwen/a, parameters: {weight: 0.6}}, {model: qwen/untied, parameters: {weight: 0.4}}]
    dtype: float32
    """,
)
def test_theirs_writes_a_head_that_the_configuration_hides_ours_asks(case: Case, peer: Peer, tmp_path: Path) -> None:
    assert "lm_head.weight" in load_output(peer.output(case))
    assert json.loads((peer.output(case) / "config.json").read_text())["tie_word_embeddings"] is True
    with pytest.raises(InputError, match=r"lm_head.weight(.|\n)*extra_tensors: ignore"):
        merge(peer.recipe(case), tmp_path / "out")
    ignoring = write_recipe(peer.folder / "ignoring.yml", case.data | {"extra_tensors": "ignore"})
    merge(ignoring, tmp_path / "out")
    ours, theirs = load_output(tmp_path / "out"), load_output(peer.output(case))
    assert set(theirs) - set(ours) == {"lm_head.weight"}
    assert not any(differs(ours[name], theirs[name]).any() for name in ours)


@recipe(
    "a base that is not listed",
    """
    merge_method: linear
    base_model: one/base
    models: [{model: one/a}, {model: one/b}]
    parameters: {weight: 1}
    dtype: float32
    """,
)
def test_theirs_averages_a_base_that_is_not_listed_ours_asks(case: Case, peer: Peer, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="base_model: linear merges what `models` lists"):
        merge(peer.recipe(case), tmp_path / "out")
    theirs = load_output(peer.output(case))
    base, a, b = (checkpoint(peer, f"one/{name}") for name in ("base", "a", "b"))
    assert not any(differs((base[name] + a[name] + b[name]) / 3, theirs[name]).any() for name in base)


@recipe(
    "a base that is not listed, on the sphere",
    """
    merge_method: karcher
    base_model: one/base
    models: [{model: one/a}, {model: one/b}]
    dtype: float32
    """,
)
def test_theirs_takes_the_mean_with_a_base_that_is_not_listed_ours_asks(case: Case, peer: Peer, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="base_model: karcher merges what `models` lists"):
        merge(peer.recipe(case), tmp_path / "out")
    listed = case.data | {"models": [{"model": f"one/{name}"} for name in ("base", "a", "b")]}
    merge(write_recipe(peer.folder / "listed.yml", listed), tmp_path / "out")
    ours, theirs = load_output(tmp_path / "out"), load_output(peer.output(case))
    assert not any(differs(ours[name], theirs[name]).any() for name in ours)


@recipe(
    "weights that add up to 0",
    """
    merge_method: linear
    models:
      - {model: one/a, parameters: {weight: 1}}
      - {model: one/b, parameters: {weight: -1}}
    dtype: float32
    """,
)
def test_theirs_divides_by_weights_that_add_up_to_0_ours_does_not(case: Case, peer: Peer, tmp_path: Path) -> None:
    ours, theirs = peer.both(case, tmp_path / "out")
    a, b = checkpoint(peer, "one/a"), checkpoint(peer, "one/b")
    assert not any(differs(ours[name], a[name] - b[name]).any() for name in a)
    assert not any(t.isfinite().any() for t in theirs.values())
