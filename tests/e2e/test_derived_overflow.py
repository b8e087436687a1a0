"""What is computed while it is read and becomes infinite in fp32 is counted and refused, merged or copied alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from anabranch.engine.errors import InputError

from ..adapters import write_adapter
from ..merging import merge, write_checkpoint, write_recipe
from .vocabularies import HIDDEN, TEXTS, bpe, with_added, write_model

QWEN = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}
Models = Callable[[Path], list[str]]
Tensors = dict[str, torch.Tensor]


def adapted(a: float, b: float, **config: Any) -> Models:
    """A model and its base with an adapter."""

    def write(folder: Path) -> list[str]:
        name = "model.layers.0.self_attn.q_proj"
        write_checkpoint(folder / "base", {f"{name}.weight": torch.ones(6, 4)})
        factors = {f"{name}.lora_A.weight": torch.full((1, 4), a), f"{name}.lora_B.weight": torch.full((6, 1), b)}
        adapter = write_adapter(folder / "adapter", factors, r=1, **config)
        return [f"{folder}/base+{adapter}"]

    return write


def scaled(folder: Path) -> list[str]:
    """FP8 with a scale that only the largest code exceeds."""
    codes = torch.ones(4, 4)
    codes[1] = 448.0
    stored = {"q.weight": codes.to(torch.float8_e4m3fn), "q.weight_scale": torch.tensor(3e38)}
    write_checkpoint(folder / "model", stored)
    return [str(folder / "model")]


def stacked(folder: Path) -> list[str]:
    """Experts in FP8, one by one, beside a model that has them in one tensor."""
    plain, stored = {}, {}
    for matrix, shape in (("gate_proj", (4, 4)), ("up_proj", (4, 4)), ("down_proj", (4, 4))):
        for expert in range(2):
            name = f"model.layers.0.mlp.experts.{expert}.{matrix}.weight"
            plain[name] = torch.ones(shape)
            stored[name] = torch.full(shape, 448.0).to(torch.float8_e4m3fn)
            stored[f"{name}_scale"] = torch.tensor(3e38 if expert and matrix == "down_proj" else 1.0)
    packed = {
        "model.layers.0.mlp.experts.gate_up_proj": torch.ones(2, 8, 4),
        "model.layers.0.mlp.experts.down_proj": torch.ones(2, 4, 4),
    }
    write_checkpoint(folder / "packed", packed, 1, QWEN)
    write_checkpoint(folder / "apart", stored, 1, QWEN)
    return [str(folder / "packed"), str(folder / "apart")]


def gathered(folder: Path) -> list[str]:
    """A token that the first model lacks gets the mean of two others' rows, whose sum is beyond fp32."""
    tokenizer = bpe(TEXTS, 280)
    size = tokenizer.get_vocab_size()
    write_model(folder / "a", tokenizer, size, 1, torch.float32)
    for name in ("b", "c"):
        tensors = write_model(folder / name, with_added(tokenizer, AddedToken("<new>")), size + 1, 1, torch.float32)
        tensors["model.embed_tokens.weight"][size] = 3e38
        (folder / name / "model.safetensors.index.json").unlink()
        for file in (folder / name).glob("*.safetensors"):
            file.unlink()
        write_checkpoint(folder / name, tensors)
    return [str(folder / name) for name in ("a", "b", "c")]


KINDS: dict[str, tuple[Models, int, dict[str, Any]]] = {
    "factors": (adapted(1e30, 1e30), 24, {}),
    "factors that cancel": (adapted(1e30, -1e30), 24, {}),
    "scale": (adapted(1.0, 1.0, lora_alpha=1e39), 24, {}),
    "scaled product": (adapted(1e20, 1e10, lora_alpha=1e10), 24, {}),
    "fp8": (scaled, 4, {}),
    "experts": (stacked, 16, {}),
    "rows": (gathered, HIDDEN, {"tokenizer_source": "union"}),
}


@pytest.mark.parametrize("overflow", ["error", "saturate"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_counts_and_refuses_it(kind: str, overflow: str, tmp_path: Path) -> None:
    write, count, keys = KINDS[kind]
    models = [{"model": model, "parameters": {"weight": 0.1}} for model in write(tmp_path)]
    content = {"merge_method": "linear", "models": models, "overflow": overflow, "dtype": "float32", **keys}
    with pytest.raises(InputError, match=rf"holds {count} NaN or Inf values") as caught:
        merge(write_recipe(tmp_path / "r.yml", content), tmp_path / "out")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out" / "anabranch.manifest.json").exists()


@pytest.mark.parametrize("kind", ["factors", "scale", "fp8"])
def test_a_copy_counts_and_refuses_it(kind: str, tmp_path: Path) -> None:
    write, count, keys = KINDS[kind]
    content = {"merge_method": "passthrough", "models": [{"model": model} for model in write(tmp_path)], **keys}
    with pytest.raises(InputError, match=rf"holds {count} NaN or Inf values as it is computed"):
        merge(write_recipe(tmp_path / "r.yml", content), tmp_path / "out")
    assert not (tmp_path / "out" / "anabranch.manifest.json").exists()
