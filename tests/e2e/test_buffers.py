"""The whole command on checkpoints of which only some hold buffers, or hold others: they are no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ..merging import load_output, write_checkpoint, write_recipe
from .conftest import Command

Tensors = dict[str, torch.Tensor]
LAYER = "gpt_neox.layers.0.attention."
WEIGHTS = {
    "gpt_neox.embed_in.weight": (32, 16),
    f"{LAYER}query_key_value.weight": (48, 16),
    "embed_out.weight": (32, 16),
}


def weights(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in WEIGHTS.items()}


def buffers(seed: int, positions: int = 16) -> Tensors:
    """One of every kind; each differs with the seed, and the mask also in dtype."""
    mask = torch.tril(torch.ones(1, 1, positions, positions))
    return {
        f"{LAYER}bias": mask.bool() if seed % 2 else mask.to(torch.uint8),
        f"{LAYER}masked_bias": torch.tensor(-1e9 if seed % 2 else -1e4),
        f"{LAYER}rotary_emb.inv_freq": torch.full((4,), 1.0 / seed),
        f"{LAYER}k_scale": torch.tensor(0.5 * seed),
        "gpt_neox.position_ids": torch.arange(positions).reshape(1, -1) + seed,
        "norm.num_batches_tracked": torch.tensor(1000 * seed),
        "norm.running_var": torch.full((3,), float(seed)),
    }


def merged(
    folder: Path,
    anabranch: Command,
    base: Tensors,
    models: list[Tensors],
    config: dict[str, Any] | None = None,
    **keys: Any,
) -> tuple[Tensors, str]:
    write_checkpoint(folder / "base", base, 1, config)
    for i, tensors in enumerate(models):
        write_checkpoint(folder / f"m{i}", tensors, 1, config)
    listed = [{"model": str(folder / f"m{i}")} for i in range(len(models))]
    content = {"merge_method": "task_arithmetic", "base_model": str(folder / "base"), "models": listed} | keys
    result = anabranch("merge", write_recipe(folder / "r.yml", content), folder / "out")
    assert result.exit_code == 0, result.output
    return load_output(folder / "out"), " ".join(result.output.split())


def check(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_a_base_with_buffers_and_a_fine_tune_without(tmp_path: Path, anabranch: Command) -> None:
    base, tuned = weights(1) | buffers(1), weights(2)
    found, said = merged(tmp_path, anabranch, base, [tuned])
    check(found, base | tuned)
    for kind in ("causal masks", "values of masked positions", "rotary frequencies", "position ids"):
        assert f"m0 lacks 1 {kind}, which are no weights" in said
    assert "m0 lacks 1 of the reference's tensors: norm.running_var" in said


def test_a_fine_tune_with_buffers_and_a_base_without(tmp_path: Path, anabranch: Command) -> None:
    extra = {name: tensor for name, tensor in buffers(2).items() if name != "norm.running_var"}
    found, said = merged(tmp_path, anabranch, weights(1), [weights(2) | extra])
    check(found, weights(2))
    for kind in ("causal masks", "BatchNorm counters", "scales of a quantised KV cache"):
        assert f"m0 has 1 {kind}, which are no weights" in said


@pytest.mark.parametrize("keys", [{}, {"strict": True}, {"out_dtype": "float16"}])
def test_other_buffers_are_copied_from_the_base_as_they_are(
    keys: dict[str, Any], tmp_path: Path, anabranch: Command
) -> None:
    """Other values, another dtype of the mask, more positions; a value that float16 does not hold."""
    base, tuned = weights(1) | buffers(1), weights(2) | buffers(2, positions=24)
    found, _ = merged(tmp_path, anabranch, base, [tuned], **keys)
    expected = base | weights(2) | {"norm.running_var": tuned["norm.running_var"]}
    if keys.get("out_dtype"):
        expected |= {name: expected[name].half() for name in (*WEIGHTS, "norm.running_var")}
        found |= {name: found[name].float() for name in WEIGHTS}
        expected |= {name: expected[name].float() for name in WEIGHTS}
        for name in WEIGHTS:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-3)
            del found[name], expected[name]
    check(found, expected)


def test_an_average_takes_running_statistics_as_weights(tmp_path: Path, anabranch: Command) -> None:
    models = [weights(i) | buffers(i) for i in (1, 3)]
    found, _ = merged(tmp_path, anabranch, models[0], models, merge_method="linear", base_model=None)
    expected = models[0] | {n: (models[0][n] + models[1][n]) / 2 for n in (*WEIGHTS, "norm.running_var")}
    check(found, expected)


@pytest.mark.parametrize(
    ("architecture", "name", "said"),
    [
        ("T5EncoderModel", "decoder.block.0.layer.0.layer_norm.weight", "tensors that T5EncoderModel does not load"),
        ("BartForConditionalGeneration", "model.encoder.version", "does not load"),
        ("BartForConditionalGeneration", "final_logits_bias", "buffers that BartForConditionalGeneration makes itself"),
    ],
)
def test_what_an_architecture_does_not_need(
    architecture: str, name: str, said: str, tmp_path: Path, anabranch: Command
) -> None:
    """On either side alone it is copied from the base or left out, and said."""
    own, config = {"shared.weight": torch.randn(4, 3)}, {"architectures": [architecture]}
    for base, tuned in ((own, own | {name: torch.ones(2)}), (own | {name: torch.ones(2)}, own)):
        folder = tmp_path / str(len(base))
        found, printed = merged(folder, anabranch, base, [tuned], config, strict=True, allow_unchanged=True)
        assert found.keys() == base.keys()
        assert said in printed


def test_an_integer_tensor_that_is_no_buffer_must_still_agree(tmp_path: Path, anabranch: Command) -> None:
    for folder, steps in (("base", 1), ("m0", 2)):
        write_checkpoint(tmp_path / folder, weights(1) | {"token_map": torch.tensor([steps])})
    models = [{"model": str(tmp_path / "m0")}]
    content = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"), "models": models}
    result = anabranch("merge", write_recipe(tmp_path / "r.yml", content), tmp_path / "out")
    assert result.exit_code == 3
    assert "integer tensors cannot be merged" in result.stderr
