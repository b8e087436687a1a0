"""The files of synthetic checkpoints: names, sizes, versions, and where the bytes of any range come from."""

from __future__ import annotations

import bisect
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple

from anabranch.engine.models.header import build_header

from .. import generate
from ..scale import llama_405b
from .pool import Pool, Span

BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}
SHARD_BYTES = 4_500_000_000


class Weight(NamedTuple):
    """One tensor of a checkpoint."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str
    """Of its values, see `pool`."""

    @property
    def nbytes(self) -> int:
        return BYTES[self.dtype] * math.prod(self.shape)


class Catalog(NamedTuple):
    """What a size stands for."""

    weights: tuple[Weight, ...]
    """In the order of the state dict."""
    config: dict[str, Any]

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(sorted({weight.kind for weight in self.weights}))

    @property
    def parameters(self) -> int:
        return sum(math.prod(weight.shape) for weight in self.weights if weight.kind != "scale")


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A file of a checkpoint: some bytes that are there, and tensors that are not."""

    head: bytes
    weights: tuple[Weight, ...] = ()
    starts: tuple[int, ...] = ()
    """Of the tensors in the file, and the file's end."""
    number: int = 0
    """Of the checkpoint."""
    version: str = ""

    @property
    def size(self) -> int:
        return self.starts[-1] if self.starts else len(self.head)

    def pieces(self, pool: Pool, begin: int, end: int) -> list[bytes | Span]:
        """Bytes `begin` to `end` in order, as bytes or as stretches of the pool's file."""
        found: list[bytes | Span] = []
        if begin < len(self.head):
            found.append(self.head[begin:end])
        at = max(0, bisect.bisect_right(self.starts, begin) - 1)
        for weight, start in zip(self.weights[at:], self.starts[at:], strict=False):
            if start >= end:
                break
            first, last = max(begin, start), min(end, start + weight.nbytes)
            found += pool.spans(weight.name, weight.kind, self.number, first - start, last - start)
        return found


def catalog(size: str) -> Catalog:
    """A Llama-like model in bf16: one of `generate`'s sizes, or `405b`, Llama 3.1's; with `-fp8` at its end in FP8."""
    name = size.removesuffix("-fp8")
    content = _llama_405b() if name == "405b" else _generated(name)
    return content if name == size else _in_fp8(content)


def _generated(name: str) -> Catalog:
    architecture = generate.ARCHITECTURES[name]
    kinds = {generate.WEIGHT_SPREAD: "weight", generate.WEIGHT_SPREAD / 4: "narrow", 4 * generate.WEIGHT_SPREAD: "norm"}
    weights = [Weight(t.name, "BF16", t.shape, kinds[t.spread]) for t in generate.tensors(architecture)]
    return Catalog(tuple(weights), generate.config(architecture))


def _llama_405b() -> Catalog:
    weights = []
    for name, dtype, shape in llama_405b():
        full = name if name == "lm_head.weight" else f"model.{name}.weight"
        weights.append(Weight(full, dtype, shape, "weight" if len(shape) == 2 else "norm"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    return Catalog(tuple(weights), config)


def _in_fp8(content: Catalog) -> Catalog:
    """The matrices of the layers in E4M3, each with `weight_scale`, a number per row; the rest as it is."""
    weights = []
    for weight in content.weights:
        if ".layers." in weight.name and len(weight.shape) == 2:
            weights.append(Weight(weight.name, "F8_E4M3", weight.shape, "fp8"))
            weights.append(Weight(f"{weight.name}_scale", "F32", (weight.shape[0], 1), "scale"))
        else:
            weights.append(weight)
    quantised = {"quantization_config": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}}
    return Catalog(tuple(weights), content.config | quantised)


def checkpoint_files(content: Catalog, number: int, seed: int, shard_bytes: int = SHARD_BYTES) -> dict[str, Synthetic]:
    """The files of one checkpoint by name.

    Args:
        content: what the model consists of.
        number: of the checkpoint; 0 is the base. Each is cut smaller than the one before it.
        seed: of all bytes.
        shard_bytes: about the size of a shard.
    """
    total = sum(weight.nbytes for weight in content.weights)
    shards = generate.split(content.weights, total / (math.ceil(total / shard_bytes) + number))
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    where = {weight.name: name for name, shard in zip(names, shards, strict=True) for weight in shard}
    index = {"metadata": {"total_size": total}, "weight_map": where}
    files = {name: _shard(shard, number) for name, shard in zip(names, shards, strict=True)}
    files["config.json"] = Synthetic(_json(content.config))
    files["model.safetensors.index.json"] = Synthetic(_json(index))
    return {name: replace(file, version=_version(seed, number, file)) for name, file in files.items()}


def _shard(shard: Sequence[Weight], number: int) -> Synthetic:
    head, infos = build_header([(weight.name, weight.dtype, weight.shape) for weight in shard], {"format": "pt"})
    weights = {weight.name: weight for weight in shard}
    ordered = tuple(weights[info.name] for info in infos)
    starts = accumulate((weight.nbytes for weight in ordered), initial=len(head))
    return Synthetic(head, ordered, tuple(starts), number)


def _version(seed: int, number: int, file: Synthetic) -> str:
    """An ETag that follows from what decides the bytes; no MD5, as of objects that came in parts."""
    digest = hashlib.sha256(f"{seed}/{number}/{file.size}/".encode() + file.head).hexdigest()
    return f"{digest[:32]}-{max(1, len(file.weights))}"


def _json(content: object) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"
