"""Which stored tensors are buffers and not weights; names from files of the architectures that have them."""

from __future__ import annotations

import pytest

from anabranch.engine.models.buffers import buffer_kind
from anabranch.engine.models.header import TensorInfo


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "kind"),
    [
        ("gpt_neox.layers.0.attention.bias", "BOOL", (1, 1, 16, 16), "causal masks"),
        ("gpt_neox.layers.0.attention.bias", "U8", (1, 1, 2048, 2048), "causal masks"),
        ("h.0.attn.bias", "F32", (1, 1, 1024, 1024), "causal masks"),
        ("transformer.h.0.attn.attention.bias", "F32", (1, 1, 8, 8), "causal masks"),  # GPT-Neo
        ("transformer.h.0.attn.causal_mask", "BOOL", (1, 1, 8, 8), "causal masks"),  # CodeGen
        ("transformer.h.0.attn.masked_bias", "F32", (), "values of masked positions"),
        ("gpt_neox.layers.0.attention.masked_bias", "F16", (1,), "values of masked positions"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", (64,), "rotary frequencies"),
        ("transformer.rotary_pos_emb.inv_freq", "F32", (32,), "rotary frequencies"),
        ("model.layers.0.self_attn.rotary_emb.cos_cached", "F32", (1, 1, 8, 4), "rotary frequencies"),
        ("model.rotary_emb.original_inv_freq", "F32", (4,), "rotary frequencies"),
        ("model.rotary_emb.sliding_attention_original_inv_freq", "F32", (4,), "rotary frequencies"),  # Gemma 3
        ("bert.embeddings.position_ids", "I64", (1, 512), "position ids"),
        ("vision_model.embeddings.position_ids", "I64", (1, 50), "position ids"),
        ("embeddings.token_type_ids", "I64", (1, 512), "position ids"),
        ("encoder.layer.0.attention.self.relative_position_index", "I64", (49, 49), "relative position indexes"),
        ("resnet.embedder.embedder.normalization.num_batches_tracked", "I64", (), "BatchNorm counters"),
        ("model.layers.0.self_attn.k_scale", "F32", (), "scales of a quantised KV cache"),
        ("model.layers.0.self_attn.v_proj.v_scale", "F32", (1,), "scales of a quantised KV cache"),
        ("model.layers.0.self_attn.attn.kv_scale", "F16", (8,), "scales of a quantised KV cache"),
        ("model.layers.0.self_attn.k_proj.output_scale", "F32", (), "scales of a quantised KV cache"),
        ("model.layers.0.self_attn.k_zero_point", "F32", (1,), "scales of a quantised KV cache"),
        ("model.embed_tokens.embed_scale", "F32", (), "scales of embeddings"),  # Gemma
        ("decoder.layers.0.self_attention._extra_state", "U8", (128,), "states of Transformer Engine"),
    ],
)
def test_buffers_by_kind(name: str, dtype: str, shape: tuple[int, ...], kind: str) -> None:
    assert buffer_kind(TensorInfo(name, dtype, shape, 0)) == kind


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("h.0.attn.c_attn.bias", "F32", (48,)),
        ("model.layers.0.attention.bias", "F32", (16,)),  # a layer's own bias
        ("encoder.layers.0.attention.bias", "F32", (16, 16)),  # a learned table of positions
        ("relative_attention_bias.weight", "F32", (32, 8)),
        ("model.layers.0.attn.mask", "F32", (16, 8)),
        ("embeddings.position_ids", "F32", (1, 8)),
        ("embeddings.position_embeddings.weight", "F32", (8, 8)),
        ("normalization.running_mean", "F32", (8,)),
        ("normalization.running_var", "F32", (8,)),
        ("logit_scale", "F32", ()),
        ("encoder.embed_scale", "F32", ()),
        ("model.embed_tokens.embed_scale", "F32", (16,)),
        ("model.layers.0.mlp.up_proj.weight_scale", "F32", ()),
        ("model.layers.0.attn.k_scale", "F32", (64, 64)),
        ("model.masked_bias", "F32", (16,)),
    ],
)
def test_weights_are_no_buffers(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    assert buffer_kind(TensorInfo(name, dtype, shape, 0)) == ""
