"""Tiny models of many architectures of the installed transformers, saved under all their names, merged and loaded.

The result must load with no missing, unexpected or re-initialised key, and hold what merging the loaded state dicts
gives.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ..adapters import product, write_adapter
from ..merging import merge, write_recipe

TEXT = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = TEXT | {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32, "pad_token_id": 0}
GROUPED |= {"bos_token_id": 1, "eos_token_id": 2}
EXPERTS = GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "decoder_sparse_step": 1}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 16, "patch_size": 8}
QWEN_VISION = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24}
QWEN_VISION |= {"out_hidden_size": 16, "fullatt_block_indexes": [1], "patch_size": 4}
SEQ2SEQ = {"vocab_size": 48, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24}
SEQ2SEQ |= {"decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
T5 = {"vocab_size": 48, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}

MODELS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": GROUPED,
    "MistralForCausalLM": GROUPED,
    "Qwen2ForCausalLM": GROUPED,
    "Qwen3ForCausalLM": GROUPED,
    "GemmaForCausalLM": GROUPED,
    "Gemma2ForCausalLM": GROUPED,
    "CohereForCausalLM": GROUPED,
    "Phi3ForCausalLM": GROUPED,
    "GPTNeoXForCausalLM": TEXT,
    "GPT2LMHeadModel": {"vocab_size": 48, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "BloomForCausalLM": {"vocab_size": 48, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "FalconForCausalLM": TEXT,
    "OPTForCausalLM": TEXT | {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "MixtralForCausalLM": GROUPED | {"num_local_experts": 4},
    "Qwen2MoeForCausalLM": EXPERTS | {"shared_expert_intermediate_size": 8},
    "Qwen3MoeForCausalLM": EXPERTS,
    "OlmoeForCausalLM": GROUPED | {"num_experts": 4, "num_experts_per_tok": 2},
    "BertForMaskedLM": TEXT,
    "BertModel": TEXT,
    "RobertaForMaskedLM": TEXT,
    "DistilBertForMaskedLM": {"vocab_size": 48, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2},
    "ElectraForPreTraining": TEXT | {"embedding_size": 16},
    "MPNetModel": TEXT,
    "T5ForConditionalGeneration": T5,
    "MT5ForConditionalGeneration": T5,
    "BartForConditionalGeneration": SEQ2SEQ,
    "ViTForImageClassification": VISION,
    "ViTModel": VISION,
    "DeiTModel": VISION,
    "CLIPVisionModel": VISION,
    "CLIPModel": {"text_config": TEXT | {"eos_token_id": 2}, "vision_config": VISION, "projection_dim": 8},
    "SiglipModel": {"text_config": TEXT, "vision_config": VISION},
    "LlavaForConditionalGeneration": {
        "text_config": GROUPED | {"model_type": "llama"},
        "vision_config": VISION | {"model_type": "clip_vision_model"},
    },
    "PaliGemmaForConditionalGeneration": {
        "text_config": GROUPED | {"model_type": "gemma"},
        "vision_config": VISION | {"model_type": "siglip_vision_model"},
        "projection_dim": 16,
    },
    "Gemma3ForConditionalGeneration": {"text_config": GROUPED, "vision_config": VISION, "mm_tokens_per_image": 4},
    "Qwen2_5_VLForConditionalGeneration": {
        "text_config": GROUPED | {"rope_parameters": ROPE},
        "vision_config": QWEN_VISION,
    },
}

QUICK = "as the class names it"

Rename = Callable[[str, str], str]
WAYS: dict[str, Rename] = {
    QUICK: lambda name, _prefix: name,
    "without the prefix": lambda name, prefix: name.removeprefix(f"{prefix}."),
    "compiled": lambda name, _prefix: f"_orig_mod.{name}",
}


def build(name: str, seed: int, **config: Any) -> Any:
    import transformers

    torch.manual_seed(seed)
    architecture = getattr(transformers, name)
    model = architecture(architecture.config_class(**MODELS[name], **config))
    with torch.no_grad():  # no tensor of ones or zeros, which would hide that two were taken for each other
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    model.tie_weights()
    return model.eval()


def stored(model: Any) -> dict[str, torch.Tensor]:
    """The state dict, tied tensors once, as training scripts save it."""
    copies = set(model.all_tied_weights_keys)
    return {n: t.contiguous().clone() for n, t in model.state_dict().items() if n not in copies}


def save(model: Any, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def save_renamed(model: Any, folder: Path, rename: Rename) -> None:
    tensors = stored(model)
    named = {rename(name, model.base_model_prefix): tensor for name, tensor in tensors.items()}
    assert len(named) == len(tensors)
    save(model, named, folder)


def is_transposed(module: Any) -> bool:
    """Whether it is a layer of GPT-2, whose matrices have a row for each input."""
    return type(module).__name__ == "Conv1D"


def layers(model: Any) -> dict[str, Any]:
    """Modules that adapters and quantisation change: those with a matrix that is not tied to another."""
    tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, torch.nn.Linear) or is_transposed(module)) and f"{name}.weight" not in tied
    }


def quantise(model: Any) -> dict[str, torch.Tensor]:
    """Matrices of layers as FP8 with a scale each, and what a loader makes of them into the model itself."""
    found = stored(model)
    for name, module in layers(model).items():
        scale = module.weight.detach().abs().max() / 448
        codes = (module.weight.detach() / scale).to(torch.float8_e4m3fn)
        found |= {f"{name}.weight": codes.contiguous(), f"{name}.weight_scale_inv": scale.reshape(1)}
        module.weight.data.copy_(codes.float() * scale)
    return found


def buffers(model: Any) -> dict[str, torch.Tensor]:
    """Those that this version of transformers does not save, while others did."""
    saved = model.state_dict()
    return {name: tensor.clone() for name, tensor in model.named_buffers() if name not in saved}


def halfway(base: Any, model: Any) -> dict[str, torch.Tensor]:
    """What merging the loaded state dicts gives."""
    theirs = model.state_dict()
    return {
        key: value + 0.5 * (theirs[key] - value) if value.is_floating_point() else value
        for key, value in base.state_dict().items()
    }


def assert_loads(name: str, folder: Path, expected: dict[str, torch.Tensor]) -> None:
    import transformers

    loaded, found = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert not found["mismatched_keys"]
    state = loaded.state_dict()
    assert set(state) == set(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(state[key], tensor, rtol=0, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")


SOME = [*MODELS][::3]


def quick(name: str, way: str, renamed: str) -> bool:
    """Whether a case belongs to the fast tests."""
    return way == QUICK and (renamed == "base" or name in SOME)


@pytest.mark.parametrize(
    ("name", "way", "renamed"),
    [
        pytest.param(*case, marks=() if quick(*case) else pytest.mark.slow)
        for case in itertools.product(MODELS, WAYS, ("base", "model"))
    ],
)
def test_a_merge_loads_and_holds_what_merging_the_loaded_models_gives(
    tmp_path: Path, name: str, way: str, renamed: str
) -> None:
    pytest.importorskip("transformers")
    base, model = build(name, 1), build(name, 2)
    other, saved = (base, model) if renamed == "base" else (model, base)
    saved_at, other_at = ("model", "base") if renamed == "base" else ("base", "model")
    saved.save_pretrained(tmp_path / saved_at)
    (tmp_path / other_at).mkdir()
    save_renamed(other, tmp_path / other_at, WAYS[way])
    entry = {"model": str(tmp_path / "model"), "parameters": {"weight": 0.5}}
    content = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"), "models": [entry]}
    merge(write_recipe(tmp_path / "recipe.yml", content), tmp_path / "out")
    expected = halfway(base, model)
    if renamed == "base" and way == "compiled":  # which no loader takes; the output keeps the base's names
        return
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [name]
    assert_loads(name, tmp_path / "out", expected)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SOME else pytest.mark.slow) for name in MODELS]
)
def test_a_quantised_model_with_buffers_beside_an_adapter(tmp_path: Path, name: str) -> None:
    pytest.importorskip("transformers")
    base, model = build(name, 1), build(name, 2)
    base.save_pretrained(tmp_path / "base")
    save(model, quantise(model) | buffers(model), tmp_path / "model")
    module, layer = next(iter(layers(base).items()))
    transposed = is_transposed(layer)
    rows, columns = layer.weight.T.shape if transposed else layer.weight.shape
    pair = {f"{module}.lora_A.weight": torch.randn(4, columns), f"{module}.lora_B.weight": torch.randn(rows, 4)}
    write_adapter(tmp_path / "adapter", pair, fan_in_fan_out=transposed)
    models = [str(tmp_path / "model"), f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"]
    entries = [{"model": each, "parameters": {"weight": 0.5}} for each in models]
    content = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"), "models": entries}
    merge(write_recipe(tmp_path / "recipe.yml", content), tmp_path / "out")
    expected, change = halfway(base, model), product(*pair.values(), 6 / 4)
    expected[f"{module}.weight"] = expected[f"{module}.weight"] + 0.5 * (change.T if transposed else change)
    assert_loads(name, tmp_path / "out", expected)


TIED = [name for name in MODELS if name.startswith(("Gemma", "Cohere", "GPT2", "Bloom", "Falcon", "OPT", "PaliGemma"))]
TIED += [name for name in MODELS if name.endswith("ForMaskedLM")]


@pytest.mark.parametrize("name", TIED)
def test_a_tied_model_on_an_untied_base(tmp_path: Path, name: str) -> None:
    pytest.importorskip("transformers")
    base, model = build(name, 1, tie_word_embeddings=False), build(name, 2)
    assert model.all_tied_weights_keys.keys() - base.all_tied_weights_keys.keys()
    for each, folder in ((base, "base"), (model, "model")):
        each.save_pretrained(tmp_path / folder)
    entry = {"model": str(tmp_path / "model"), "parameters": {"weight": 0.5}}
    content = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"), "models": [entry]}
    merge(write_recipe(tmp_path / "recipe.yml", content), tmp_path / "out")
    expected = halfway(base, model)
    assert_loads(name, tmp_path / "out", expected)
