"""tokenizer.json, the file of fast tokenizers: which token has which id, and the same file with other tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import InputError

TOKENIZER_NAME = "tokenizer.json"
MAX_TOKENIZER_BYTES = 128 << 20
"""The largest published files have about 35 MB."""
MAX_TOKEN_ID = 1 << 24
"""Vocabularies have up to 300,000 tokens; ids of millions are a damaged file."""

_FLAGS: Mapping[str, bool] = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": True,
    "special": False,
}
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in the text before the model of the tokenizer sees it."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False

    def entry(self, token_id: int) -> dict[str, Any]:
        """Its entry in the file."""
        return {"id": token_id, "content": self.content, **{flag: getattr(self, flag) for flag in _FLAGS}}


@dataclass(frozen=True)
class Tokenizer:
    """What a tokenizer.json says about tokens and ids."""

    where: str
    """What messages call the file."""
    kind: str
    """BPE, WordPiece, WordLevel or Unigram."""
    vocabulary: Mapping[str, int] = field(repr=False)
    """Tokens of the model, without added ones."""
    added: tuple[AddedToken, ...] = field(repr=False)
    """In the order of the file, which gives those that the model lacks their ids."""

    def tokens(self) -> dict[str, int]:
        """Every token's id, added tokens included, as the tokenizers library numbers them when it loads the file."""
        return number_tokens(self.vocabulary, [token.content for token in self.added], self.where)


@dataclass(frozen=True)
class TokenizerEdit:
    """How the output's tokenizer differs from the one that it is made from."""

    dropped: frozenset[str] = frozenset()
    """Tokens that are taken out."""
    appended: tuple[AddedToken, ...] = ()
    """Tokens that are added behind all others, or that become added tokens under the id that they have."""

    def __bool__(self) -> bool:
        return bool(self.dropped or self.appended)

    def apply(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer without the dropped tokens and with the appended ones."""
        kept = [token for token in tokenizer.added if token.content not in self.dropped]
        vocabulary = {t: i for t, i in tokenizer.vocabulary.items() if t not in self.dropped}
        return Tokenizer(tokenizer.where, tokenizer.kind, vocabulary, (*kept, *self.appended))


def number_tokens(vocabulary: Mapping[str, int], added: Iterable[str], where: str) -> dict[str, int]:
    """Ids of the model's tokens and of added ones.

    An added token that the model has keeps its id. The others are numbered from the size of the model's vocabulary on,
    in their order, whatever ids the file gives them: this is how the tokenizers library loads a file.

    Raises:
        InputError: an added token would get the id of another.
    """
    tokens = dict(vocabulary)
    following = len(vocabulary)
    taken = {i for i in vocabulary.values() if i >= following}  # a vocabulary whose ids have gaps
    for content in added:
        if content not in tokens:
            if following in taken:
                raise InputError(
                    f"{where}: id {following} would stand for two tokens, as the ids of the vocabulary have gaps",
                    "write the tokenizer again with ids from 0 on",
                )
            tokens[content] = following
            following += 1
        elif content in vocabulary and vocabulary[content] >= following:
            following = vocabulary[content] + 1
    return tokens


def read_tokenizer(data: bytes, where: str) -> Tokenizer:
    """Parse a tokenizer.json; nothing in it is run, opened or followed.

    Raises:
        InputError: it is too large, is no such file, or has a vocabulary of an unknown form.
    """
    content = _document(data, where)
    model = content["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    raw = model.get("vocab")
    if kind in ("BPE", "WordPiece", "WordLevel") and isinstance(raw, dict):
        vocabulary = raw
    elif kind == "Unigram" and isinstance(raw, list):
        pieces = [entry[0] if isinstance(entry, list) and len(entry) == 2 else None for entry in raw]
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
    else:
        raise InputError(f"{where}: expected a BPE, WordPiece, WordLevel or Unigram vocabulary, got {kind!r}")
    for token, token_id in vocabulary.items():
        _check_token(token, where)
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < MAX_TOKEN_ID:
            raise InputError(f"{where}: token {token[:60]!r} has no usable id: {str(token_id)[:60]}")
    return Tokenizer(where, kind, vocabulary, tuple(_added_token(entry, where) for entry in _added_entries(content)))


def write_tokenizer(data: bytes, where: str, edit: TokenizerEdit) -> bytes:
    """The same tokenizer.json with other tokens; the same bytes when nothing changes.

    Args:
        data: a file that `read_tokenizer` took.
        where: what messages call it.
        edit: what changes.

    Raises:
        InputError: tokens of the model are dropped from a tokenizer that cannot do without them.
    """
    if not edit:
        return data
    content = _document(data, where)
    model = content["model"]
    tokenizer = read_tokenizer(data, where)
    in_model = edit.dropped & tokenizer.vocabulary.keys()
    check_droppable(tokenizer, in_model)
    if in_model:
        model["vocab"] = {token: i for token, i in model["vocab"].items() if token not in in_model}
        model["merges"] = [merge for merge in model["merges"] if not in_model & _parts(merge, where)]
    edited = edit.apply(tokenizer)
    tokens = edited.tokens()
    entries = [token.entry(tokens[token.content]) for token in edited.added]
    # Added tokens without a place in the model are numbered in the order of the file: the order of their ids.
    content["added_tokens"] = sorted(entries, key=lambda entry: int(entry["id"]))
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def check_droppable(tokenizer: Tokenizer, tokens: Iterable[str]) -> None:
    """Raise InputError when tokens of the model's own vocabulary cannot be taken out."""
    own = [token for token in tokens if token in tokenizer.vocabulary]
    if own and tokenizer.kind != "BPE":
        raise InputError(
            f"{tokenizer.where}: {len(own)} tokens have ids beyond the rows of the embedding, such as {own[0]!r}; "
            f"they can be taken out of a BPE vocabulary only, this one is {tokenizer.kind}",
            "give the model an embedding that has a row for every token",
        )


def _document(data: bytes, where: str) -> dict[str, Any]:
    if len(data) > MAX_TOKENIZER_BYTES:
        raise InputError(f"{where}: {len(data)} bytes; expected at most {MAX_TOKENIZER_BYTES}")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"{where} is no tokenizer: expected a JSON object with a `model`")
    return content


def _added_entries(content: Mapping[str, Any]) -> Sequence[Any]:
    entries = content.get("added_tokens")
    return entries if isinstance(entries, list) else []


def _added_token(entry: Any, where: str) -> AddedToken:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: an added token is no JSON object")
    content = _check_token(entry.get("content"), where)
    flags = {flag: entry.get(flag, default) for flag, default in _FLAGS.items()}
    if not all(isinstance(value, bool) for value in flags.values()):
        raise InputError(f"{where}: added token {content[:60]!r}: expected true or false for {', '.join(flags)}")
    return AddedToken(content, **flags)


def _check_token(token: Any, where: str) -> str:
    if not isinstance(token, str) or _SURROGATE.search(token):
        raise InputError(f"{where}: expected a text as a token, got {str(token)[:60]!a}")
    return token


def _parts(merge: Any, where: str) -> set[str]:
    """The two tokens of a merge, and what they become."""
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        raise InputError(f"{where}: a merge is no pair of tokens: {str(merge)[:60]}")
    return {*pair, "".join(pair)}
