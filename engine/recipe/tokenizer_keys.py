"""The recipe's `tokenizer` and `chat_template`: whose tokens the output has, and where missing rows come from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from .parameters import read_flag, read_number
from .text import did_you_mean, shorten

MAX_MULTIPLE = 1 << 16
MAX_CHAT_TEMPLATE = 1 << 20
"""Characters; real templates have a few thousand."""

ReadReference = Callable[[Any], str]
"""Checks the name of a model, as everywhere in a recipe."""


class TokenSource(BaseModel):
    """Where the row of a token comes from when a model lacks it."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    model: str | None = None
    """None: zeros."""
    token: str | None = None
    token_id: int | None = None


class TokenEntry(BaseModel):
    """What a recipe says about one token."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    source: TokenSource | None = None
    """None: the default."""
    force: bool = False


class TokenizerKeys(BaseModel):
    """Which vocabulary the output has."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    source: str = "union"
    """`base`, `union` or a model."""
    tokens: Mapping[str, TokenEntry] = Field(default_factory=dict)
    pad_to_multiple_of: int | None = None
    embeddings: tuple[str, ...] = ()
    """Patterns of the tensors whose rows are tokens; empty: known by name and shape."""

    def references(self) -> Iterator[str]:
        """Models that it names."""
        if self.source not in ("base", "union"):
            yield self.source
        yield from self.token_models()

    def token_models(self) -> Iterator[str]:
        """Models whose rows it takes for single tokens."""
        for entry in self.tokens.values():
            if entry.source is not None and entry.source.model is not None:
                yield entry.source.model

    def plain(self, url: Callable[[str], str], base: str) -> dict[str, Any]:
        """As a recipe may write it, with defaults filled in.

        Args:
            url: what stands for a model.
            base: what stands for the model that `base` means.
        """
        source = self.source if self.source in ("base", "union") else url(self.source)
        return {
            "source": "base" if source == base else source,
            "tokens": {token: _plain_entry(entry, url) for token, entry in sorted(self.tokens.items())},
            "pad_to_multiple_of": self.pad_to_multiple_of,
            "embeddings": list(self.embeddings),
        }


def read_tokenizer_keys(raw: Any, reference: ReadReference) -> TokenizerKeys:
    """The value of the key `tokenizer`.

    Raises:
        ValueError: what is wrong with it, in words.
    """
    keys = _mapping(raw, ("source", "tokens", "pad_to_multiple_of", "embeddings"), "")
    source = keys.get("source", "union")
    source = source if source in ("base", "union") else _reference(source, "source", reference)
    tokens = keys.get("tokens", {})
    if not isinstance(tokens, dict):
        raise ValueError(f"tokens: expected a mapping of tokens, got {shorten(tokens)}")
    for token in tokens:
        if not isinstance(token, str) or not token:
            raise ValueError(f"tokens: expected texts as keys, got {shorten(token)}")
    entries = {token: _entry(entry, f"tokens[{token!r}]", reference) for token, entry in tokens.items()}
    multiple = None
    if "pad_to_multiple_of" in keys:
        multiple = _whole(keys["pad_to_multiple_of"], 1, MAX_MULTIPLE)
        if multiple is None:
            got = shorten(keys["pad_to_multiple_of"])
            raise ValueError(f"pad_to_multiple_of: expected a whole number from 1 to {MAX_MULTIPLE}, got {got}")
    patterns = keys.get("embeddings", [])
    if not isinstance(patterns, list) or not all(isinstance(item, str) and item for item in patterns):
        raise ValueError(f"embeddings: expected a list of tensor name patterns, got {shorten(patterns)}")
    return TokenizerKeys(
        source=source, tokens=entries, pad_to_multiple_of=multiple, embeddings=tuple(sorted(set(patterns)))
    )


def read_chat_template(raw: Any, names: Collection[str]) -> str | None:
    """The value of the key `chat_template`: `auto`, a name, or a Jinja template.

    Raises:
        ValueError: it is none of these.
    """
    if raw is None:
        return None
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError(f"expected auto, the name of a template, or a Jinja template, got {shorten(raw)}")
    if len(raw) > MAX_CHAT_TEMPLATE:
        raise ValueError(f"expected at most {MAX_CHAT_TEMPLATE} characters, got {len(raw)}")
    if raw in ("auto", *names) or "{{" in raw or "{%" in raw:
        return raw
    near = did_you_mean(raw, ["auto", *names])
    raise ValueError(
        f"expected auto, one of {', '.join(sorted(names))}, or a Jinja template with {{{{ or {{%, "
        f"got {shorten(raw)}{near}"
    )


def _mapping(raw: Any, known: Collection[str], where: str) -> dict[str, Any]:
    """A mapping without unknown keys; a key without value is an absent one."""
    place = f"{where}: " if where else ""
    if not isinstance(raw, dict):
        raise ValueError(f"{place}expected a mapping of {', '.join(known)}, got {shorten(raw)}")
    for key in raw:
        if key not in known:
            near = did_you_mean(key, known)
            raise ValueError(f"{place}unknown key {shorten(key)}; expected one of {', '.join(known)}{near}")
    return {key: value for key, value in raw.items() if value is not None}


def _entry(raw: Any, where: str, reference: ReadReference) -> TokenEntry:
    keys = _mapping({} if raw is None else raw, ("source", "force"), where)
    force = read_flag(keys.get("force", False))
    if force is None:
        raise ValueError(f"{where}.force: expected true or false, got {shorten(keys['force'])}")
    source = _source(keys["source"], f"{where}.source", reference) if "source" in keys else None
    if force and source is None:
        raise ValueError(f"{where}: force needs a source: the row that all models shall have")
    return TokenEntry(source=source, force=force)


def _source(raw: Any, where: str, reference: ReadReference) -> TokenSource:
    """A model, `{kind: zero}`, or `{kind: model_token, model: ..., token: ... or token_id: ...}`."""
    if isinstance(raw, str):
        return TokenSource(model=_reference(raw, where, reference))
    keys = _mapping(raw, ("kind", "model", "token", "token_id"), where)
    kind = keys.pop("kind", None)
    if kind == "zero" and not keys:
        return TokenSource()
    if kind != "model_token":
        raise ValueError(f"{where}: expected a model, {{kind: zero}} or {{kind: model_token, ...}}, got {shorten(raw)}")
    if "model" not in keys or ("token" in keys) == ("token_id" in keys):
        raise ValueError(f"{where}: model_token needs a model, and either token or token_id")
    token = keys.get("token")
    token_id: int | None = None
    if token is not None and not isinstance(token, str):
        raise ValueError(f"{where}.token: expected text, got {shorten(token)}")
    if "token_id" in keys:
        token_id = _whole(keys["token_id"], 0, 1 << 53)
        if token_id is None:
            raise ValueError(f"{where}.token_id: expected a whole number, at least 0, got {shorten(keys['token_id'])}")
    return TokenSource(model=_reference(keys["model"], f"{where}.model", reference), token=token, token_id=token_id)


def _reference(raw: Any, where: str, reference: ReadReference) -> str:
    try:
        return reference(raw)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _whole(raw: Any, lowest: int, highest: int) -> int | None:
    """A whole number, also in quotes; None when it is none, or outside the range."""
    number = None if isinstance(raw, float) else read_number(raw, lowest, highest)
    return None if number is None or number != int(number) else int(number)


def _plain_entry(entry: TokenEntry, url: Callable[[str], str]) -> dict[str, Any]:
    plain: dict[str, Any] = {"force": entry.force}
    source = entry.source
    if source is None:
        return plain
    if source.model is None:
        return plain | {"source": {"kind": "zero"}}
    if source.token is None and source.token_id is None:
        return plain | {"source": url(source.model)}
    chosen = {"token": source.token} if source.token_id is None else {"token_id": source.token_id}
    return plain | {"source": {"kind": "model_token", "model": url(source.model), **chosen}}
