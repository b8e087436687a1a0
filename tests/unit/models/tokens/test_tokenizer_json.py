"""tokenizer.json read and written, beside the library that defines it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import AddedToken as LibraryToken
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models, pre_tokenizers, trainers

from anabranch.engine.errors import InputError
from anabranch.engine.models.tokens.tokenizer_json import (
    MAX_TOKENIZER_BYTES,
    AddedToken,
    TokenizerEdit,
    read_tokenizer,
    write_tokenizer,
)

MODEL = {"type": "BPE", "vocab": {"a": 0}, "merges": []}

TEXTS = ["the cat sat on the mat", "a hat that the cat sat on", "grüße, naïve café", "1 + 2 = 3"]


def trained(kind: str) -> LibraryTokenizer:
    """A small tokenizer of a kind, with two added tokens."""
    special = ["<unk>", "<s>"]
    if kind == "BPE":
        tokenizer = LibraryTokenizer(models.BPE(unk_token="<unk>"))
        trainer: Any = trainers.BpeTrainer(vocab_size=80, special_tokens=special, show_progress=False)
    elif kind == "WordPiece":
        tokenizer = LibraryTokenizer(models.WordPiece(unk_token="<unk>"))
        trainer = trainers.WordPieceTrainer(vocab_size=80, special_tokens=special, show_progress=False)
    elif kind == "Unigram":
        tokenizer = LibraryTokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    else:
        tokenizer = LibraryTokenizer(models.WordLevel(unk_token="<unk>"))
        trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([LibraryToken("<extra>", lstrip=True)])
    return tokenizer


def written_with(data: bytes, edit: TokenizerEdit) -> bytes:
    before = read_tokenizer(data, "t")
    return write_tokenizer(data, "t", edit.apply(before).numbered(), edit.dropped & before.vocabulary.keys())


def parsed(tokenizer: LibraryTokenizer) -> Any:
    return read_tokenizer(tokenizer.to_str().encode(), "tokenizer.json")


@pytest.mark.parametrize("kind", ["BPE", "WordPiece", "Unigram", "WordLevel"])
def test_tokens_and_ids_are_the_library_s(kind: str) -> None:
    tokenizer = trained(kind)
    found = parsed(tokenizer)
    assert found.kind == kind
    assert dict(found.tokens()) == tokenizer.get_vocab()
    assert AddedToken("<extra>", lstrip=True) in found.added


@pytest.mark.parametrize("kind", ["BPE", "WordPiece", "Unigram", "WordLevel"])
def test_appended_tokens_load_under_the_ids_that_are_counted_on(kind: str) -> None:
    tokenizer = trained(kind)
    data = tokenizer.to_str(pretty=True).encode()
    edit = TokenizerEdit(appended=(AddedToken("<one>", special=True, normalized=False), AddedToken("über")))
    written = written_with(data, edit)
    loaded = LibraryTokenizer.from_str(written.decode())
    assert loaded.get_vocab() == dict(edit.apply(parsed(tokenizer)).tokens())
    assert loaded.get_vocab_size() == tokenizer.get_vocab_size() + 2
    assert written == written_with(data, edit)
    for text in TEXTS:
        assert loaded.encode(text).ids == tokenizer.encode(text).ids
    assert loaded.token_to_id("<one>") in loaded.encode("the <one> cat").ids


def test_a_token_of_the_model_becomes_an_added_one_under_its_id() -> None:
    tokenizer = trained("BPE")
    token = next(t for t in parsed(tokenizer).vocabulary if len(t) == 3)
    edit = TokenizerEdit(appended=(AddedToken(token, special=True),))
    loaded = LibraryTokenizer.from_str(written_with(tokenizer.to_str().encode(), edit).decode())
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.get_added_tokens_decoder()[tokenizer.token_to_id(token)].special


def test_dropped_tokens_are_gone_with_their_merges() -> None:
    tokenizer = trained("BPE")
    found = parsed(tokenizer)
    last = sorted(found.vocabulary, key=found.vocabulary.__getitem__)[-5:]
    edit = TokenizerEdit(dropped=frozenset({*last, "<extra>"}))
    loaded = LibraryTokenizer.from_str(written_with(tokenizer.to_str().encode(), edit).decode())
    assert loaded.get_vocab_size() == tokenizer.get_vocab_size() - 6
    assert loaded.get_vocab() == dict(edit.apply(found).tokens())
    assert not set(last) & {token for text in TEXTS for token in loaded.encode(text).tokens}


def test_the_rest_of_the_file_keeps_its_bytes() -> None:
    data = trained("BPE").to_str(pretty=True).encode() + b"\n\n"
    written = written_with(data, TokenizerEdit(appended=(AddedToken("<one>"),)))
    start, end = data.index(b'"added_tokens": ['), data.index(b'"normalizer"')
    assert written.startswith(data[:start])
    assert written.endswith(data[end:])


def test_a_file_without_added_tokens_gets_some() -> None:
    content = json.loads(trained("WordLevel").to_str())
    del content["added_tokens"]
    data = json.dumps(content).encode()
    written = written_with(data, TokenizerEdit(appended=(AddedToken("<one>"),)))
    assert LibraryTokenizer.from_str(written.decode()).token_to_id("<one>") == len(content["model"]["vocab"])


def test_ids_of_added_tokens_follow_from_their_order_as_in_the_library() -> None:
    content = json.loads(trained("WordLevel").to_str())
    for entry in content["added_tokens"]:
        entry["id"] += 50
    data = json.dumps(content)
    assert dict(read_tokenizer(data.encode(), "t").tokens()) == LibraryTokenizer.from_str(data).get_vocab()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no tokenizer"),
        (b"[" * 100_000, "is no tokenizer"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}}} x', "is no tokenizer"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0,}}}', "is damaged at byte 35"),
        (b'{"model": {"type": "BPE", "vocab": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}", "is damaged"),
        ({"model": MODEL, "added_tokens": {}}, "expected a list of added tokens"),
        (b"[]", "is no tokenizer"),
        ({"model": 1}, "is no tokenizer"),
        ({"model": {"type": "Morse", "vocab": {}}}, "expected a BPE, WordPiece, WordLevel or Unigram vocabulary"),
        ({"model": {"type": "BPE", "vocab": [["a", 0]]}}, "expected a BPE"),
        ({"model": {"type": "Unigram", "vocab": [["a"]]}}, "expected a text as a token"),
        ({"model": MODEL | {"vocab": {"a": -1}}}, "'a' has no usable id: -1"),
        ({"model": MODEL | {"vocab": {"a": 1 << 40}}}, "no usable id"),
        ({"model": MODEL | {"vocab": {"a": 1.0}}}, "no usable id"),
        ({"model": MODEL | {"vocab": {"a": True}}}, "no usable id"),
        ({"model": MODEL | {"vocab": {"\ud800": 0}}}, "expected a text as a token"),
        ({"model": MODEL, "added_tokens": [1]}, "is no JSON object"),
        ({"model": MODEL, "added_tokens": [{"id": 1}]}, "expected a text as a token, got 'None'"),
        ({"model": MODEL, "added_tokens": [{"id": 1, "content": "x", "special": 1}]}, "expected true or false"),
    ],
)
def test_other_files_are_refused(content: object, message: str) -> None:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(InputError, match=f"somewhere.*{message}"):
        read_tokenizer(data, "somewhere")


def test_the_size_is_bounded() -> None:
    with pytest.raises(InputError, match="expected at most"):
        read_tokenizer(bytes(MAX_TOKENIZER_BYTES + 1), "t")
