"""Synthetic checkpoints for measurements: Llama-like, sharded, bf16, with heavy-tailed changes to the base.

The same arguments give the same bytes. Every tensor has random streams of its own, so a model's tensor is
written window by window without reading the base, in a few MiB of memory, whatever shard it lies in.

    python -m benchmarks.generate 0.1b --models 2
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from anabranch.engine.models.header import build_header

FORMAT = 1  # part of the folder's name: raise it whenever the bytes of a checkpoint change
DEFAULT_FOLDER = Path(".bench/checkpoints")
WINDOW = 1 << 18  # elements written at a time: all buffers together stay near 4 MiB and inside the cache
LEVELS = 1 << 16  # one 16-bit draw picks one of these equally likely quantiles
SPARE_BYTES = 2 << 30  # left free on the disk

# Typical fine-tunes in bf16 leave 40-50 % of the elements where they were, and their changes take so few
# values that nearly every block of 256 has equal magnitudes at the 25 % cut. These two constants bring both
# about (tests/unit/test_benchmarks.py measures it): the spread of the weights, and the change relative to it.
WEIGHT_SPREAD = 0.0155
CHANGE_RANGE = (0.0027, 0.0030)


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of a Llama-like model; ``experts`` > 0 adds stacked experts, as Llama 4 stores them."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocab: int = 32_000
    experts: int = 0


ARCHITECTURES = {
    "tiny": Architecture(hidden=96, intermediate=272, layers=3, heads=4, vocab=1_000),
    "small": Architecture(hidden=256, intermediate=704, layers=6, heads=4, vocab=8_000),
    "0.1b": Architecture(hidden=640, intermediate=1_728, layers=12, heads=10),
    "0.5b": Architecture(hidden=1_280, intermediate=3_456, layers=21, heads=20),
    "1.5b": Architecture(hidden=2_048, intermediate=5_632, layers=27, heads=16),
    "7b": Architecture(hidden=4_096, intermediate=11_008, layers=32, heads=32),
    "13b": Architecture(hidden=5_120, intermediate=13_824, layers=40, heads=40),
    "30b": Architecture(hidden=6_656, intermediate=17_920, layers=55, heads=52),  # 5 layers fewer than Llama's
    "moe-tiny": Architecture(hidden=64, intermediate=48, layers=2, heads=4, vocab=1_000, experts=8),
    "moe-0.6b": Architecture(hidden=1_024, intermediate=1_408, layers=2, heads=16, experts=64),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor to write: its shape, and the mean and spread of its base values."""

    name: str
    shape: tuple[int, ...]
    mean: float
    spread: float

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return 2 * self.numel


def tensors(architecture: Architecture) -> list[Tensor]:
    """All tensors in the order of the model's state dict."""
    a = architecture
    found: list[Tensor] = []

    def weight(name: str, *shape: int, spread: float = WEIGHT_SPREAD) -> None:
        found.append(Tensor(name, shape, 0.0, spread))

    def norm(name: str) -> None:
        found.append(Tensor(name, (a.hidden,), 1.0, 4 * WEIGHT_SPREAD))

    weight("model.embed_tokens.weight", a.vocab, a.hidden)
    for layer in range(a.layers):
        at = f"model.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj"):
            weight(f"{at}.self_attn.{part}.weight", a.hidden, a.hidden)
        weight(f"{at}.self_attn.o_proj.weight", a.hidden, a.hidden, spread=WEIGHT_SPREAD / 4)
        if a.experts:
            weight(f"{at}.feed_forward.experts.gate_up_proj", a.experts, a.hidden, 2 * a.intermediate)
            weight(f"{at}.feed_forward.experts.down_proj", a.experts, a.intermediate, a.hidden)
            weight(f"{at}.feed_forward.router.weight", a.experts, a.hidden)
        mlp = f"{at}.feed_forward.shared_expert" if a.experts else f"{at}.mlp"
        weight(f"{mlp}.gate_proj.weight", a.intermediate, a.hidden)
        weight(f"{mlp}.up_proj.weight", a.intermediate, a.hidden)
        weight(f"{mlp}.down_proj.weight", a.hidden, a.intermediate, spread=WEIGHT_SPREAD / 4)
        norm(f"{at}.input_layernorm.weight")
        norm(f"{at}.post_attention_layernorm.weight")
    norm("model.norm.weight")
    weight("lm_head.weight", a.vocab, a.hidden)
    return found


def checkpoints(size: str, models: int, folder: Path = DEFAULT_FOLDER, seed: int = 0) -> list[Path]:
    """Folders of the base and of ``models`` fine-tuned models, writing those that are not there yet."""
    parent = folder / f"{size}-seed{seed}-v{FORMAT}"
    paths = [parent / ("base" if number == 0 else f"model-{number}") for number in range(models + 1)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    wanted = tensors(ARCHITECTURES[size])
    if missing:
        parent.mkdir(parents=True, exist_ok=True)
        needed = len(missing) * sum(tensor.nbytes for tensor in wanted)
        free = shutil.disk_usage(parent).free
        if free < needed + SPARE_BYTES:
            raise SystemExit(f"{parent}: needs {needed + SPARE_BYTES} free bytes, has {free}")
    for number in missing:
        _write_checkpoint(paths[number], ARCHITECTURES[size], wanted, number, seed)
    return paths


def _write_checkpoint(path: Path, architecture: Architecture, wanted: Sequence[Tensor], number: int, seed: int) -> None:
    """Write into a neighbouring folder, then rename: a folder that is there is whole."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    shards = split(wanted, sum(tensor.nbytes for tensor in wanted) // (3, 5, 4, 7, 2, 6)[number % 6])
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    windows = Windows()
    for name, shard in zip(names, shards, strict=True):
        with open(partial / name, "wb") as file:
            ordered = sorted(shard, key=lambda tensor: tensor.name)
            header, _ = build_header([(tensor.name, "BF16", tensor.shape) for tensor in ordered], {"format": "pt"})
            file.write(header)
            for tensor in ordered:
                file.writelines(window.data for window in windows.of(tensor, number, seed))
            file.flush()
            os.fsync(file.fileno())  # so that no later measurement pays for these pages
    where = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in wanted)}, "weight_map": where}
    _write_json(partial / "model.safetensors.index.json", index)
    _write_json(partial / "config.json", config(architecture))
    _write_json(partial / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    for name, content in _tokenizer().items():
        _write_json(partial / name, content)
    partial.rename(path)


class Sized(Protocol):
    """A tensor, however it is described."""

    @property
    def nbytes(self) -> int: ...


AnyTensor = TypeVar("AnyTensor", bound=Sized)


def split(wanted: Sequence[AnyTensor], limit: float) -> list[list[AnyTensor]]:
    """Fill shards greedily up to so many bytes, as Hugging Face does."""
    shards: list[list[AnyTensor]] = [[]]
    filled = 0
    for tensor in wanted:
        if shards[-1] and filled + tensor.nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards


class Windows:
    """Generates tensors in windows of bf16 bit patterns; one set of buffers serves all of them.

    The array that ``of`` yields is overwritten by the next window.
    """

    def __init__(self) -> None:
        self._values = np.empty(WINDOW, np.float32)
        self._changes = np.empty(WINDOW, np.float32)
        self._rounding = np.empty(WINDOW, np.uint32)
        self._bits = np.empty(WINDOW, np.uint16)

    def of(self, tensor: Tensor, number: int, seed: int) -> Iterator[npt.NDArray[np.uint16]]:
        """Windows of ``tensor`` in checkpoint ``number`` (0 is the base)."""
        weights = np.random.Philox(key=_key(seed, "base", tensor.name))
        weight_levels = _round_to_bf16(tensor.mean + tensor.spread * _normal_quantiles())
        key = _key(seed, f"model-{number}", tensor.name)
        changes = np.random.Philox(key=key)
        low, high = CHANGE_RANGE
        change = tensor.spread * (low + (high - low) * (key % 1024) / 1023)
        change_levels = (change * _student_quantiles()).astype(np.float32)
        for first in range(0, tensor.numel, WINDOW):
            count = min(WINDOW, tensor.numel - first)
            values = self._values[:count]
            weight_levels.take(_draws(weights, count), out=values, mode="clip")
            if number:
                moved = self._changes[:count]
                change_levels.take(_draws(changes, count), out=moved, mode="clip")
                np.add(values, moved, out=values)
            yield self._rounded(values)

    def _rounded(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
        """Round to bf16, ties to even, and return the bit patterns."""
        pattern = values.view(np.uint32)
        rounded = self._rounding[: len(values)]
        np.right_shift(pattern, 16, out=rounded)
        np.bitwise_and(rounded, 1, out=rounded)
        np.add(rounded, 0x7FFF, out=rounded)
        np.add(rounded, pattern, out=rounded)
        bits = self._bits[: len(values)]
        np.copyto(bits, rounded.view(np.uint16)[1::2])  # little-endian: the high halves
        return bits


def _key(seed: int, stream: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}/{name}".encode()).digest()[:16], "little")


def _draws(generator: np.random.Philox, count: int) -> npt.NDArray[np.uint16]:
    raw: npt.NDArray[np.uint64] = generator.random_raw(-(-count // 4))
    return raw.view(np.uint16)[:count]


def _round_to_bf16(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    pattern = values.astype(np.float32).view(np.uint32)
    pattern += 0x7FFF + ((pattern >> 16) & 1)
    return (pattern & 0xFFFF0000).astype(np.uint32).view(np.float32)


@cache
def _normal_quantiles() -> npt.NDArray[np.float64]:
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf((level + 0.5) / LEVELS) for level in range(LEVELS)])


@cache
def _student_quantiles() -> npt.NDArray[np.float64]:
    """Student's t with 4 degrees of freedom, whose quantiles have a closed form (W. T. Shaw, 2006)."""
    p = (np.arange(LEVELS) + 0.5) / LEVELS
    alpha = 4 * p * (1 - p)
    q = np.cos(np.arccos(np.sqrt(alpha)) / 3) / np.sqrt(alpha)
    quantiles: npt.NDArray[np.float64] = np.sign(p - 0.5) * 2 * np.sqrt(q - 1)
    return quantiles


def config(architecture: Architecture) -> dict[str, object]:
    """Content of ``config.json``."""
    a = architecture
    content: dict[str, object] = {
        "architectures": ["Llama4ForCausalLM" if a.experts else "LlamaForCausalLM"],
        "model_type": "llama4_text" if a.experts else "llama",
        "hidden_size": a.hidden,
        "intermediate_size": a.intermediate,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.heads,
        "head_dim": a.hidden // a.heads,
        "vocab_size": a.vocab,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-05,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    if a.experts:
        content |= {"num_local_experts": a.experts, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1}
    return content


def _tokenizer() -> dict[str, object]:
    """A word-level tokenizer with a few words: enough for tools that copy or open one."""
    words = ["<unk>", "<s>", "</s>", *(f"word{number}" for number in range(253))]
    vocabulary = {word: number for number, word in enumerate(words)}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": i, "content": word, **special} for i, word in enumerate(words[:3])],
            "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
        },
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    assert sys.byteorder == "little", "the generator writes native words"
    parser = argparse.ArgumentParser(description="Write synthetic checkpoints.")
    parser.add_argument("size", choices=ARCHITECTURES)
    parser.add_argument("--models", type=int, default=2, help="fine-tuned models beside the base (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    options = parser.parse_args(arguments)
    for path in checkpoints(options.size, options.models, options.folder, options.seed):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
