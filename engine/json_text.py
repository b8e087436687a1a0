"""JSON as this project writes it: one canonical spelling to hash, one readable spelling to keep."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

SEAL = "record_sha256"
"""Key of a sealed record: the digest of everything else in it."""


def canonical_json(value: Mapping[str, Any] | list[Any]) -> bytes:
    """One spelling per value: sorted keys, no spaces, no NaN, UTF-8."""
    return _compact(value).encode() + b"\n"


def readable_json(value: Mapping[str, Any]) -> bytes:
    """The same for files that people open: a line per key, and a line per entry of a list or mapping.

    Quick and small in memory too: a manifest may hold some rows for each of 100,000 tensors.
    """
    lines = ",\n".join(f" {_compact(key)}: {_table(value[key])}" for key in sorted(value))
    return f"{{\n{lines}\n}}\n".encode()


def sealed_json(value: Mapping[str, Any], spell: Callable[[Mapping[str, Any]], bytes] = canonical_json) -> bytes:
    """A record with a digest of itself, so that whoever reads it again knows that it is what was written."""
    return spell({**value, SEAL: hashlib.sha256(canonical_json(value)).hexdigest()})


def unsealed(data: bytes) -> dict[str, Any]:
    """What `sealed_json` was given.

    Raises:
        ValueError: the bytes are no record, it has no digest, or not the digest of what it says.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from None
    if not isinstance(value, dict) or SEAL not in value:
        raise ValueError("it has no digest of itself")
    seal = value.pop(SEAL)
    if seal != hashlib.sha256(canonical_json(value)).hexdigest():
        raise ValueError("it is not what was written: its own digest is another")
    return value


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
