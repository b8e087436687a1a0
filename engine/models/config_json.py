"""config.json read, and written again where the output's dtype or vocabulary differs."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from ..errors import InputError

TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


def read_config(data: bytes, where: str) -> dict[str, Any]:
    """The content of a config.json; InputError when it is not a JSON object."""
    try:
        config = json.loads(data)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise InputError(f"{where} is not a JSON object")
    return config


def patch_config(
    data: bytes,
    dtype: str | None,
    where: str,
    unquantise: bool = False,
    edits: Mapping[str, Any] | None = None,
) -> bytes:
    """config.json with its dtype set to the output's, and with edits; unchanged bytes when nothing changes.

    Args:
        data: the reference's.
        dtype: of the output; None: each tensor keeps the reference's.
        where: what to call the file in messages.
        unquantise: leave `quantization_config` out, because the output's weights are plain numbers.
        edits: other values, by path of keys that exist, joined by `/`.

    Raises:
        InputError: the file is not a JSON object, or too deeply nested.
    """
    if dtype is None and not unquantise and not edits:
        return data
    try:
        return _edited(data, dtype, where, unquantise, edits or {})
    except RecursionError:
        raise InputError(f"{where} is nested too deeply to be changed") from None


def _edited(data: bytes, dtype: str | None, where: str, unquantise: bool, edits: Mapping[str, Any]) -> bytes:
    config = read_config(data, where)
    before = copy.deepcopy(config)
    if unquantise:
        config.pop("quantization_config", None)
    for key in ("dtype", "torch_dtype"):
        if dtype is not None and key in config:
            config[key] = TORCH_NAMES[dtype]
    for path, value in edits.items():
        *parents, key = path.split("/")
        holder = config
        for parent in parents:
            holder = holder[parent]
        holder[key] = value
    if config == before:
        return data
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
