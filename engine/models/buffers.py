"""Buffers and leftovers: stored tensors that are no weights, by kind.

The code of a model computes them, or only counts with them while it is trained. Files of old versions of transformers
hold some that newer ones leave out, so one of two models may have them and the other not, or both with other values;
neither says anything about what the models learned.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from .header import DTYPES, TensorInfo


class _Kind(NamedTuple):
    what: str
    """In the plural, for reports."""
    pattern: re.Pattern[str]
    """What follows the last part of the module's name, or the whole name."""
    fits: Callable[[TensorInfo], bool]
    """Tells the buffer from a weight that has the same name in another architecture."""


def buffer_kind(info: TensorInfo) -> str:
    """What kind of buffer a tensor is, in the plural ("causal masks"); empty for a weight."""
    if info.name.endswith(WEIGHT) or not _OF_ANY_KIND.search(info.name):
        return ""
    for kind in _KINDS:
        if kind.pattern.search(info.name) and kind.fits(info):
            return kind.what
    return ""


def _is_square_mask(info: TensorInfo) -> bool:
    """[1, 1, n, n], as no bias of a layer is; or [n, n] where the name says that it is a mask."""
    if info.name.endswith(".bias") and len(info.shape) != 4:
        return False
    return len(info.shape) >= 2 and info.shape[-1] == info.shape[-2] and set(info.shape[:-2]) <= {1}


def _is_one_number(info: TensorInfo) -> bool:
    return info.numel == 1


def _is_integer(info: TensorInfo) -> bool:
    return DTYPES[info.dtype].kind != "float"


def _is_small_float(info: TensorInfo) -> bool:
    """One number, or one for each of at most a few hundred heads."""
    return DTYPES[info.dtype].kind == "float" and info.numel <= MAX_HEADS


def _is_any(_info: TensorInfo) -> bool:
    return True


KV_SCALES = "scales of a quantised KV cache"
MAX_HEADS = 1024
"""Scales of a KV cache are single numbers or one per head; a larger tensor of that name is something else."""

WEIGHT = ".weight"
"""How most names end, and no buffer's: a look at the end costs a hundredth of a search."""

_KINDS = (
    _Kind(
        "causal masks", re.compile(r"(^|\.)(\w*attn|\w*attention)\.(bias|mask|causal_mask|attn_mask)$"), _is_square_mask
    ),
    _Kind("values of masked positions", re.compile(r"(^|\.)masked_bias$"), _is_one_number),
    _Kind("rotary frequencies", re.compile(r"(^|\.)((\w+_)?inv_freq|cos_cached|sin_cached)$"), _is_any),
    _Kind("position ids", re.compile(r"(^|\.)(position_ids|token_type_ids)$"), _is_integer),
    _Kind("relative position indexes", re.compile(r"(^|\.)relative_position_index$"), _is_integer),
    _Kind("BatchNorm counters", re.compile(r"(^|\.)num_batches_tracked$"), _is_integer),
    _Kind(
        KV_SCALES,
        re.compile(r"(^|\.)((q|k|v|kv|prob|kv_cache)_scale|[kv]_zero_point|(k|v|kv|qkv)_proj\.output_scale)$"),
        _is_small_float,
    ),
    _Kind("scales of embeddings", re.compile(r"(^|\.)embed_tokens\.embed_scale$"), _is_one_number),
    _Kind("states of Transformer Engine", re.compile(r"(^|\.)_extra_state$"), _is_integer),
)
_OF_ANY_KIND = re.compile("|".join(kind.pattern.pattern for kind in _KINDS))
"""Most other names match none, which is asked once."""
