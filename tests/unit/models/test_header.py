from __future__ import annotations

import json
import struct

import pytest

from anabranch.engine.errors import InputError
from anabranch.engine.models.header import (
    DTYPES,
    MAX_HEADER_BYTES,
    build_header,
    check_file_name,
    header_length,
    parse_header,
    parse_index,
)

GOOD = '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


def framed(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def parse(text: str | bytes, data_bytes: int = 4):
    data = framed(text)
    return parse_header(data, len(data) + data_bytes, "some/file")


def entry(dtype="F32", shape="[1]", offsets="[0,4]") -> str:
    return f'{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}'


def test_offsets_are_absolute_and_tensors_come_in_file_order():
    header = parse(
        '{"b":{"dtype":"F16","shape":[3],"data_offsets":[4,10]},"__metadata__":{"format":"pt"},'
        '"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   ',
        data_bytes=10,
    )
    assert [(t.name, t.offset - header.nbytes, t.numel, t.nbytes) for t in header.tensors] == [
        ("a", 0, 1, 4),
        ("b", 4, 3, 6),
    ]
    assert header.metadata == {"format": "pt"}


def test_a_written_header_parses_to_what_it_was_made_from():
    tensors = [("x.weight", "BF16", (2, 3)), ("é", "F64", ()), ("mask", "BOOL", (5,)), ("none", "F32", (0, 7))]
    data, infos = build_header(tensors, {"format": "pt"})
    header = parse_header(data, infos[-1].offset + infos[-1].nbytes, "here")
    assert header.tensors == infos
    assert {(t.name, t.dtype, t.shape) for t in infos} == set(tensors)
    assert len(data) % 8 == 0


def test_wider_dtypes_lie_first_and_equal_ones_by_name():
    names = [
        info.name
        for info in build_header(
            [("c", "U8", (1,)), ("b", "BF16", (1,)), ("a", "BF16", (1,)), ("d", "I64", (1,)), ("e", "F16", (1,))], {}
        )[1]
    ]
    assert names == ["d", "a", "b", "e", "c"]


def test_narrow_elements_are_counted_in_bits():
    header = parse(entry("F4", "[2,4]"))
    assert header.tensors[0].nbytes == 4
    with pytest.raises(InputError, match="F4 are not whole bytes"):
        _ = DTYPES["F4"].size
    assert DTYPES["BF16"].size == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (entry("F32", "[2]"), "needs 8 bytes"),
        (entry("F4", "[3]"), "needs 2 bytes"),
        (entry("F31"), "unknown dtype 'F31'"),
        (entry("F32", "[1.0]"), "whole numbers"),
        (entry("F32", "[true]"), "whole numbers"),
        (entry("F32", "[-1]"), "whole numbers"),
        (entry("F32", "[-0]", "[0,0]"), "whole numbers"),
        (entry("F32", "null"), "whole numbers"),
        (entry("F32", "[1]", "[4,0]"), "whole numbers"),
        (entry("F32", "[1]", "[0,4,8]"), "whole numbers"),
        (entry("F32", "[1]", '{"0":0,"1":4}'), "whole numbers"),
        (entry("F32", str([1] * 65)), "up to 64 dimensions"),
        (entry("F32", f"[0,{1 << 62}]", "[0,0]"), "impossible dimensions"),
        (entry("F32", str([1 << 63] * 60)), "impossible dimensions"),
        (entry("F32", "[" + "9" * 5000 + "]"), "not valid JSON"),
        (entry("F32", "[1]", "[1,5]"), "leaves a hole"),
        ('{"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}', "needs exactly"),
        ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}', "needs exactly"),
        ('{"a":["F32",[1],[0,4]]}', "needs exactly"),
        ('{"a":"F32"}', "needs exactly"),
        (GOOD[:-1] + ',"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "'a' appears twice"),
        ('{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}', "'shape' appears twice"),
        (GOOD[:-1] + ',"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "overlaps"),
        (" " + GOOD, "expected '{' first"),
        ("\ufeff" + GOOD, "expected '{' first"),
        (GOOD + "\n", "only spaces"),
        (GOOD + "\0", "only spaces"),
        (GOOD + "{}", "not valid JSON"),
        ("[1]", "expected '{' first"),
        ('{"a":' * 100_000 + "}", "not valid JSON"),
        ('{"a":NaN}', "NaN is not JSON"),
        (GOOD.replace('"a"', '"a\\u0000"'), "control characters"),
        (GOOD.replace('"a"', '"a\\u001b[31m"'), "control characters"),
        (GOOD.replace('"a"', '"a\\ud800"'), "control characters"),
        (GOOD.replace('"a"', '"a\x01"'), "not valid JSON"),
        (GOOD.encode().replace(b'"a"', b'"\xff"'), "not valid JSON in UTF-8"),
        ('{"__metadata__":{"a":1}}', "not text"),
        ('{"__metadata__":{"a":"\\udc00"}}', "not text"),
        ('{"__metadata__":[]}', "not an object"),
        ('{"__metadata__":null}', "not an object"),
    ],
)  # fmt: skip
def test_damage_is_named_with_its_place(text, message):
    with pytest.raises(InputError) as caught:
        parse(text)
    assert str(caught.value).startswith("some/file: ")
    assert message in str(caught.value)


def test_metadata_may_use_the_names_of_tensor_fields():
    header = parse('{"__metadata__":{"dtype":"x","shape":"y","data_offsets":"z"}}', 0)
    assert header.metadata == {"dtype": "x", "shape": "y", "data_offsets": "z"}


def test_fields_may_come_in_any_order():
    assert parse('{"a":{"shape":[1],"data_offsets":[0,4],"dtype":"F32"}}').tensors == parse(GOOD).tensors


@pytest.mark.parametrize(("data_bytes", "message"), [(3, "truncated"), (5, "longer than its tensors")])
def test_the_file_must_end_where_its_tensors_end(data_bytes, message):
    with pytest.raises(InputError, match=message):
        parse(GOOD, data_bytes)


@pytest.mark.parametrize(
    ("first8", "file_size", "message"),
    [
        (b"", 0, "expected at least 8"),
        (b"version ", 130, "declares a header"),
        (struct.pack("<Q", 1), 100, "declares a header"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1), 1 << 40, "declares a header"),
        (struct.pack("<Q", 93), 100, "needs 101 bytes, the file has 100"),
    ],
)
def test_an_implausible_length_is_rejected_before_reading_on(first8, file_size, message):
    with pytest.raises(InputError, match=message):
        header_length(first8, file_size, "f")


def test_a_header_that_loaders_would_refuse_is_not_written():
    with pytest.raises(InputError, match="smaller output shard_size"):
        build_header([("n" * 1_000_000 + str(i), "F32", (1,)) for i in range(101)], {})


def test_the_index_maps_tensors_to_plain_file_names():
    text = json.dumps({"metadata": {"total_size": 5}, "weight_map": {"b": "2.safetensors", "a": "1.safetensors"}})
    assert list(parse_index(text.encode(), "i").items()) == [("b", "2.safetensors"), ("a", "1.safetensors")]
    fields = {"dtype": "x.safetensors", "shape": "y.safetensors", "data_offsets": "z.safetensors"}
    assert parse_index(json.dumps({"weight_map": fields}).encode(), "i") == fields


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "weight_map"),
        ('{"weight_map":{}}', "weight_map"),
        ('{"weight_map":{"a":1}}', "expected a file name"),
        ('{"weight_map":{"a":"x","a":"y"}}', "twice"),
        ('{"weight_map":{"a":"../x"}}', "path separator"),
        ('{"weight_map":{"a\\n":"x"}}', "control characters"),
        ("not json", "not valid JSON"),
    ],
)
def test_a_bad_index_is_rejected(text, message):
    with pytest.raises(InputError, match=message):
        parse_index(text.encode(), "i")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", ".anabranch", "a\0", "a\n", "x" * 256, "\udc80"])
def test_file_names_with_paths_or_tricks_are_rejected(name):
    with pytest.raises(InputError):
        check_file_name(name, "i")


def test_ordinary_file_names_pass():
    for name in ("model.safetensors", "model-00001-of-00002.safetensors", "gewichte ü 1..safetensors"):
        check_file_name(name, "i")
