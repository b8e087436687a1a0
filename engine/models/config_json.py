"""config.json read, and written again where it would not be true beside the output's weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import InputError
from ..recipe import OUTPUT_DTYPES

TORCH_NAMES = {dtype: name for name, dtype in OUTPUT_DTYPES.items()}
"""By the name in safetensors headers, what config.json calls a dtype."""


QUANTISATION_KEYS = ("quantization_config", "compression_config")
"""What describes quantised weights; the second is the older name that compressed-tensors wrote."""


def read_config(data: bytes, where: str, hint: str = "") -> dict[str, Any]:
    """The content of a small JSON file that is needed; InputError, with a hint, when it is not a JSON object."""
    try:
        config = json.loads(data)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise InputError(f"{where} is not a JSON object", hint)
    return config


def json_object(data: bytes) -> dict[str, Any]:
    """The content of a file that is looked into but not needed; {} when it is not a JSON object."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


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
        unquantise: leave out what describes quantised weights, because the output's are plain numbers.
        edits: other values, by path of keys, joined by `/`; all keys but the last of a path exist.

    Raises:
        InputError: the file is not a JSON object, or too deeply nested.
    """
    if dtype is None and not edits and not (unquantise and any(key.encode() in data for key in QUANTISATION_KEYS)):
        return data
    try:
        return _edited(data, dtype, where, unquantise, edits or {})
    except RecursionError:
        raise InputError(f"{where} is nested too deeply to be changed") from None


def _edited(data: bytes, dtype: str | None, where: str, unquantise: bool, edits: Mapping[str, Any]) -> bytes:
    config = read_config(data, where)
    before = copy.deepcopy(config)
    if unquantise:
        for part in _parts(config):
            for key in QUANTISATION_KEYS:
                part.pop(key, None)
    if dtype is not None:
        _set_dtype(config, TORCH_NAMES[dtype])
    for path, value in edits.items():
        *parents, key = path.split("/")
        holder = config
        for parent in parents:
            holder = holder[parent]
        holder[key] = value
    if config == before:
        return data
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _set_dtype(config: dict[str, Any], name: str) -> None:
    """Everywhere where a dtype is said; null in a part means that of the whole."""
    for part in _parts(config):
        for key in ("dtype", "torch_dtype"):
            if key in part and (part is config or isinstance(part[key], str)):
                part[key] = name


def _parts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The configuration and those of models inside it, but not what describes how weights are quantised."""
    yield config
    for key, value in config.items():
        if isinstance(value, dict) and key not in QUANTISATION_KEYS:
            yield from _parts(value)
