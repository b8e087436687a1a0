"""Vocabularies joined and rows matched, each by hand on a few tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest

from anabranch.engine.errors import InputError
from anabranch.engine.models.tokens.tokenizer_json import AddedToken, Tokenizer
from anabranch.engine.models.tokens.vocabulary import (
    MEAN,
    ZERO,
    Alignment,
    SourceTokens,
    TokenRow,
    TokenRule,
    align,
    join,
)

FORCED = True


def tokenizer(*tokens: str, added: Sequence[AddedToken | str] = (), kind: str = "BPE") -> Tokenizer:
    tokens_added = tuple(token if isinstance(token, AddedToken) else AddedToken(token) for token in added)
    return Tokenizer("t", kind, {token: i for i, token in enumerate(tokens)}, tokens_added)


def match(
    out: Sequence[str],
    *sources: Mapping[str, int] | None,
    base: int | None = 0,
    rules: Mapping[str, TokenRule] | None = None,
    twins: Mapping[int, int] | None = None,
    multiple: int = 1,
    height: int = 100,
) -> Alignment:
    vocabulary = join(tokenizer(*out), None, multiple=multiple)
    tokens = [
        None if tokens is None else SourceTokens(Tokenizer("s", "BPE", tokens, ()), height, (twins or {}).get(i, i))
        for i, tokens in enumerate(sources)
    ]
    return align(vocabulary, tokens, base, rules or {}, "w")


def own(alignment: Alignment) -> list[list[int] | None]:
    return [None if rows is None else rows.tolist() for rows in alignment.own]


def entries(alignment: Alignment, source: int) -> list[list[tuple[int, int]]]:
    """Per output row of a source the (source, row) pairs that it is made of."""
    found = alignment.entries[source]
    assert found is not None and found.used[0] == source
    first, part, row = (array.tolist() for array in found.arrays)
    pairs = [(found.used[p], r) for p, r in zip(part, row, strict=True)]
    return [pairs[begin:end] for begin, end in pairwise(first)]


# --- the output's vocabulary


def test_one_tokenizer_keeps_its_ids() -> None:
    vocabulary = join(tokenizer("a", "b", added=["<x>"]), None)
    assert dict(vocabulary.tokenizer.tokens()) == {"a": 0, "b": 1, "<x>": 2}
    assert vocabulary.rows == 3
    assert not vocabulary.edit


def test_tokens_without_a_row_are_left_out() -> None:
    vocabulary = join(tokenizer("a", "b", "c", added=["<x>", "<y>"]), 4)
    assert dict(vocabulary.tokenizer.tokens()) == {"a": 0, "b": 1, "c": 2, "<x>": 3}
    assert vocabulary.edit.dropped == {"<y>"}


def test_a_vocabulary_that_is_no_bpe_cannot_lose_tokens() -> None:
    with pytest.raises(InputError, match="1 tokens have ids beyond the rows of the embedding, such as 'b'"):
        join(tokenizer("a", "b", kind="WordPiece"), 1)


def test_a_union_appends_ordinary_tokens_first_and_then_added_ones() -> None:
    base = tokenizer("a", "b", added=["<s>"])
    one = tokenizer("b", "q", "p", added=[AddedToken("<s>", special=True), AddedToken("<t>", lstrip=True)])
    two = tokenizer("p", "r", "a", added=[AddedToken("<t>", special=True)])
    vocabulary = join(base, 3, [(one, 5), (two, 4)])
    assert dict(vocabulary.tokenizer.tokens()) == {"a": 0, "b": 1, "<s>": 2, "q": 3, "p": 4, "r": 5, "<t>": 6}
    appended = {token.content: token for token in vocabulary.edit.appended}
    assert appended["<t>"].lstrip and not appended["<t>"].special  # the first model's settings
    assert "<s>" not in appended  # the base's own stay


def test_a_union_leaves_tokens_beyond_the_rows_of_their_model_out() -> None:
    vocabulary = join(tokenizer("a"), 1, [(tokenizer("a", "b", "c"), 2)])
    assert dict(vocabulary.tokenizer.tokens()) == {"a": 0, "b": 1}


def test_an_ordinary_token_that_another_model_added_becomes_an_added_one_under_its_id() -> None:
    vocabulary = join(tokenizer("a", "<t>", "b"), 3, [(tokenizer("a", added=[AddedToken("<t>", special=True)]), 2)])
    assert dict(vocabulary.tokenizer.tokens()) == {"a": 0, "<t>": 1, "b": 2}
    assert vocabulary.edit.appended == (AddedToken("<t>", special=True),)


def test_tokens_that_the_recipe_names_are_added_last() -> None:
    vocabulary = join(tokenizer("a"), 1, [(tokenizer("b"), 1)], ["new", "b", "a"])
    assert dict(vocabulary.tokenizer.tokens()) == {"a": 0, "b": 1, "new": 2}
    assert vocabulary.unknown == ("new",)


@pytest.mark.parametrize(("multiple", "rows"), [(1, 3), (2, 4), (3, 3), (64, 64)])
def test_rows_are_padded_to_a_multiple(multiple: int, rows: int) -> None:
    vocabulary = join(tokenizer("a", "b", "c"), None, multiple=multiple)
    assert (vocabulary.rows, vocabulary.rows + vocabulary.padding) == (3, rows)


def test_an_id_that_would_stand_for_two_tokens_is_an_error() -> None:
    holes = Tokenizer("t", "BPE", {"a": 0, "b": 2}, ())
    with pytest.raises(InputError, match="id 2 would stand for two tokens"):
        join(holes, None, wanted=["new"])


# --- rows


def test_rows_are_matched_by_token() -> None:
    alignment = match("abc", {"a": 0, "b": 1, "c": 2}, {"c": 0, "a": 5, "b": 1})
    assert own(alignment) == [[0, 1, 2], [5, 1, 0]]


def test_a_model_that_lacks_a_token_gets_the_row_of_the_base() -> None:
    alignment = match("ab", {"a": 0, "b": 1}, {"a": 0}, {"a": 1, "b": 0})
    assert own(alignment) == [[0, 1], [0, -1], [1, 0]]
    assert alignment.fill.tolist() == [0, 0]
    assert alignment.fill_row.tolist() == [0, 1]


def test_a_token_of_one_model_gets_its_row_everywhere() -> None:
    alignment = match("ab", {"a": 0}, {"a": 0}, {"a": 0, "b": 7})
    assert own(alignment) == [[0, -1], [0, -1], [0, 7]]
    assert (alignment.fill[1], alignment.fill_row[1]) == (2, 7)


def test_a_token_of_several_models_but_not_the_base_gets_their_mean() -> None:
    alignment = match("ab", {"a": 0}, {"b": 3}, {"b": 4}, {"a": 0})
    assert alignment.fill.tolist() == [0, MEAN]
    assert alignment.holders == (1, 2, 3, 0)


def test_without_a_base_the_mean_is_over_all_that_have_the_token() -> None:
    alignment = match("a", {"a": 0}, {"a": 0}, {"a": 1}, {}, base=None, twins={1: 0})
    assert alignment.fill.tolist() == [MEAN]
    assert alignment.holders == (0, 2, 3)


def test_a_model_that_is_listed_twice_counts_once() -> None:
    alignment = match("ab", {"a": 0}, {"b": 3}, {"b": 3}, twins={2: 1})
    assert (alignment.fill[1], alignment.fill_row[1]) == (1, 3)


def test_a_token_that_no_model_has_is_zero() -> None:
    alignment = match("ab", {"a": 0}, {"a": 0}, multiple=4)
    assert alignment.fill.tolist() == [0, ZERO]
    assert (alignment.rows, alignment.padding) == (2, 2)


def test_the_rows_that_each_row_is_made_of() -> None:
    alignment = match("abcd", {"a": 1}, {"b": 3, "a": 0}, {"b": 4, "c": 7}, {"b": 5})
    assert entries(alignment, 0) == [[(0, 1)], [(1, 3), (2, 4), (3, 5)], [(2, 7)], []]
    assert entries(alignment, 2) == [[(0, 1)], [(2, 4)], [(2, 7)], []]
    assert [found is not None and found.has_means for found in alignment.entries] == [True, False, False, False]


def test_rows_beyond_the_matrix_are_missing() -> None:
    alignment = match("ab", {"a": 0, "b": 1}, {"a": 0, "b": 2}, height=2)
    assert own(alignment) == [[0, 1], [0, -1]]


def test_a_model_without_the_tensor_takes_no_part() -> None:
    alignment = match("ab", {"a": 0}, None, {"b": 1})
    assert own(alignment)[1] is None
    assert alignment.fill.tolist() == [0, 2]


def test_rules_for_missing_rows() -> None:
    rules = {
        "a": TokenRule(TokenRow(None)),
        "b": TokenRule(TokenRow(1)),
        "c": TokenRule(TokenRow(1, token="a")),
        "d": TokenRule(TokenRow(0, token_id=9)),
        "e": TokenRule(),
    }
    alignment = match("abcde", {"e": 4}, {"a": 5, "b": 6}, {}, rules=rules)
    assert own(alignment) == [[-1, -1, -1, -1, 4], [5, 6, -1, -1, -1], [-1] * 5]
    assert alignment.fill.tolist() == [ZERO, 1, 1, 0, 0]
    assert alignment.fill_row.tolist() == [-1, 6, 5, 9, 4]


def test_a_forced_row_replaces_those_that_are_there() -> None:
    rules = {"a": TokenRule(TokenRow(1), FORCED), "b": TokenRule(TokenRow(None), FORCED)}
    alignment = match("abc", {"a": 0, "b": 1, "c": 2}, {"a": 5, "b": 6, "c": 7}, rules=rules)
    assert own(alignment) == [[-1, -1, 2], [-1, -1, 7]]
    assert alignment.fill.tolist() == [1, ZERO, 0]
    assert alignment.fill_row[0] == 5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (TokenRow(0), "from token 'x' of a model that does not have it in its 100 rows"),
        (TokenRow(0, token="q"), "from token 'q' of a model"),
        (TokenRow(0, token_id=100), "from row 100 of a model"),
        (TokenRow(1), "from a model without this tensor"),
    ],
)
def test_rules_that_ask_for_what_is_not_there(row: TokenRow, message: str) -> None:
    with pytest.raises(InputError, match=message):
        match("ax", {"a": 0}, None, rules={"x": TokenRule(row)})


def test_the_digest_tells_alignments_apart() -> None:
    digests = {
        match("ab", {"a": 0, "b": 1}, {"a": 0, "b": 1}).digest(),
        match("ab", {"a": 0, "b": 1}, {"a": 1, "b": 0}).digest(),
        match("ab", {"a": 0, "b": 1}, {"a": 0}).digest(),
        match("ab", {"a": 0, "b": 1}, None).digest(),
        match("ab", {"a": 0, "b": 1}, {"a": 0, "b": 1}, multiple=3).digest(),
    }
    assert len(digests) == 5
