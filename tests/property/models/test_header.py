from __future__ import annotations

import ctypes
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, TensorSpec, deserialize, serialize

from anabranch.engine.errors import InputError
from anabranch.engine.models import header
from anabranch.engine.models.header import DTYPES, build_header, header_length, parse_header

from ..kernel_cases import examples

LIBRARY_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F4": "float4_e2m1fn_x2",
}  # fmt: skip
ZEROS = ctypes.create_string_buffer(1 << 12)

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
tensor_sets = st.dictionaries(names, st.tuples(st.sampled_from(sorted(LIBRARY_NAMES)), shapes), max_size=8)
metadata = st.one_of(
    st.just({}),
    st.just({"format": "pt"}),
    st.dictionaries(st.text(max_size=5), st.text(max_size=8), min_size=1, max_size=1),
)


def library_bytes(tensors, entries) -> tuple[bytes, list[tuple[str, str, tuple[int, ...]]]]:
    """What the library writes; and the shapes that it wrote, as packed F4 shapes double their last dimension."""
    specs, written = {}, []
    for name, (dtype, shape) in tensors.items():
        if dtype == "F4" and not shape:
            shape = (1,)
        count = 1
        for dim in shape:
            count *= dim
        nbytes = count if dtype == "F4" else count * DTYPES[dtype].size
        specs[name] = TensorSpec(
            dtype=LIBRARY_NAMES[dtype], shape=shape, data_ptr=ctypes.addressof(ZEROS), data_len=nbytes
        )
        written.append((name, dtype, tuple(specs[name].shape)))
    return serialize(specs, entries or None), written


@given(tensor_sets, metadata)
def test_our_header_is_byte_for_byte_the_library_s(tensors, entries):
    whole, written = library_bytes(tensors, entries)
    ours, infos = build_header(written, entries)
    assert ours == whole[: len(ours)]
    assert len(whole) == (infos[-1].offset + infos[-1].nbytes if infos else len(ours))


@given(tensor_sets, metadata)
def test_whatever_the_library_writes_is_accepted(tensors, entries):
    whole, written = library_bytes(tensors, entries)
    length = header_length(whole[:8], len(whole), "f")
    parsed = parse_header(whole[:length], len(whole), "f")
    assert {(t.name, t.dtype, t.shape) for t in parsed.tensors} == set(written)
    assert dict(parsed.metadata) == entries


@given(tensor_sets, metadata)
def test_the_fast_way_reads_what_the_general_way_reads(tensors, entries):
    whole, _ = library_bytes(tensors, entries)
    (length,) = struct.unpack("<Q", whole[:8])
    text = whole[8 : 8 + length]
    fast = header._parse_plain(text)
    plain_metadata = not entries or (entries.keys() == {"format"} and entries["format"].isalpha())
    if tensors and plain_metadata and b"\\" not in text:
        assert fast is not None
    if fast is not None:
        assert fast == header._parse_any(text, "f")


def accepted(text: bytes, data_bytes: int) -> bool:
    data = struct.pack("<Q", len(text)) + text
    try:
        length = header_length(data[:8], len(data) + data_bytes, "f")
        parse_header(data[:length], len(data) + data_bytes, "f")
    except InputError:
        return False
    return True


def library_accepts(text: bytes, data_bytes: int) -> bool:
    try:
        deserialize(struct.pack("<Q", len(text)) + text + bytes(data_bytes))
    except SafetensorError:
        return False
    return True


numbers = st.one_of(
    st.integers(0, 24),
    st.sampled_from([-1, 2**31, 2**62, 2**63, 2**64, 1.0, True, None, "4", [], "RAW-0", "RAW1e0"]),
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "F6_E2M3", "F8_E8M0", "f32", "", None]),
        "shape": st.one_of(st.lists(numbers, max_size=3), st.none()),
        "data_offsets": st.one_of(st.lists(numbers, min_size=1, max_size=3), st.none()),
    },
    optional={"extra": st.just(1)},
)


def as_text(table) -> bytes:
    return (
        json.dumps(table, separators=(",", ":"))
        .replace('"RAW', "")
        .replace('-0"', "-0")
        .replace('1e0"', "1e0")
        .encode()
    )


@examples(500)
@given(st.dictionaries(st.sampled_from(["a", "b", "c", "__metadata__"]), entries, max_size=3), st.integers(0, 24))
def test_whatever_the_library_rejects_is_rejected(table, data_bytes):
    text = as_text(table)
    if accepted(text, data_bytes):
        assert library_accepts(text, data_bytes)


@examples(500)
@given(tensor_sets, metadata, st.data())
def test_a_damaged_header_is_never_accepted_when_the_library_rejects_it(tensors, entries, data):
    whole, _ = library_bytes(tensors, entries)
    (length,) = struct.unpack("<Q", whole[:8])
    text = bytearray(whole[8 : 8 + length])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.one_of(
                st.binary(max_size=2), st.sampled_from([b'"', b"{", b"}", b",", b":", b"0", b"-", b" ", b"\\", b"e"])
            )
        )
    data_bytes = len(whole) - 8 - length
    fast = header._parse_plain(bytes(text))
    if fast is not None:
        assert fast == header._parse_any(bytes(text), "f")
    if accepted(bytes(text), data_bytes):
        assert library_accepts(bytes(text), data_bytes)


def test_the_damage_test_can_see_both_outcomes():
    good = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    assert accepted(good, 4)
    assert library_accepts(good, 4)
    assert not accepted(good, 5)
    assert not library_accepts(good, 5)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_is_known_to_the_library(dtype):
    text = json.dumps({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, DTYPES[dtype].bits]}}).encode()
    assert library_accepts(text, DTYPES[dtype].bits)
    assert accepted(text, DTYPES[dtype].bits)
