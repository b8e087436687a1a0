"""Quantised checkpoints: FP8 weights with scales become fp32 matrices; what cannot be merged is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import InputError
from .checkpoint import Checkpoint
from .derived import BlockScaled, Factor
from .header import DTYPES, TensorInfo
from .location import TensorLocation

BLOCK_SUFFIX = "_scale_inv"
"""`X.weight_scale_inv` holds the factors of the blocks of `X.weight` (DeepSeek-V3's public checkpoints)."""
SCALE_SUFFIX = "_scale"
"""`X.weight_scale` holds one factor of `X.weight`, or one for each row or group (compressed-tensors, FBGEMM ...)."""
INPUT_SUFFIX = "input_scale"
"""`X.input_scale` belongs to `X.weight` and says how activations are quantised while the model runs."""
FP8 = ("F8_E4M3", "F8_E5M2")
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


def with_scales(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint with its scaled FP8 weights as F32 ones; the same object where it has none.

    Args:
        checkpoint: tensors as they are stored.
        config: its config.json, which says how large blocks are.

    Raises:
        InputError: a scale without weight, or shapes and dtypes that do not fit.
    """
    stored = checkpoint.tensors
    scales = {name.removesuffix(BLOCK_SUFFIX): name for name in stored if name.endswith(BLOCK_SUFFIX)}
    for name in stored:
        weight = name.removesuffix(SCALE_SUFFIX)
        if name.endswith(SCALE_SUFFIX) and weight in stored and stored[weight].info.dtype in FP8:
            scales[weight] = name
    if not scales:
        return checkpoint
    block = _block(config.get("quantization_config"), checkpoint.url)
    out_dtype = OUT_DTYPES.get(str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"), "BF16")
    unused = {f"{name.rpartition('.')[0]}.{INPUT_SUFFIX}" for name in scales} | set(scales.values())
    tensors = {name: location for name, location in stored.items() if name not in unused}
    for name, scale in scales.items():
        if name not in stored:
            raise InputError(f"{checkpoint.url}: {scale!r} has no weight {name!r} beside it")
        try:
            made = _scaled(stored[name], stored[scale], block if scale.endswith(BLOCK_SUFFIX) else None, out_dtype)
        except ValueError as error:
            raise InputError(f"{checkpoint.url}: {name!r} {error}") from None
        tensors[name] = TensorLocation(stored[name].file, TensorInfo(name, "F32", stored[name].info.shape, 0), made)
    note = (
        f"{checkpoint.url}: {len(scales)} FP8 tensors are multiplied by their scales while they are read; "
        f"{len(unused & set(stored))} tensors of scales, and quantization_config, are not part of an output"
    )
    reading = {"scales": {"block": list(block), "out_dtype": out_dtype}}
    return replace(
        checkpoint,
        tensors=tensors,
        decoding={**checkpoint.decoding, **reading},
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


def _scaled(
    weight: TensorLocation, scale: TensorLocation, block: tuple[int, int] | None, out_dtype: str
) -> BlockScaled:
    """A weight with its scales; ValueError with the reason why they cannot be multiplied.

    Stacked matrices, [n, R, C], are one of n * R rows where blocks do not cross from one to the next. Without `block`
    the scales cut the weight evenly: one for all, one for each row, or one for each group of columns.
    """
    of, by = weight.info, scale.info
    if of.dtype not in FP8:
        raise ValueError(f"has scales and is {of.dtype}; expected F8_E4M3")
    if DTYPES[by.dtype].kind != "float" or DTYPES[by.dtype].bits > 32:
        raise ValueError(f"has scales of dtype {by.dtype}; expected F32")
    shapes = f"has shape {list(of.shape)} and scales of shape {list(by.shape)}"
    if len(of.shape) < 2 or of.numel == 0:
        raise ValueError(f"{shapes}; only matrices are supported")
    rows, columns = of.numel // of.shape[-1], of.shape[-1]
    if block is not None:
        expected = [*of.shape[:-2], math.ceil(of.shape[-2] / block[0]), math.ceil(columns / block[1])]
        if list(by.shape) != expected:
            raise ValueError(f"{shapes}; blocks of {block[0]} x {block[1]} need {expected}")
        if len(of.shape) > 2 and of.shape[-2] % block[0]:
            raise ValueError(f"{shapes}; blocks of {block[0]} rows cross from one matrix to the next")
        cut = (by.numel // by.shape[-1], by.shape[-1])
    else:
        width = by.shape[-1] if len(by.shape) > 1 else 1
        cut = (by.numel // max(1, width), width)
        if len(of.shape) > 2 or not by.numel or rows % cut[0] or columns % cut[1]:
            raise ValueError(f"{shapes}; expected one scale, one for each row, or one for each group of columns")
        block = (rows // cut[0], columns // cut[1])
    matrix = replace(weight, info=replace(of, shape=(rows, columns)))
    return BlockScaled(matrix, Factor(replace(scale, info=replace(by, shape=cut)), 0), block, out_dtype)
