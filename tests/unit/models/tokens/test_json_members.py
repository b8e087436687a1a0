"""Members and items of JSON found in its bytes, beside the parser that reads everything."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.engine.models.tokens.json_members import items, members, value_end

KEYS = st.text(max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.sampled_from([None, 2]), st.booleans())
def test_members_are_those_of_the_parser(content: dict[str, Any], indent: int | None, escapes: bool) -> None:
    data = json.dumps(content, indent=indent, ensure_ascii=escapes).encode("utf-8", "surrogatepass")
    found, end = members(data)
    assert end == len(data)
    assert {key: json.loads(data[a:b].decode("utf-8", "surrogatepass")) for key, (a, b) in found.items()} == content


@given(st.lists(VALUES, max_size=5), st.sampled_from([None, 1]))
def test_items_are_those_of_the_parser(content: list[Any], indent: int | None) -> None:
    data = b"  " + json.dumps(content, indent=indent).encode()
    assert [json.loads(data[a:b]) for a, b in items(data, (2, len(data)))] == content


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"a"',
        b'{"a":',
        b'{"a": }',
        b'{"a": 1',
        b'{"a": 1,}',
        b'{"a": [1}',
        b'{"a": "b}',
        b"{a: 1}",
        b'{"a" 1}',
    ],
)
def test_what_is_no_object(data: bytes) -> None:
    with pytest.raises(ValueError, match="byte"):
        members(data)


@pytest.mark.parametrize("data", [b"{}", b"[1", b"[1 2]", b"[1,]"])
def test_what_is_no_array(data: bytes) -> None:
    with pytest.raises(ValueError, match="byte"):
        list(items(data, (0, len(data))))


def test_brackets_in_texts_and_deep_values() -> None:
    data = b'[{"a": ["]", {"b": "}\\"]"}]}, "["]tail'
    assert data[value_end(data, 0) :] == b"tail"
    deep = b"[" * 100_000 + b"]" * 100_000
    assert value_end(deep, 0) == len(deep)
