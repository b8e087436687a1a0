"""Tiny Llamas with tokenizers of their own, and the plain statement of what matching their rows means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ..merging import write_checkpoint

TEXTS = [
    "the cat sat on the mat and the hat",
    "a merge of two models is a model",
    "rivers leave rivers and join them again",
    "grüße aus dem naïven café",
]
OTHER_TEXTS = ["le chat est sur le tapis", "des modèles et des rivières", "the model of a river is a river"]
HIDDEN = 16
SPECIAL = ["<unk>", "<s>", "</s>"]


def bpe(texts: Sequence[str], size: int, special: Sequence[str] = SPECIAL) -> Tokenizer:
    """Byte-level BPE, as Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def unigram(texts: Sequence[str], size: int) -> Tokenizer:
    """Unigram with a marker of word starts, as T5 has it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wordpiece(texts: Sequence[str], size: int) -> Tokenizer:
    """WordPiece, as BERT has it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def with_added(tokenizer: Tokenizer, *tokens: AddedToken) -> Tokenizer:
    changed = Tokenizer.from_str(tokenizer.to_str())
    changed.add_tokens(list(tokens))
    return changed


def write_model(
    folder: Path,
    tokenizer: Tokenizer | None,
    rows: int,
    seed: int,
    dtype: torch.dtype = torch.bfloat16,
    tied: bool = False,
    config: Mapping[str, Any] | None = None,
) -> dict[str, torch.Tensor]:
    """A tiny Llama whose embedding has so many rows, with its tokenizer as transformers saves it."""
    generator = torch.Generator().manual_seed(seed)
    layer = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, HIDDEN)}
    shapes |= {f"{layer}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
    shapes |= {f"{layer}mlp.{name}_proj.weight": (24, HIDDEN) for name in ("gate", "up")}
    shapes[f"{layer}mlp.down_proj.weight"] = (HIDDEN, 24)
    shapes |= {f"{layer}{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    shapes["model.norm.weight"] = (HIDDEN,)
    if not tied:
        shapes["lm_head.weight"] = (rows, HIDDEN)
    tensors = {name: (torch.randn(shape, generator=generator) * 0.1).to(dtype) for name, shape in shapes.items()}
    llama = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": rows,
        "tie_word_embeddings": tied,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    write_checkpoint(folder, tensors, 2, llama | dict(config or {}))
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "added_tokens_decoder": {
                str(i): {
                    "content": token.content,
                    "lstrip": token.lstrip,
                    "rstrip": token.rstrip,
                    "normalized": token.normalized,
                    "single_word": token.single_word,
                    "special": token.special,
                }
                for i, token in tokenizer.get_added_tokens_decoder().items()
            },
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tensors


def permuted(
    models: Sequence[tuple[Mapping[str, int], torch.Tensor]],
    out: Mapping[str, int],
    base: int | None,
    multiple: int = 1,
) -> list[torch.Tensor]:
    """What mergekit's definition says, token by token, in fp32.

    Args:
        models: vocabulary and matrix of each; means are taken in this order.
        out: the output's vocabulary.
        base: which of them is the base.
        multiple: of which the number of rows is made a multiple.
    """
    size = len(out)
    results = [torch.zeros(size, *matrix.shape[1:]) for _, matrix in models]
    for token, row in out.items():
        rows = [
            matrix[vocabulary[token]].float() if vocabulary.get(token, 1 << 30) < len(matrix) else None
            for vocabulary, matrix in models
        ]
        there = [value for value in rows if value is not None]
        default = torch.zeros(models[0][1].shape[1:])
        if len(there) == 1:
            default = there[0]
        elif there and base is not None and rows[base] is not None:
            default = rows[base]  # type: ignore[assignment]
        elif there:
            for value in there:
                default = default + value
            default = default / len(there)
        for result, value in zip(results, rows, strict=True):
            result[row] = default if value is None else value
    padding = -size % multiple
    if padding:
        for i, result in enumerate(results):
            total = torch.zeros(result.shape[1:], dtype=torch.float64)
            for value in result:
                total = total + value
            results[i] = torch.cat([result, (total / size).float().expand(padding, *result.shape[1:])])
    return results
