"""Quantised checkpoints: FP8 weights with block scales become fp32 matrices; what cannot be merged is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .checkpoint import Checkpoint
from .derived import BlockScaled, Factor
from .errors import InputError
from .header import DTYPES, TensorInfo
from .source import TensorLocation

SCALE_SUFFIX = "_scale_inv"
"""`X.weight_scale_inv` holds the factors of the blocks of `X.weight` (DeepSeek-V3's public checkpoints)."""
DEFAULT_BLOCK = (128, 128)
OUT_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}

MXFP4 = ("_blocks", "_scales")
FOREIGN_FORMATS: Mapping[str, tuple[str, ...]] = {
    "GPTQ or AWQ (packed integers)": (".qweight", ".qzeros", ".g_idx"),
    "bitsandbytes": (
        ".absmax",
        ".quant_map",
        ".quant_state.bitsandbytes__nf4",
        ".quant_state.bitsandbytes__fp4",
        ".SCB",
    ),
    "compressed-tensors or ModelOpt": (".weight_packed", ".weight_scale", ".weight_scale_2", ".input_scale"),
    "MXFP4": MXFP4,
    "HQQ": (".W_q",),
    "AQLM": (".codebooks",),
}
"""Endings of tensor names by which other quantisations are known."""


def foreign_format(tensors: Mapping[str, TensorLocation]) -> tuple[str, str] | None:
    """(format, tensor name) of the first tensor of a quantisation that cannot be merged."""
    endings = {ending: kind for kind, group in FOREIGN_FORMATS.items() for ending in group}
    every = tuple(endings)
    for name, location in tensors.items():
        if name.endswith(every) and (not name.endswith(MXFP4) or location.info.dtype == "U8"):
            return next(kind for ending, kind in endings.items() if name.endswith(ending)), name
    return None


def with_block_scales(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint with its block-scaled FP8 matrices as F32 ones; the same object where it has none.

    Args:
        checkpoint: tensors as they are stored.
        config: its config.json, which says how large blocks are.

    Raises:
        InputError: a scale without weight, or shapes and dtypes that do not fit.
    """
    scaled = [name.removesuffix(SCALE_SUFFIX) for name in checkpoint.tensors if name.endswith(SCALE_SUFFIX)]
    if not scaled:
        return checkpoint
    block = _block(config.get("quantization_config"), checkpoint.url)
    out_dtype = OUT_DTYPES.get(str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"), "BF16")
    tensors = {name: at for name, at in checkpoint.tensors.items() if not name.endswith(SCALE_SUFFIX)}
    for name in scaled:
        weight = tensors.get(name)
        if weight is None:
            raise InputError(f"{checkpoint.url}: {name + SCALE_SUFFIX!r} has no weight {name!r} beside it")
        scale = checkpoint.tensors[name + SCALE_SUFFIX]
        if problem := _misfit(weight.info, scale.info, block):
            raise InputError(f"{checkpoint.url}: {name!r} {problem}")
        info = TensorInfo(name, "F32", weight.info.shape, 0)
        tensors[name] = TensorLocation(weight.file, info, BlockScaled(weight, Factor(scale, 0), block, out_dtype))
    note = (
        f"{checkpoint.url}: {len(scaled)} FP8 matrices are multiplied by their block scales while they are read; the "
        f"scales ({SCALE_SUFFIX}) and quantization_config are not part of an output"
    )
    reading = {"block_scales": {"block": list(block), "out_dtype": out_dtype}}
    return replace(
        checkpoint,
        tensors=tensors,
        reading={**checkpoint.reading, **reading},
        notes=(*checkpoint.notes, note),
    )


def _block(quantization: Any, url: str) -> tuple[int, int]:
    """Rows and columns of a block."""
    raw = quantization.get("weight_block_size") if isinstance(quantization, dict) else None
    if raw is None:
        return DEFAULT_BLOCK
    if not (isinstance(raw, list) and len(raw) == 2 and all(type(n) is int and 0 < n <= 1 << 20 for n in raw)):
        raise InputError(
            f"{url}/config.json: weight_block_size is {str(raw)[:80]}, expected two positive whole numbers"
        )
    return raw[0], raw[1]


def _misfit(weight: TensorInfo, scale: TensorInfo, block: tuple[int, int]) -> str:
    """Why a weight and its scales cannot be multiplied; empty when they can."""
    if weight.dtype not in ("F8_E4M3", "F8_E5M2"):
        return f"has block scales and is {weight.dtype}; expected F8_E4M3"
    if len(weight.shape) != 2:
        return f"has block scales and the shape {list(weight.shape)}; only matrices are supported"
    expected = [math.ceil(size / step) for size, step in zip(weight.shape, block, strict=True)]
    if list(scale.shape) != expected:
        return (
            f"has shape {list(weight.shape)} and scales of shape {list(scale.shape)}; blocks of "
            f"{block[0]} x {block[1]} need {expected}"
        )
    if DTYPES[scale.dtype].kind != "float" or DTYPES[scale.dtype].bits > 32:
        return f"has scales of dtype {scale.dtype}; expected F32"
    return ""
