"""tokenizer.json, the file of fast tokenizers: which token has which id, and the same file with other tokens.

Merges are most of such a file and say nothing about ids, so they are passed over: a file of 30 MB costs the memory of
its vocabulary only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ...errors import InputError
from .json_members import Span, items, members

TOKENIZER_NAME = "tokenizer.json"
MAX_TOKENIZER_BYTES = 64 << 20
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

    def flags(self) -> dict[str, Any]:
        """What the files say about it, but for the id."""
        return {"content": self.content, **{flag: getattr(self, flag) for flag in _FLAGS}}


@dataclass(frozen=True)
class Tokenizer:
    """What a tokenizer.json says about tokens and ids.

    Ids are those that the tokenizers library gives when it loads the file. An added token that the vocabulary has keeps
    its id there. The others are numbered from the size of the vocabulary on, in their order, whatever ids the file
    gives them.
    """

    where: str
    """What messages call the file."""
    kind: str
    """BPE, WordPiece, WordLevel or Unigram."""
    vocabulary: Mapping[str, int] = field(repr=False)
    """Tokens of the model, without added ones."""
    added: tuple[AddedToken, ...] = field(repr=False)
    """In the order of the file."""

    @cached_property
    def beyond(self) -> Mapping[str, int]:
        """Ids of the added tokens that the vocabulary does not have.

        Raises:
            InputError: one would get the id of another token.
        """
        found: dict[str, int] = {}
        following = len(self.vocabulary)
        taken = {i for i in self.vocabulary.values() if i >= following}  # a vocabulary whose ids have gaps
        for token in self.added:
            own = self.vocabulary.get(token.content)
            if own is not None:
                following = max(following, own + 1)
            elif token.content not in found:
                if following in taken:
                    text = f"{self.where}: id {following} would stand for two tokens: the vocabulary's ids have gaps"
                    raise InputError(text, "write the tokenizer again with ids from 0 on")
                found[token.content] = following
                following += 1
        return found

    def id_of(self, token: str) -> int:
        """-1 when there is no such token."""
        found = self.vocabulary.get(token)
        return self.beyond.get(token, -1) if found is None else found

    def tokens(self) -> Iterator[tuple[str, int]]:
        """Every token with its id, in no order that means anything."""
        yield from self.vocabulary.items()
        yield from self.beyond.items()

    def numbered(self) -> list[tuple[int, AddedToken]]:
        """Added tokens by their ids."""
        return sorted(((self.id_of(token.content), token) for token in self.added), key=lambda pair: pair[0])


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
        """The tokenizer without the dropped tokens and with the appended ones.

        Raises:
            InputError: tokens are dropped from a vocabulary that cannot do without them.
        """
        own = self.dropped & tokenizer.vocabulary.keys()
        if own and tokenizer.kind != "BPE":
            raise InputError(
                f"{tokenizer.where}: {len(own)} tokens have ids beyond the rows of the embedding, such as "
                f"{min(own)!r}; they can be taken out of a BPE vocabulary only, this one is {tokenizer.kind}",
                "give the model an embedding that has a row for every token",
            )
        kept = tuple(token for token in tokenizer.added if token.content not in self.dropped)
        vocabulary = tokenizer.vocabulary
        if own:
            vocabulary = {token: i for token, i in vocabulary.items() if token not in own}
        return Tokenizer(tokenizer.where, tokenizer.kind, vocabulary, kept + self.appended)


def read_tokenizer(data: bytes, where: str) -> Tokenizer:
    """Parse a tokenizer.json; nothing in it is run, opened or followed.

    Raises:
        InputError: it is too large, is no such file, or has a vocabulary of an unknown form.
    """
    top, model = _find(data, where)
    kind = _parse(data, model.get("type"), where) or ("BPE" if "merges" in model else None)
    raw = _parse(data, model.get("vocab"), where)
    if kind in ("BPE", "WordPiece", "WordLevel") and isinstance(raw, dict):
        vocabulary = raw
    elif kind == "Unigram" and isinstance(raw, list):
        pieces = [entry[0] if isinstance(entry, list) and len(entry) == 2 else None for entry in raw]
        vocabulary = {_check_token(piece, where): i for i, piece in enumerate(pieces)}
    else:
        raise InputError(f"{where}: expected a BPE, WordPiece, WordLevel or Unigram vocabulary, got {str(kind)[:60]!r}")
    for token, token_id in vocabulary.items():
        _check_token(token, where)
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < MAX_TOKEN_ID:
            raise InputError(f"{where}: token {token[:60]!r} has no usable id: {str(token_id)[:60]}")
    entries = _parse(data, top.get("added_tokens"), where)
    entries = [] if entries is None else entries
    if not isinstance(entries, list):
        raise InputError(f"{where}: expected a list of added tokens, got {str(entries)[:60]!r}")
    return Tokenizer(where, kind, vocabulary, tuple(added_token(entry, where) for entry in entries))


def write_tokenizer(
    data: bytes, where: str, added: Sequence[tuple[int, AddedToken]], dropped: frozenset[str] = frozenset()
) -> bytes:
    """The same tokenizer.json with other tokens; every byte that need not change stays.

    Args:
        data: a file that `read_tokenizer` took.
        where: what messages call it.
        added: all added tokens with their ids, by id.
        dropped: tokens of a BPE vocabulary that are taken out, with the merges that need them.

    Raises:
        InputError: a merge is no pair of tokens.
    """
    top, model = _find(data, where)
    entries = [{"id": token_id, **token.flags()} for token_id, token in added]
    changes: dict[Span, bytes] = {top.get("added_tokens", (0, 0)): _json_list(entries)}
    if dropped:
        vocabulary = _parse(data, model["vocab"], where)
        changes[model["vocab"]] = _dumps({token: i for token, i in vocabulary.items() if token not in dropped})
        if "merges" in model:
            kept = (data[a:b] for a, b in items(data, model["merges"]) if not dropped & _parts(data[a:b], where))
            changes[model["merges"]] = b"[" + b",".join(kept) + b"]"
    if "added_tokens" not in top:
        start = data.index(b"{") + 1
        changes[start, start] = b'"added_tokens": ' + changes.pop((0, 0)) + b","
    result, at = [], 0
    for (begin, end), new in sorted(changes.items()):
        result += [data[at:begin], new]
        at = end
    return b"".join([*result, data[at:]])


def _find(data: bytes, where: str) -> tuple[dict[str, Span], dict[str, Span]]:
    """The members of the file and of its model."""
    if len(data) > MAX_TOKENIZER_BYTES:
        raise InputError(f"{where}: {len(data)} bytes; expected at most {MAX_TOKENIZER_BYTES}")
    try:
        top, end = members(data)
        if data[end:].strip():
            raise ValueError("something follows")
        return top, members(data, top["model"][0])[0]
    except (ValueError, KeyError):
        raise InputError(f"{where} is no tokenizer: expected a JSON object with a `model`") from None


def _parse(data: bytes, span: Span | None, where: str) -> Any:
    """A member; None where it is missing."""
    if span is None:
        return None
    try:
        return json.loads(data[span[0] : span[1]])
    except (ValueError, RecursionError):
        raise InputError(f"{where} is damaged at byte {span[0]}") from None


def added_token(entry: Any, where: str) -> AddedToken:
    """An added token from its JSON object; InputError when it is none."""
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


def _parts(raw: bytes, where: str) -> set[str]:
    """The two tokens of a merge, and what they become."""
    merge = _parse(raw, (0, len(raw)), where)
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        raise InputError(f"{where}: a merge is no pair of tokens: {str(merge)[:60]}")
    return {*pair, "".join(pair)}


def _json_list(entries: Iterable[Mapping[str, Any]]) -> bytes:
    """One entry a line."""
    return b"[\n    " + b",\n    ".join(_dumps(entry) for entry in entries) + b"\n  ]"


def _dumps(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()
