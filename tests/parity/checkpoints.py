"""Small random checkpoints of real architectures, which both tools read: Llama without and Qwen2 with tied embeddings.

No size divides another, heads included, so that nothing fits by accident.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ..merging import Tensors, write_checkpoint

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS = 24, 37, 4, 2
WORDS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(48))]
"""The vocabulary of every checkpoint that names no other: 51 tokens."""
_TEMPLATE = "{% for message in messages %}{{ message['content'] }}</s>{% endfor %}"
TEMPLATES = {
    name: {"chat_template": text}
    for name, text in (("base", "{{ messages }}"), ("more", _TEMPLATE), ("other", _TEMPLATE))
}
"""What tokenizer_config.json of models with vocabularies of their own adds."""


def config(family: str, layers: int, vocabulary: int, dtype: torch.dtype, tied: bool) -> dict[str, Any]:
    """config.json as transformers writes it."""
    return {
        "architectures": [{"llama": "LlamaForCausalLM", "qwen": "Qwen2ForCausalLM"}[family]],
        "model_type": {"llama": "llama", "qwen": "qwen2"}[family],
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def shapes(family: str, layers: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors, as the architecture has them."""
    grouped = HIDDEN // HEADS * KV_HEADS
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for i in range(layers):
        attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        for name, rows in (("q", HIDDEN), ("k", grouped), ("v", grouped)):
            found[f"{attention}.{name}_proj.weight"] = (rows, HIDDEN)
            if family == "qwen":
                found[f"{attention}.{name}_proj.bias"] = (rows,)
        found[f"{attention}.o_proj.weight"] = (HIDDEN, HIDDEN)
        found |= {f"{mlp}.{name}_proj.weight": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
        found[f"{mlp}.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        for name in ("input", "post_attention"):
            found[f"model.layers.{i}.{name}_layernorm.weight"] = (HIDDEN,)
    found["model.norm.weight"] = (HIDDEN,)
    return found if family == "qwen" else found | {"lm_head.weight": (vocabulary, HIDDEN)}


def random_tensors(family: str, layers: int, vocabulary: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    made = {}
    for name, shape in shapes(family, layers, vocabulary).items():
        made[name] = torch.randn(shape, generator=generator) * 0.1
        if "layernorm" in name or "model.norm" in name:
            made[name] += 1
    return made


def fine_tuned(base: Tensors, generator: torch.Generator, share: float = 1.0) -> dict[str, torch.Tensor]:
    """The base with heavy-tailed changes of a share of its elements."""
    tuned = {}
    for name, tensor in base.items():
        change = torch.randn(tensor.shape, generator=generator) ** 3 * 0.01
        tuned[name] = tensor + change * (torch.rand(tensor.shape, generator=generator) < share)
    return tuned


def write_model(
    folder: Path,
    family: str,
    tensors: Tensors,
    words: Sequence[str] = WORDS,
    shards: int = 1,
    special: Mapping[str, str] | None = None,
    tied: bool | None = None,
) -> None:
    """`tied` is what config.json says; None: tied where there is no head."""
    layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("model.layers."))
    dtype = next(iter(tensors.values())).dtype
    tied = "lm_head.weight" not in tensors if tied is None else tied
    write_checkpoint(folder, tensors, shards, config(family, layers, len(words), dtype, tied))
    write_tokenizer(folder, words, special or {})


def write_tokenizer(folder: Path, words: Sequence[str], special: Mapping[str, str]) -> None:
    """tokenizer.json and its configuration: one token per word, numbered as listed.

    Args:
        folder: an existing checkpoint.
        words: every token; the first three are unknown, begin and end.
        special: further keys of tokenizer_config.json, such as chat_template.
    """
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(words[:3]))
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": words[0],
        "bos_token": words[1],
        "eos_token": words[2],
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described | dict(special), indent=2))


def write_all(folder: Path) -> None:
    """Every checkpoint that the recipes of this package name, with equal bytes every time.

    llama/base, a, b, c    4 layers, an lm_head of its own, every element of a, b and c changed
    llama/deep             6 layers, so that slices and the output have other layer counts than the base
    llama/half_a, half_b   half of the elements changed: many task vector elements are exactly zero
    qwen/base, a, b        2 layers, tied embeddings, biases, two files each
    qwen/untied            with a head of its own
    one/base, a, b         a single layer
    one/far, opposite      another base; a with all signs changed
    bf16/base, a, b        llama/base, a, b rounded to bfloat16
    words/base, more, other  one layer; more tokens, and others in another order; chat templates
    tied/base, more        the same with tied embeddings
    adapters/one, two      PEFT adapters of llama: some projections, all of them with a rank per module
    odd/extra, extra_too   one/a with a tensor that Llama does not have
    odd/buffers            one/base changed, with the frequencies of its positions, which old versions saved
    odd/missing, nan       one/a without a tensor; with a NaN
    odd/slight_a, slight_b one/base with changes of about 0.0003
    odd/wide, wide_a       embeddings of more than a million elements
    odd/copied_head        qwen/a with its tied head stored, too
    """
    generator = torch.Generator().manual_seed(20)
    for family, where, layers, shards in (("llama", "llama", 4, 1), ("qwen", "qwen", 2, 2), ("llama", "one", 1, 1)):
        base = random_tensors(family, layers, len(WORDS), generator)
        made = {"base": base} | {name: fine_tuned(base, generator) for name in "abc"}
        if where == "llama":
            made |= {name: fine_tuned(base, generator, 0.5) for name in ("half_a", "half_b")}
            made["deep"] = random_tensors("llama", 6, len(WORDS), generator)
            for name in ("base", "a", "b"):
                rounded = {tensor: values.bfloat16() for tensor, values in made[name].items()}
                write_model(folder / "bf16" / name, family, rounded)
        if where == "one":
            made["far"] = random_tensors("llama", 1, len(WORDS), generator)
            made["opposite"] = {name: -1.25 * tensor for name, tensor in made["a"].items()}
        if where == "qwen":
            head = {"lm_head.weight": made["c"]["model.embed_tokens.weight"] * 1.5}
            made["untied"] = made["c"] | head
            copied = {"lm_head.weight": made["a"]["model.embed_tokens.weight"].clone()}
            write_model(folder / "odd" / "copied_head", family, made["a"] | copied, tied=True)
        for name, tensors in made.items():
            write_model(folder / where / name, family, tensors, shards=shards)
    write_odd(folder / "odd", made["base"], made["a"], generator)
    write_vocabularies(folder, generator)
    write_adapter(folder / "adapters" / "one", ("q_proj", "v_proj"), 4, 8.0, generator)
    write_adapter(folder / "adapters" / "two", ("q_proj", "o_proj", "up_proj", "down_proj"), 3, 6.5, generator)


def write_vocabularies(folder: Path, generator: torch.Generator) -> None:
    """Models whose tokens differ: each vocabulary has rows of its own for what the others call the same."""
    words = {
        "base": WORDS,
        "more": [*WORDS, "<|start|>", "<|stop|>"],
        "other": [*WORDS[:3], *reversed(WORDS[9:]), "extra", "words"],
    }
    for family, where in (("llama", "words"), ("qwen", "tied")):
        base = random_tensors(family, 1, len(WORDS), generator)
        for name, vocabulary in words.items():
            if family == "qwen":  # transformers gives this token to every tokenizer of the family that lacks it
                vocabulary = ["<|endoftext|>" if word == "w0" else word for word in vocabulary]
            own = random_tensors(family, 1, len(vocabulary), generator)
            body = fine_tuned(base, generator) if name != "base" else base
            tensors = {n: own[n] if own[n].shape != t.shape else t for n, t in body.items()}
            write_model(folder / where / name, family, tensors, vocabulary, special=TEMPLATES.get(name))


def write_adapter(folder: Path, modules: Sequence[str], rank: int, alpha: float, generator: torch.Generator) -> None:
    """A PEFT adapter for every layer of llama/base, as `save_pretrained` writes it."""
    tensors = {}
    for name, shape in shapes("llama", 4, len(WORDS)).items():
        module = name.removesuffix(".weight")
        if module.endswith(tuple(modules)):
            prefix = f"base_model.model.{module}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, shape[1], generator=generator) * 0.1
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(shape[0], rank, generator=generator) * 0.1
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "llama/base",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(described, indent=2))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def write_odd(folder: Path, base: Tensors, tensors: Tensors, generator: torch.Generator) -> None:
    unknown = {"model.layers.0.self_attn.q_norm.weight": torch.ones(HIDDEN // HEADS)}
    write_model(folder / "extra", "llama", dict(tensors) | unknown)
    write_model(folder / "extra_too", "llama", dict(tensors) | unknown)
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": 1 / 10_000 ** (torch.arange(0, 6, 2) / 6)}
    write_model(folder / "buffers", "llama", fine_tuned(base, generator) | frequencies)
    write_model(folder / "missing", "llama", {n: t for n, t in tensors.items() if n != "model.norm.weight"})
    damaged = tensors["lm_head.weight"].clone()
    damaged[3, 5] = torch.nan
    write_model(folder / "nan", "llama", dict(tensors) | {"lm_head.weight": damaged})
    for name, size in (("slight_a", 0.0003), ("slight_b", 0.0001)):
        slight = {n: t + size * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        write_model(folder / name, "llama", slight)
    wide = [f"w{i}" for i in range(42_000)]
    tied = random_tensors("qwen", 1, len(wide), generator)
    write_model(folder / "wide", "qwen", tied, wide)
    write_model(folder / "wide_a", "qwen", fine_tuned(tied, generator), wide)
