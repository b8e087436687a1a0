"""Tokens of several models to one vocabulary, and per model which embedding row belongs to which token. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .tokenizer_json import AddedToken, Tokenizer, TokenizerEdit

Rows = NDArray[np.int32]

ZERO, MEAN = -1, -2
"""Values of `Alignment.fill` beside the number of a source: zeros, and the mean of the models that have the token."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Where the row of a token comes from, for models that lack the token."""

    model: int | None = None
    """A source; None: zeros."""
    token: str | None = None
    """Another token, whose row in that model is taken; without it and `token_id` the token's own."""
    token_id: int | None = None
    """A row of that model."""


@dataclass(frozen=True, slots=True)
class TokenRule:
    """What a recipe says about one token."""

    row: TokenRow | None = None
    """None: the default of the method."""
    force: bool = False
    """Whether models that have the token take that row, too."""


@dataclass(frozen=True)
class Vocabulary:
    """The output's tokens."""

    tokenizer: Tokenizer = field(repr=False)
    """The tokenizer that is written."""
    rows: int
    """One more than the largest id."""
    padding: int
    """Rows of the output's embeddings beyond them."""
    edit: TokenizerEdit
    """How it differs from the one that it is made from."""
    unknown: tuple[str, ...]
    """Tokens that the recipe names and no tokenizer has."""


def join(
    source: Tokenizer,
    height: int | None,
    others: Sequence[tuple[Tokenizer, int]] = (),
    wanted: Sequence[str] = (),
    multiple: int = 1,
) -> Vocabulary:
    """The output's vocabulary: one tokenizer's tokens under their ids, then what others have besides.

    Tokens are appended model by model in order of their ids: first those that are ordinary everywhere, then those that
    some tokenizer holds as added tokens, with the settings of the first that does. A token that is ordinary in the
    source and added in another model becomes an added token under its id.

    Args:
        source: the tokenizer that is written.
        height: rows of its model's embedding, without which a token is left out; None: all tokens stay.
        others: tokenizers whose tokens are appended, each with the rows of its model's embedding.
        wanted: tokens that are appended in any case.
        multiple: the number of rows is padded to a multiple of it.

    Raises:
        InputError: a vocabulary has gaps, or is of a kind that cannot lose tokens.
    """
    rowless = () if height is None else (token for token, row in source.tokens() if row >= height)
    dropped = frozenset(rowless)
    start = TokenizerEdit(dropped).apply(source)
    known = {token.content for token in start.added}
    marked: dict[str, AddedToken] = {}
    plain: dict[str, AddedToken] = {}
    for tokenizer, rows in others:
        for row, token in tokenizer.numbered():
            if row < rows and token.content not in known:
                marked.setdefault(token.content, token)
    for tokenizer, rows in others:
        new = [(row, t) for t, row in tokenizer.tokens() if row < rows and t not in marked and start.id_of(t) < 0]
        plain |= {token: AddedToken(token) for _, token in sorted(new) if token not in plain}
    appended = plain | marked
    unknown = tuple(token for token in dict.fromkeys(wanted) if token not in appended and start.id_of(token) < 0)
    edit = TokenizerEdit(dropped, (*appended.values(), *(AddedToken(token) for token in unknown)))
    written = edit.apply(source)
    count = max((row for _, row in written.tokens()), default=-1) + 1
    return Vocabulary(written, count, -count % multiple, edit, unknown)


@dataclass(frozen=True)
class SourceTokens:
    """One input of a tensor."""

    tokenizer: Tokenizer = field(repr=False)
    height: int
    """Rows of the tensor there; tokens beyond them are missing."""
    twin: int
    """The first source with the same files; its own number where there is none."""


@dataclass(frozen=True)
class Entries:
    """The rows that each row of one source's output is made of: none (zeros), one, or several (their mean)."""

    used: tuple[int, ...]
    """The sources that they are in, the source itself first."""
    arrays: tuple[Rows, Rows, Rows] = field(repr=False)
    """int32 [rows + 1], [entries], [entries]: row i is made of entries [first[i], first[i + 1]); which of `used` an
    entry is in; its row there."""
    has_means: bool


@dataclass(frozen=True)
class Alignment:
    """Which row of which input each row of an output embedding is made of."""

    rows: int
    """Without padding."""
    padding: int
    """Rows beyond them: the mean of all others of the same model."""
    own: tuple[Rows | None, ...] = field(repr=False)
    """Per source int32 [rows]: its row for the token, -1 where `fill` says what is taken; None: lacks the tensor."""
    fill: Rows = field(repr=False)
    """int32 [rows]: the source whose row is taken, or ZERO or MEAN."""
    fill_row: Rows = field(repr=False)
    """int32 [rows]: the row in that source."""
    holders: tuple[int, ...]
    """Different sources that have the tensor, in the order in which means add them up."""

    @cached_property
    def entries(self) -> tuple[Entries | None, ...]:
        """Per source the rows that its output is made of; None where it lacks the tensor."""
        return tuple(None if own is None else self._entries(number, own) for number, own in enumerate(self.own))

    def _entries(self, source: int, own: Rows) -> Entries:
        origin = np.where(own >= 0, source, self.fill)
        row = np.where(own >= 0, own, self.fill_row)
        members = [self.own[i] for i in self.holders]
        have = np.stack([rows >= 0 for rows in members if rows is not None])
        mean, single = origin == MEAN, origin >= 0
        counts = np.where(mean, have.sum(axis=0), single)
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        origins, rows_there = np.empty(first[-1], np.int32), np.empty(first[-1], np.int32)
        origins[first[:-1][single]], rows_there[first[:-1][single]] = origin[single], row[single]
        behind = first[:-1].copy()
        for holder, rows, there in zip(self.holders, members, have, strict=True):
            assert rows is not None
            taken = there & mean
            origins[behind[taken]], rows_there[behind[taken]] = holder, rows[taken]
            behind += taken
        used = (source, *(int(i) for i in np.unique(origins) if i != source))
        place = np.zeros(len(self.own), np.int32)
        place[list(used)] = np.arange(len(used))
        return Entries(used, (first, place[origins], rows_there), bool(mean.any()))

    def digest(self) -> str:
        """SHA-256 over all of it."""
        total = hashlib.sha256(repr((self.rows, self.padding, self.holders)).encode())
        for array in (*self.own, self.fill, self.fill_row):
            total.update(b"-" if array is None else array.astype("<i4").tobytes())
        return total.hexdigest()


def align(
    vocabulary: Vocabulary,
    sources: Sequence[SourceTokens | None],
    base: int | None,
    rules: Mapping[str, TokenRule],
    where: str,
) -> Alignment:
    """Match the rows of one embedding by token.

    A model that lacks a token gets, unless a rule says otherwise: the row of the only model that has it; else the row
    of the base, if it has the token; else the mean of those that have it; zeros where none has it. Ids without a token
    have zeros, too.

    Args:
        vocabulary: the output's.
        sources: the reference, then the models; None where one lacks the tensor.
        base: the source that is the base; None for methods without one.
        rules: what the recipe says about tokens.
        where: the tensor, for messages.

    Raises:
        InputError: a rule asks for a row that the model does not have.
    """
    size = vocabulary.rows
    own = [None if source is None else _rows(vocabulary, source) for source in sources]
    numbers = [i for i, source in enumerate(sources) if source is not None and source.twin == i]
    holders = tuple(i for i in numbers if i != base) + tuple(i for i in numbers if i == base)
    table = np.stack([own[i] for i in holders])  # type: ignore[misc]
    have = table >= 0
    count, first = have.sum(axis=0), have.argmax(axis=0)
    fill = np.where(count == 0, ZERO, MEAN).astype(np.int32)
    if base in holders:
        position = holders.index(base)
        fill[have[position]] = base
    alone = count == 1
    fill[alone] = np.array(holders, np.int32)[first[alone]]
    fill_row = np.full(size, -1, np.int32)
    for position, source in enumerate(holders):
        taken = fill == source
        fill_row[taken] = table[position][taken]
    _apply_rules(vocabulary, sources, own, rules, fill, fill_row, where)
    return Alignment(size, vocabulary.padding, tuple(own), fill, fill_row, holders)


def _rows(vocabulary: Vocabulary, source: SourceTokens) -> Rows:
    """Per output row the row of a source, -1 without one."""
    rows = np.full(vocabulary.rows, -1, np.int32)
    for token, row in vocabulary.tokenizer.tokens():
        found = source.tokenizer.id_of(token)
        if found < source.height:
            rows[row] = found
    return rows


def _apply_rules(
    vocabulary: Vocabulary,
    sources: Sequence[SourceTokens | None],
    own: Sequence[Rows | None],
    rules: Mapping[str, TokenRule],
    fill: Rows,
    fill_row: Rows,
    where: str,
) -> None:
    for token, rule in rules.items():
        row = vocabulary.tokenizer.id_of(token)
        missing = [rows for rows in own if rows is not None and (rule.force or rows[row] < 0)]
        if rule.row is None or not missing:
            continue
        if rule.row.model is None:
            fill[row], fill_row[row] = ZERO, -1
        else:
            fill[row], fill_row[row] = rule.row.model, _row_of(token, rule.row, sources, where)
        for rows in missing:
            rows[row] = -1


def _row_of(token: str, wanted: TokenRow, sources: Sequence[SourceTokens | None], where: str) -> int:
    """The row of another model that a rule asks for."""
    assert wanted.model is not None
    source = sources[wanted.model]
    if source is None:
        raise InputError(f"{where}: the recipe takes the row of token {token!r} from a model without this tensor")
    named = token if wanted.token is None else wanted.token
    row = source.tokenizer.id_of(named) if wanted.token_id is None else wanted.token_id
    if not 0 <= row < source.height:
        what = f"token {named!r}" if wanted.token_id is None else f"row {wanted.token_id}"
        raise InputError(
            f"{where}: the recipe takes the row of token {token!r} from {what} of a model that does not have it "
            f"in its {source.height} rows",
            "correct `tokenizer.tokens` in the recipe",
        )
    return row
