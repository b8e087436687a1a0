"""Tokens that a tokenizer's other files name: transformers adds those that tokenizer.json lacks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ...errors import InputError
from .tokenizer_json import AddedToken, Tokenizer, added_token

CONFIG_NAME = "tokenizer_config.json"
ADDED_NAME = "added_tokens.json"
MAP_NAME = "special_tokens_map.json"
DECLARING = (CONFIG_NAME, ADDED_NAME, MAP_NAME)

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


def with_declared(tokenizer: Tokenizer, files: Mapping[str, bytes], where: str) -> Tokenizer:
    """The tokenizer with the tokens that transformers adds: those listed with ids in their order, then special ones.

    Args:
        tokenizer: of tokenizer.json.
        files: those of DECLARING that are there, by name.
        where: the folder, for messages.

    Raises:
        InputError: a file is no JSON object, or a token in it is none.
    """
    missing: dict[str, AddedToken] = {}
    for token in _declared(files, where):
        if tokenizer.id_of(token.content) < 0:
            missing.setdefault(token.content, token)
    return replace(tokenizer, added=(*tokenizer.added, *missing.values())) if missing else tokenizer


def _declared(files: Mapping[str, bytes], where: str) -> Iterator[AddedToken]:
    config = _object(files, CONFIG_NAME, where)
    listed = config.get("added_tokens_decoder")
    if isinstance(listed, dict):
        for key in sorted(listed, key=lambda key: int(key) if key.isdecimal() and len(key) <= 18 else -1):
            yield added_token(listed[key], f"{where}/{CONFIG_NAME}")
    else:
        config = {**config, **_object(files, MAP_NAME, where)}
        ids = _object(files, ADDED_NAME, where)
        for content in sorted(ids, key=lambda content: ids[content] if isinstance(ids[content], int) else -1):
            yield added_token({"content": content}, f"{where}/{ADDED_NAME}")
    named = [config.get(key) for key in _NAMED]
    for key in _LISTS:
        found = config.get(key)
        named += found if isinstance(found, list) else found.values() if isinstance(found, dict) else []
    for token in named:
        if isinstance(token, str):
            yield AddedToken(token, normalized=False, special=True)
        elif isinstance(token, dict):
            yield replace(added_token(token, f"{where}/{CONFIG_NAME}"), special=True)


def _object(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{where}/{name} is not a JSON object")
    return content
