"""JSON as this project writes it: one canonical spelling to hash, one readable spelling to keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Mapping[str, Any] | list[Any]) -> bytes:
    """One spelling per value: sorted keys, no spaces, no NaN, UTF-8."""
    return _compact(value).encode() + b"\n"


def readable_json(value: Mapping[str, Any]) -> bytes:
    """The same for files that people open: a line per key, and a line per entry of a list or mapping.

    Quick and small in memory too: a manifest may hold some rows for each of 100,000 tensors.
    """
    lines = ",\n".join(f" {_compact(key)}: {_table(value[key])}" for key in sorted(value))
    return f"{{\n{lines}\n}}\n".encode()


def _table(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        lines = ",\n".join(f"  {_compact(key)}: {_compact(value[key])}" for key in sorted(value))
        return f"{{\n{lines}\n }}"
    if isinstance(value, list) and value:
        lines = ",\n".join(f"  {_compact(entry)}" for entry in value)
        return f"[\n{lines}\n ]"
    return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
