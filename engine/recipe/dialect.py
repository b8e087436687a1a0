"""mergekit's other ways to write the same recipe become the plain one; files of its other tools are recognised."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .text import Document, KeyPath, Problem

OTHER_TOOLS: Mapping[str, str] = {
    "experts": "mergekit-moe builds mixtures of experts from such files; this is no recipe for merging weights",
    "genome": "mergekit-evolve searches with such files; write one of the recipes that it would try, with merge_method",
}
"""Keys that only files of mergekit's other commands have, and what those files are."""

MISPLACED: Mapping[str, str] = {
    "random_seed": "; did you mean 'seed'?",
    "layer_range": "; layers are chosen under `slices`, as sources with a layer_range",
}
"""What to say about keys that mergekit ignores where people write them."""

_HOLDS_A_REFERENCE = ("model", "base_model", "source", "tokenizer_source")
_HOLDS_AN_ADAPTER = ("adapter", "lora")
_REFERENCE_KEYS = {"model", *_HOLDS_AN_ADAPTER, "override_architecture"}


def plain_recipe(document: Document, known: Collection[str], problems: list[Problem]) -> dict[str, Any]:
    """The document without what only another notation needs.

    References written as mappings (`{model: {path: owner/name, revision: main}}`, as mergekit itself dumps them) become
    text. Unknown keys at the top that only hold an anchor, which is used elsewhere, are left out: what they say counts
    where it is used.

    Args:
        document: a mapping.
        known: the keys that a recipe may have at the top.
        problems: what is wrong is appended here.
    """
    found = {}
    for key, value in document.data.items():
        if value is not None and (key in known or key not in document.anchors):
            found[key] = _plain(value, (key,), problems)
    return found


def other_tool(data: Mapping[str, Any]) -> Problem | None:
    """The key that shows that a file is no recipe, with what it is."""
    for key, what in OTHER_TOOLS.items():
        if key in data and "merge_method" not in data:
            return Problem((key,), f"not a merge recipe: {what}")
    return None


def _plain(value: Any, path: KeyPath, problems: list[Problem]) -> Any:
    if isinstance(value, list):
        return [_plain(item, (*path, i), problems) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if path[-1] in _HOLDS_A_REFERENCE and "model" in value and set(value) <= _REFERENCE_KEYS:
        return _reference(value, path, problems)
    if path[-1] in _HOLDS_AN_ADAPTER:
        return _model_path(value) or value
    return {key: _plain(item, (*path, key), problems) for key, item in value.items()}


def _reference(raw: Mapping[str, Any], path: KeyPath, problems: list[Problem]) -> Any:
    """`owner/name@revision+adapter` from mergekit's mapping; the mapping itself when it is another thing."""
    if raw.get("override_architecture") is not None:
        text = "not supported: tensors are merged by name, whatever config.json calls the architecture; remove the key"
        problems.append(Problem((*path, "override_architecture"), text))
    parts = [_model_path(raw[key]) for key in ("model", *_HOLDS_AN_ADAPTER) if raw.get(key) is not None]
    if len(parts) > 2:
        problems.append(Problem(path, "expected one model and one adapter"))
    return "+".join(parts) if all(parts) else raw


def _model_path(raw: Any) -> str:
    """`owner/name@revision`, or "" when it is no such thing."""
    if isinstance(raw, str):
        return raw
    if not isinstance(raw, dict) or not set(raw) <= {"path", "revision"}:
        return ""
    path, revision = raw.get("path"), raw.get("revision")
    if not isinstance(path, str) or not isinstance(revision, str | None):
        return ""
    return f"{path}@{revision}" if revision else path
