"""Tokens outside tokenizer.json, beside transformers, which adds them when it loads a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models
from transformers import AutoTokenizer

from anabranch.engine.errors import InputError
from anabranch.engine.models.tokens.declared import DECLARING, with_declared
from anabranch.engine.models.tokens.tokenizer_json import read_tokenizer

BEGIN = {"content": "<s>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
TALK = BEGIN | {"content": "<|talk|>"}
CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}


def write(folder: Path, **files: Any) -> LibraryTokenizer:
    tokenizer = LibraryTokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return tokenizer


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": CLASS},
        {"tokenizer_config": CLASS | {"added_tokens_decoder": {"10": TALK, "3": BEGIN, "9": BEGIN | {"content": "x"}}}},
        {"tokenizer_config": CLASS | {"pad_token": "[PAD]", "bos_token": "<s>", "unk_token": "<unk>"}},
        {"tokenizer_config": CLASS | {"pad_token": "[PAD]", "added_tokens_decoder": {"4": TALK}}},
        {"tokenizer_config": CLASS | {"pad_token": "[PAD]", "additional_special_tokens": ["<|y|>", "<|x|>"]}},
    ],
)
def test_ids_are_those_of_transformers(tmp_path: Path, files: dict[str, Any]) -> None:
    write(tmp_path, **files)
    contents = {name: (tmp_path / name).read_bytes() for name in DECLARING if (tmp_path / name).exists()}
    plain = read_tokenizer((tmp_path / "tokenizer.json").read_bytes(), "t")
    found = with_declared(plain, contents, "m")
    assert dict(found.tokens()) == AutoTokenizer.from_pretrained(tmp_path).get_vocab()


def test_an_id_that_is_no_number_comes_first(tmp_path: Path) -> None:
    """Digits without end are none, either."""
    write(tmp_path)
    plain = read_tokenizer((tmp_path / "tokenizer.json").read_bytes(), "t")
    listed = {"5": {"content": "x"}, "9" * 5000: {"content": "y"}}
    files = {"tokenizer_config.json": json.dumps({"added_tokens_decoder": listed}).encode()}
    assert dict(with_declared(plain, files, "m").beyond) == {"<s>": 3, "y": 4, "x": 5}


def test_older_files_count_where_the_configuration_lists_no_ids(tmp_path: Path) -> None:
    write(tmp_path)
    plain = read_tokenizer((tmp_path / "tokenizer.json").read_bytes(), "t")
    files = {
        "added_tokens.json": b'{"<|late|>": 5, "<|early|>": 4}',
        "special_tokens_map.json": b'{"pad_token": "[P]"}',
    }
    assert dict(with_declared(plain, files, "m").beyond) == {"<s>": 3, "<|early|>": 4, "<|late|>": 5, "[P]": 6}
    newer = files | {"tokenizer_config.json": b'{"added_tokens_decoder": {}}'}
    assert with_declared(plain, newer, "m") is plain


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("tokenizer_config.json", b"[]", "m/tokenizer_config.json is not a JSON object"),
        ("added_tokens.json", b"{", "m/added_tokens.json is not a JSON object"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"3": 4}}', "an added token is no JSON object"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"3": {"content": 4}}}', "expected a text as a token"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    write(tmp_path)
    plain = read_tokenizer((tmp_path / "tokenizer.json").read_bytes(), "t")
    with pytest.raises(InputError, match=message):
        with_declared(plain, {name: data}, "m")
