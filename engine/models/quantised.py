"""Quantised checkpoints: FP8 weights with scales become fp32 matrices; what cannot be merged is named."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import InputError, some_names
from ..recipe import OUTPUT_DTYPES
from .buffers import KV_SCALES, buffer_kind
from .checkpoint import Checkpoint
from .derived import BlockScaled, Factor, LowRank, MaskedChange
from .experts import Stack
from .header import DTYPES, TensorInfo
from .location import TensorLocation
from .row_gather import RowGather

BLOCK_SUFFIX = "_scale_inv"
"""`X.weight_scale_inv` holds the factors of the blocks of `X.weight` (DeepSeek-V3's checkpoints), or one factor."""
SCALE_NAMES = ("{}_scale", "{}._scale")
"""`X.weight_scale` holds one factor of `X.weight`, or one for each row or group (compressed-tensors, FBGEMM ...)."""
MODULE_SCALE_NAMES = ("{}.scale_weight", "{}.scale", "{}._weight_scale", "{}._scale")
"""`X.scale_weight` (ComfyUI) and `X.scale` (DeepSeek's own code) hold the factors of `X.weight`."""
BESIDE = ("input_scale", "scale_input", "activation_scale", "output_scale", "comfy_quant")
"""`X.input_scale` belongs to `X.weight` and says how activations are quantised while the model runs."""
MARKER = "scaled_fp8"
"""An empty tensor by which ComfyUI knows that weights have scales."""
MX_COLUMNS = 32
"""Columns that share a scale in the MX formats, which store it as an exponent (F8_E8M0, or U8 in older files)."""
FP8 = ("F8_E4M3", "F8_E5M2")
EIGHT_BIT_FLOATS = (*FP8, "F8_E4M3FNUZ", "F8_E5M2FNUZ")
DEFAULT_BLOCK = (128, 128)
OUT_DTYPES = {name: OUTPUT_DTYPES[name] for name in ("bfloat16", "float16", "float32")}

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
    "torchao": ("._weight_qdata",),
    "quanto": (".weight._data",),
}
"""Endings of tensor names by which other quantisations are known."""

_KV_SCALE = re.compile(r"(^|[._])((q|k|v|kv|prob|kv_cache)_scale|(k|v|kv|qkv)_proj\.output_scale)$")
"""Scales of a KV cache, which go with the quantisation of a model."""
_LIKE_A_SCALE = re.compile(r"(scale|scaling|amax)[^.]*$", re.IGNORECASE)
_LEARNED_SCALE = re.compile(r"norm|logit_scale|layer_?scale|router|per_expert_scale|embed_scale", re.IGNORECASE)
"""Scales that models learn, and that say nothing about how numbers are stored."""


def foreign_format(tensors: Mapping[str, TensorLocation]) -> tuple[str, str] | None:
    """(format, tensor name) of the first tensor of a quantisation that cannot be merged."""
    endings = {ending: kind for kind, group in FOREIGN_FORMATS.items() for ending in group}
    every = tuple(endings)
    for name, location in tensors.items():
        if name.endswith(every) and (not name.endswith(MXFP4) or location.info.dtype == "U8"):
            return next(kind for ending, kind in endings.items() if name.endswith(ending)), name
    return None


def stays_quantised(reference: Checkpoint, out_dtype: str | None) -> bool:
    """Whether an output with the names of a reference holds quantised weights, which it can only have as copies.

    Scales of a KV cache alone count, too: what describes them must stay beside them.
    """
    if foreign_format(reference.tensors) is not None:
        return True
    plain = [location.info for location in reference.tensors.values() if location.derived is None]
    if "scales" not in reference.decoding and any(info.dtype in FP8 for info in plain) and out_dtype in (None, *FP8):
        return True
    return any(buffer_kind(info) == KV_SCALES for info in plain)


def with_scales(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint with its scaled FP8 weights as F32 ones; the same object where it has none.

    Args:
        checkpoint: tensors as they are stored.
        config: its config.json, which says how large blocks are.

    Raises:
        InputError: a scale without weight, or shapes and dtypes that do not fit.
    """
    stored = checkpoint.tensors
    scales = _find_scales(checkpoint)
    if not scales:
        return checkpoint
    block = _block(config, checkpoint.url)
    out_dtype = OUT_DTYPES.get(str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"), "BF16")
    unused = set(scales.values()).union(*(_beside(name) for name in scales))
    of_cache = [name for name in stored if _KV_SCALE.search(name)]
    unused |= {*of_cache, *(name for name in stored if name.rpartition(".")[2] == MARKER)}
    tensors = {name: location for name, location in stored.items() if name not in unused}
    for name, scale in scales.items():
        if name not in stored:
            raise InputError(f"{checkpoint.url}: {scale!r} has no weight {name!r} beside it")
        try:
            made = _scaled(stored[name], stored[scale], block, out_dtype)
        except ValueError as error:
            raise InputError(f"{checkpoint.url}: {name!r} {error}") from None
        tensors[name] = TensorLocation(stored[name].file, TensorInfo(name, "F32", stored[name].info.shape, 0), made)
    note = (
        f"{checkpoint.url}: {len(scales)} FP8 tensors are multiplied by their scales while they are read; "
        f"{len(unused & set(stored))} tensors of scales, and quantization_config, are not part of an output"
    )
    notes = [*checkpoint.notes, note]
    if of_cache:
        what = f"{len(of_cache)} {KV_SCALES}, which are no weights, are left out"
        notes.append(f"{checkpoint.url}: {what}: {some_names(of_cache)}")
    reading = {"scales": {"block": list(block or DEFAULT_BLOCK), "out_dtype": out_dtype}}
    return replace(
        checkpoint,
        tensors=tensors,
        decoding={**checkpoint.decoding, **reading},
        notes=tuple(notes),
    )


def _find_scales(checkpoint: Checkpoint) -> dict[str, str]:
    """The name of every weight's scales, by the weight's; InputError where a weight has two."""
    stored = checkpoint.tensors
    scales = {name.removesuffix(BLOCK_SUFFIX): name for name in stored if name.endswith(BLOCK_SUFFIX)}
    for name, location in stored.items():
        if location.info.dtype not in FP8:
            continue
        forms = [form.format(name) for form in SCALE_NAMES]
        if name.endswith(".weight"):
            forms += [form.format(name.removesuffix(".weight")) for form in MODULE_SCALE_NAMES]
        found = [form for form in (name + BLOCK_SUFFIX, *forms) if form in stored and form != name]
        if len(found) > 1:
            raise InputError(
                f"{checkpoint.url}: {name!r} has several tensors of scales: {some_names(found)}",
                "Remove those that do not count, or name the checkpoint that was quantised.",
            )
        if found:
            scales[name] = found[0]
    return scales


def _beside(name: str) -> list[str]:
    """What else may be stored with a scaled weight and means nothing without its scales."""
    return [f"{name.rpartition('.')[0]}.{end}" for end in BESIDE]


def unscaled(tensors: Mapping[str, TensorLocation]) -> tuple[list[str], str] | None:
    """Matrices of 8-bit floats without scales, and what shows that they should have some; None where nothing does.

    Args:
        tensors: of a checkpoint `with_scales`.
    """
    codes = [name for name, location in tensors.items() if _may_need_scales(location)]
    if not codes:
        return None
    for name, location in tensors.items():
        if any(isinstance(source.derived, BlockScaled) for source in _sources(location)):
            return codes, f"{name!r} has scales"
        if _LIKE_A_SCALE.search(name) and not _LEARNED_SCALE.search(name):
            return codes, f"{name!r} looks like one"
    return None


def _may_need_scales(location: TensorLocation) -> bool:
    """Whether any part of a tensor is a matrix of 8-bit floats whose scales are not known."""
    if location.derived is None and location.info.dtype not in EIGHT_BIT_FLOATS:
        return False  # as nearly all are
    return any(
        source.derived is None and source.info.dtype in EIGHT_BIT_FLOATS and len(source.info.shape) > 1
        for source in _sources(location)
    )


def _sources(location: TensorLocation) -> Sequence[TensorLocation]:
    """The stored or scaled weights that a tensor is made of; low-rank changes left aside."""
    while isinstance(location.derived, LowRank | MaskedChange):
        location = location.derived.weight
    match location.derived:
        case RowGather(parts=parts) | Stack(pieces=parts):
            return [source for part in parts for source in _sources(part)]
        case _:
            return [location]


def _block(config: Mapping[str, Any], url: str) -> tuple[int, int] | None:
    """Rows and columns of a block, as config.json says; None where it does not."""
    nested = [config, config.get("text_config")]
    holders = [each for each in nested if isinstance(each, dict)]
    found = [each.get(key) for each in holders for key in ("quantization_config", "compression_config")]
    quantization = next((each for each in found if isinstance(each, dict)), {})
    raw = quantization.get("weight_block_size")
    groups = quantization.get("config_groups")
    for group in groups.values() if raw is None and isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        raw = raw or (weights.get("block_structure") if isinstance(weights, dict) else None)
    if raw is None:
        return None
    if not (isinstance(raw, list) and len(raw) == 2 and all(type(n) is int and 0 < n <= 1 << 20 for n in raw)):
        raise InputError(
            f"{url}/config.json: weight_block_size is {str(raw)[:80]}, expected two positive whole numbers"
        )
    return raw[0], raw[1]


def _scaled(
    weight: TensorLocation, scale: TensorLocation, declared: tuple[int, int] | None, out_dtype: str
) -> BlockScaled:
    """A weight with its scales; ValueError with the reason why they cannot be multiplied.

    Stacked matrices, [n, R, C], are one of n * R rows where blocks do not cross from one to the next. Scales of blocks
    have the shape that the blocks' size asks for; others cut the weight evenly: one for all, one for each of stacked
    matrices, one for each row, or one for each group of columns.
    """
    of, by = weight.info, scale.info
    if of.dtype not in FP8:
        raise ValueError(f"has scales and is {of.dtype}; expected F8_E4M3")
    shapes = f"has shape {list(of.shape)} and scales of shape {list(by.shape)}"
    if len(of.shape) < 2 or of.numel == 0:
        raise ValueError(f"{shapes}; only matrices are supported")
    if by.dtype == "U8" and by.shape == (*of.shape[:-1], of.shape[-1] // MX_COLUMNS):
        by = replace(by, dtype="F8_E8M0")
    if by.dtype != "F8_E8M0" and (DTYPES[by.dtype].kind != "float" or DTYPES[by.dtype].bits > 32):
        raise ValueError(f"has scales of dtype {by.dtype}; expected F32")
    rows, columns = of.numel // of.shape[-1], of.shape[-1]
    block = declared or DEFAULT_BLOCK
    expected = (*of.shape[:-2], math.ceil(of.shape[-2] / block[0]), math.ceil(columns / block[1]))
    of_blocks = by.name.endswith((BLOCK_SUFFIX, ".scale")) or declared is not None
    if by.numel != 1 and by.shape == expected and of_blocks:
        if len(of.shape) > 2 and of.shape[-2] % block[0]:
            raise ValueError(f"{shapes}; blocks of {block[0]} rows cross from one matrix to the next")
        cut = (by.numel // by.shape[-1], by.shape[-1])
    elif by.numel != 1 and by.name.endswith(BLOCK_SUFFIX):
        raise ValueError(f"{shapes}; blocks of {block[0]} x {block[1]} need {list(expected)}")
    else:
        cut = _even_cut(of, by)
        if not all(cut) or rows % cut[0] or columns % cut[1]:
            raise ValueError(f"{shapes}; expected one scale, one for each row, or one for each group of columns")
        block = (rows // cut[0], columns // cut[1])
    matrix = replace(weight, info=replace(of, shape=(rows, columns)))
    return BlockScaled(matrix, Factor(replace(scale, info=replace(by, shape=cut)), 0), block, out_dtype)


def _even_cut(of: TensorInfo, by: TensorInfo) -> tuple[int, int]:
    """Into how many rows and columns of blocks scales cut a weight; (0, 0) where they do not."""
    if len(of.shape) == 2 or by.numel == 1:
        width = by.shape[-1] if len(by.shape) > 1 else 1
        return by.numel // max(1, width), width
    if by.numel == math.prod(of.shape[:-2]) and by.shape[:1] == of.shape[:1]:
        return by.numel, 1
    return (by.numel // by.shape[-1], by.shape[-1]) if by.shape[:-1] == of.shape[:-1] and by.numel else (0, 0)
