"""The first bytes of a safetensors file: strict parsing, exact writing, and the shard index beside them.

Stricter than the safetensors library where it is lax (duplicate keys, control characters, unknown fields):
everything the library rejects is rejected here, and everything it writes with ordinary names is accepted.
"""

from __future__ import annotations

import gc
import json
import math
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Literal, NoReturn, TypeAlias

from ..errors import InputError

MAX_HEADER_BYTES = 100_000_000
"""Longest JSON header in bytes; the library's own limit, so that whatever we write can be loaded."""

MAX_TENSOR_BITS = 1 << 63
"""Largest product of a tensor's dimensions (zeros left out) and its bits per element."""

MAX_RANK = 64
"""Most dimensions of a tensor; the limit of torch and numpy."""

METADATA_KEY = "__metadata__"
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
_Found: TypeAlias = tuple[int, int, str, str, tuple[int, ...]]  # begin, end, name, dtype, shape

_UNSAFE_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_FILE_NAME_BYTES = 255

# The library's own style of a header: no escapes, no spaces, fields in order.
_PLAIN_START = re.compile(r'\{(?:"__metadata__":\{"format":"([a-z]+)"\},)?(?=")')
_PLAIN_ENTRY = re.compile(
    r'"([^"\\\x00-\x1f\x7f-\x9f]*)":\{"dtype":"([A-Z0-9_]+)","shape":\[([0-9,]*)\],'
    r'"data_offsets":\[(0|[1-9][0-9]{0,17}),(0|[1-9][0-9]{0,17})\]\},'
)
_PLAIN_FRAME = '"":{"dtype":"","shape":[],"data_offsets":[,]},'
_PLAIN_DIMS = re.compile(r"|(?:0|[1-9][0-9]{0,18})(?:,(?:0|[1-9][0-9]{0,18}))*")


@dataclass(frozen=True, slots=True)
class DType:
    """One element type of the safetensors format."""

    name: str
    bits: int
    """Bits per element; F4 and F6 types are narrower than a byte."""
    kind: Literal["float", "int", "bool", "packed"]
    """float: merged; int and bool: copied when equal; packed: everything else, copied when equal."""

    @property
    def size(self) -> int:
        """Bytes per element; InputError for types narrower than a byte (`TensorInfo.nbytes` works for any)."""
        if self.bits % 8:
            raise InputError(f"elements of dtype {self.name} are not whole bytes, so they cannot be taken one by one")
        return self.bits // 8

    @property
    def unit_bytes(self) -> int:
        """Bytes of what a tensor is cut by: an element, or one byte for types narrower than that."""
        return 1 if self.bits % 8 else self.bits // 8


# In the library's own layout rank, widest first: a file's tensors lie in this order, then by name.
_DTYPE_ORDER = (
    DType("U64", 64, "int"),
    DType("I64", 64, "int"),
    DType("F64", 64, "float"),
    DType("C64", 64, "packed"),
    DType("F32", 32, "float"),
    DType("U32", 32, "int"),
    DType("I32", 32, "int"),
    DType("BF16", 16, "float"),
    DType("F16", 16, "float"),
    DType("U16", 16, "int"),
    DType("I16", 16, "int"),
    DType("F8_E5M2FNUZ", 8, "packed"),
    DType("F8_E4M3FNUZ", 8, "packed"),
    DType("F8_E8M0", 8, "packed"),
    DType("F8_E4M3", 8, "float"),
    DType("F8_E5M2", 8, "float"),
    DType("I8", 8, "int"),
    DType("U8", 8, "int"),
    DType("F6_E3M2", 6, "packed"),
    DType("F6_E2M3", 6, "packed"),
    DType("F4", 4, "packed"),
    DType("BOOL", 8, "bool"),
)
DTYPES: Mapping[str, DType] = MappingProxyType({dtype.name: dtype for dtype in _DTYPE_ORDER})
_LAYOUT_RANK = {dtype.name: rank for rank, dtype in enumerate(_DTYPE_ORDER)}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file: what it is and where its bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Absolute byte offset in the file."""

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def units(self) -> int:
        """What the tensor is cut by: elements, or bytes for types that are narrower."""
        return self.nbytes // DTYPES[self.dtype].unit_bytes

    @property
    def nbytes(self) -> int:
        """Size of the tensor's bytes in the file."""
        return math.prod(self.shape) * DTYPES[self.dtype].bits // 8


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header."""

    tensors: tuple[TensorInfo, ...]
    """By offset; zero-size tensors come before the tensor that starts at the same offset."""
    metadata: Mapping[str, str]
    nbytes: int
    """Length of the header in the file: 8 bytes of length and the JSON text with its padding."""


def header_length(first8: bytes, file_size: int, where: str) -> int:
    """Total number of header bytes to read (8 + JSON), from the first 8 bytes of a file.

    Raises:
        InputError: the file is too short to be a safetensors file, or the length is implausible.
    """
    if file_size < 8 or len(first8) < 8:
        raise InputError(
            f"{where}: not a safetensors file: {min(file_size, len(first8))} bytes, expected at least 8",
            "The file may be an unfinished download, or a Git LFS pointer; fetch it again.",
        )
    (json_bytes,) = struct.unpack("<Q", first8[:8])
    if json_bytes > MAX_HEADER_BYTES or json_bytes < 2:
        raise InputError(
            f"{where}: not a safetensors file: it declares a header of {json_bytes} bytes "
            f"(expected 2 to {MAX_HEADER_BYTES})",
            "The file may be a Git LFS pointer, a pickle, or damaged; fetch it again.",
        )
    total: int = 8 + json_bytes
    if total > file_size:
        raise InputError(
            f"{where}: truncated: its header needs {total} bytes, the file has {file_size}",
            "Fetch the file again.",
        )
    return total


def parse_header(data: bytes, file_size: int, where: str) -> Header:
    """Parse the first `header_length` bytes of a file and check that its tensors cover the file exactly.

    Args:
        data: the 8 length bytes and the JSON text, nothing else.
        file_size: size of the whole file in bytes.
        where: the file's name for error messages.

    Raises:
        InputError: anything that the safetensors library would reject, and also duplicate keys, unknown
            fields, leading space, and control characters in tensor names.
    """
    total = header_length(data[:8], file_size, where)
    if len(data) != total:
        raise InputError(f"{where}: {len(data)} bytes of a header were read, it has {total}", "Fetch the file again.")
    if data[8:9] != b"{":
        raise InputError(f"{where}: damaged header: expected '{{' first, found {data[8:9]!r}")
    if not data.rstrip(b" ").endswith(b"}"):
        raise InputError(f"{where}: damaged header: expected '}}' and then only spaces at its end")
    with without_garbage_collection():
        found, metadata = _parse_plain(data[8:]) or _parse_any(data[8:], where)
        found.sort(key=itemgetter(0, 1))
        _check_cover(found, file_size - total, where)
        intern = sys.intern
        tensors = tuple(TensorInfo(intern(name), dtype, shape, total + begin) for begin, _, name, dtype, shape in found)
        return Header(tensors, metadata, total)


def build_header(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str], keep_order: bool = False
) -> tuple[bytes, tuple[TensorInfo, ...]]:
    """Lay tensors out and write the header, byte for byte as the safetensors library does.

    The library writes metadata in no fixed order; here it is sorted by key.

    Args:
        tensors: (name, dtype, shape) in any order, names unique.
        metadata: text entries of the header, usually `{"format": "pt"}`.
        keep_order: tensors lie in the file as they are given, instead of widest dtypes first and then by name.

    Returns:
        the header's bytes (8 bytes of length, JSON, spaces up to a multiple of 8); the tensors in file order.
    """
    ordered = list(tensors)
    if not keep_order:
        ordered.sort(key=lambda tensor: (_LAYOUT_RANK[tensor[1]], tensor[0]))
    entries: dict[str, Any] = {METADATA_KEY: dict(sorted(metadata.items()))} if metadata else {}
    begin = 0
    for name, dtype, shape in ordered:
        assert name not in entries, f"tensor name {name!r} is used twice or reserved"
        bits = math.prod(shape) * DTYPES[dtype].bits
        assert bits % 8 == 0, f"{name}: {shape} of {dtype} is not a whole number of bytes"
        end = begin + bits // 8
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}
        begin = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise InputError(
            f"the header of an output shard with {len(ordered)} tensors needs {len(text)} bytes "
            f"(the format allows {MAX_HEADER_BYTES})",
            "Use a smaller output shard_size.",
        )
    start = 8 + len(text)
    infos = tuple(
        TensorInfo(name, dtype, tuple(shape), start + entries[name]["data_offsets"][0])
        for name, dtype, shape in ordered
    )
    return struct.pack("<Q", len(text)) + text, infos


def parse_index(data: bytes, where: str) -> dict[str, str]:
    """Parse a `*.safetensors.index.json`: tensor name -> shard file name, in the file's order.

    Raises:
        InputError: not an index, duplicate names, or a shard name that is not a plain file name.
    """
    table = _parse_json(data, where)
    weight_map = table.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f'{where}: not a checkpoint index: expected a "weight_map" with at least one tensor')
    checked: set[str] = set()
    for name, file_name in weight_map.items():
        _check_tensor_name(name, where)
        if not isinstance(file_name, str):
            raise InputError(f"{where}: tensor {name!r} maps to {file_name!r}, expected a file name")
        if file_name not in checked:
            check_file_name(file_name, where)
            checked.add(file_name)
    return weight_map


def check_file_name(name: str, where: str) -> None:
    """Reject a name that is not one plain, visible file name of the checkpoint's own folder.

    Raises:
        InputError: separators, `..`, control characters, hidden or over-long names.
    """
    if not name:
        problem = "is empty"
    elif "/" in name or "\\" in name:
        problem = "has a path separator"
    elif name.startswith("."):
        problem = "starts with a dot"
    elif _UNSAFE_TEXT.search(name):
        problem = "has control characters"
    elif len(name.encode()) > _MAX_FILE_NAME_BYTES:
        problem = f"is longer than {_MAX_FILE_NAME_BYTES} bytes"
    else:
        return
    raise InputError(f"{where}: file name {name[:300]!r} {problem}; expected a plain name in the same folder")


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause cycle collection: a large header is a million small objects and no cycle, 30 % faster."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _parse_plain(data: bytes) -> tuple[list[_Found], Mapping[str, str]] | None:
    """Parse a header as the library writes it, several times faster than JSON; None for anything unusual.

    Only accepts text that `_parse_any` accepts, with the same result, and leaves all complaints to it.
    """
    try:
        text = data.decode("utf-8").rstrip(" ")
    except UnicodeDecodeError:
        return None
    start = _PLAIN_START.match(text)
    if start is None or not text.endswith("]}}"):
        return None
    body = text[start.end() : -1] + ","
    rows = _PLAIN_ENTRY.findall(body)
    if sum(map(len, chain.from_iterable(rows))) + len(rows) * len(_PLAIN_FRAME) != len(body):
        return None  # something lies between or beside the entries
    layouts: dict[tuple[str, str], tuple[str, tuple[int, ...], int]] = {}
    found = []
    for name, dtype, dims, begin_text, end_text in rows:
        layout = layouts.get((dtype, dims))
        if layout is None:
            if dtype not in DTYPES or not _PLAIN_DIMS.fullmatch(dims):
                return None
            shape = tuple(map(int, dims.split(","))) if dims else ()
            bits = _tensor_bits(dtype, shape)
            if bits is None or bits % 8:
                return None
            layout = layouts[dtype, dims] = DTYPES[dtype].name, shape, bits // 8
        begin, end = int(begin_text), int(end_text)
        if end - begin != layout[2]:
            return None
        found.append((begin, end, name, layout[0], layout[1]))
    names = {row[0] for row in rows}
    if len(names) != len(rows) or METADATA_KEY in names:
        return None
    return found, MappingProxyType({"format": start[1]} if start[1] else {})


def _parse_any(data: bytes, where: str) -> tuple[list[_Found], Mapping[str, str]]:
    """Parse any valid header; the place where all errors are explained."""
    table = _parse_json(data, where)
    metadata = _parse_metadata(table.pop(METADATA_KEY, {}), where)
    found = []
    for name, entry in table.items():
        _check_tensor_name(name, where)
        dtype, shape, begin, end = _parse_entry(name, entry, where)
        found.append((begin, end, name, DTYPES[dtype].name, tuple(shape)))
    return found, metadata


def _tensor_bits(dtype: str, shape: Sequence[int]) -> int | None:
    """Size of a tensor in bits; None when the dimensions are impossible."""
    bits = DTYPES[dtype].bits
    numel = math.prod(shape)
    if len(shape) > MAX_RANK or (numel or math.prod(dim or 1 for dim in shape)) * bits >= MAX_TENSOR_BITS:
        return None
    return numel * bits


def _parse_json(data: bytes, where: str) -> dict[str, Any]:
    """JSON text to one object, no object in it with duplicate keys."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise InputError(f"{where}: damaged: {twice!r} appears twice")
        return table

    def constant(text: str) -> NoReturn:
        raise InputError(f"{where}: damaged: {text} is not JSON")

    try:
        text = data.decode("utf-8")
        # Python reads -0 as the integer 0; the library does not accept it as a size.
        parse_int = (lambda digits: -1 if digits[0] == "-" else int(digits)) if "-0" in text else None
        table = json.loads(text, object_pairs_hook=unique, parse_constant=constant, parse_int=parse_int)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: damaged: not valid JSON in UTF-8 ({error})") from error
    if not isinstance(table, dict):
        raise InputError(f"{where}: damaged: expected a JSON object of tensors")
    return table


def _parse_metadata(metadata: Any, where: str) -> Mapping[str, str]:
    if not isinstance(metadata, dict):
        raise InputError(f"{where}: damaged header: {METADATA_KEY} is not an object")
    for key, value in metadata.items():
        if not isinstance(value, str) or _SURROGATE.search(value) or _SURROGATE.search(key):
            raise InputError(f"{where}: damaged header: {METADATA_KEY} entry {key!r} is not text")
    return MappingProxyType(metadata)


def _parse_entry(name: str, entry: Any, where: str) -> tuple[str, list[int], int, int]:
    """One tensor's (dtype, shape, begin, end), its size checked against its dtype and shape."""
    if type(entry) is not dict or entry.keys() != _ENTRY_KEYS:
        _reject_entry(name, entry, where)
    dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if (
        type(dtype_name) is not str
        or dtype_name not in DTYPES
        or type(shape) is not list
        or len(shape) > MAX_RANK
        or type(offsets) is not list
        or len(offsets) != 2
    ):
        _reject_entry(name, entry, where)
    begin, end = offsets
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        _reject_entry(name, entry, where)
    for dim in shape:
        if type(dim) is not int or dim < 0:
            _reject_entry(name, entry, where)
    bits = _tensor_bits(dtype_name, shape)
    if bits is None:
        raise InputError(f"{where}: tensor {name!r} has impossible dimensions; the header is damaged")
    if bits != (end - begin) * 8:
        raise InputError(
            f"{where}: tensor {name!r} of {dtype_name} {shape} needs {-(-bits // 8)} bytes, "
            f"its offsets [{begin}, {end}] hold {end - begin}"
        )
    return dtype_name, shape, begin, end


def _reject_entry(name: str, entry: Any, where: str) -> NoReturn:
    dtype_name = entry.get("dtype") if isinstance(entry, dict) else None
    if isinstance(dtype_name, str) and dtype_name not in DTYPES:
        raise InputError(
            f"{where}: tensor {name!r} has the unknown dtype {dtype_name[:40]!r} (known: {', '.join(DTYPES)})"
        )
    raise InputError(
        f"{where}: damaged header: tensor {name!r} needs exactly dtype, shape (up to {MAX_RANK} dimensions) "
        "and data_offsets, with non-negative whole numbers"
    )


def _check_tensor_name(name: str, where: str) -> None:
    if _UNSAFE_TEXT.search(name):
        raise InputError(f"{where}: tensor name {name[:200]!r} has control characters")


def _check_cover(found: list[_Found], data_bytes: int, where: str) -> None:
    """The tensors, sorted by offset, must lie end to end and fill the file."""
    expected = 0
    for begin, end, name, _, _ in found:
        if begin != expected:
            kind = "overlaps the tensor before it" if begin < expected else "leaves a hole before it"
            raise InputError(f"{where}: tensor {name!r} starts at data offset {begin} and {kind} (expected {expected})")
        expected = end
    if expected != data_bytes:
        kind = "truncated" if expected > data_bytes else "longer than its tensors"
        raise InputError(
            f"{where}: {kind}: its tensors need {expected} bytes, the file has {data_bytes} after the header",
            "Fetch the file again.",
        )
