"""Small random checkpoints that transformers makes itself, of families unlike Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

_DECODER = {
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 51,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BART = {
    "d_model": 24,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 29,
    "vocab_size": 51,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write_families(folder: Path) -> None:
    """Checkpoints base and a of each family, with equal bytes every time.

    bart      an encoder of three layers, a decoder of two, tied embeddings
    mixtral   three experts in every layer
    nemotron  a decoder that mergekit 0.1.5 has no list of tensors for
    """
    _write(folder / "bart", AutoModelForSeq2SeqLM, AutoConfig.for_model("bart", **_BART))
    for family, own in (("mixtral", {"num_local_experts": 3}), ("nemotron", {})):
        _write(folder / family, AutoModelForCausalLM, AutoConfig.for_model(family, **_DECODER | own))


def _write(folder: Path, auto: Any, config: Any) -> None:
    generator = torch.Generator().manual_seed(31)
    model = auto.from_config(config).float()
    with torch.no_grad():
        for name in ("base", "a"):
            for parameter in model.parameters():
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn * 0.1 if name == "base" else parameter + drawn**3 * 0.01)
            model.save_pretrained(folder / name)
