"""Weights of an ONNX file by the names they have in PyTorch, without the onnx package.

The file is one protobuf message (https://protobuf.dev/programming-guides/encoding). Of its schema
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto) only graphs, nodes and initializers are looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
GRAPH = 7
NODE, INITIALIZER = 1, 5
INPUT, NODE_NAME = 1, 3
DIMENSION, DATA_TYPE, TENSOR_NAME, RAW_DATA = 1, 2, 8, 9
FLOAT = 1
UNNAMED = "onnx::"
"""How PyTorch's exporter begins the names of constants that it made out of a weight."""
PRODUCT = "MatMul"


@dataclass(frozen=True)
class Constant:
    """A tensor of a file that has no name in PyTorch, and the path of the node that takes it."""

    node: str
    tensor: torch.Tensor


def read_onnx(content: bytes) -> tuple[dict[str, torch.Tensor], list[Constant]]:
    """The weights in float32 of a file that PyTorch exported.

    The exporter transposes the weight of a linear layer and forgets its name; the product that takes it says whose it
    was.

    Args:
        content: the file.

    Returns:
        Tensors by name, and the constants that are no layer's weight.

    Raises:
        ValueError: a tensor does not lie in the file as float32.
    """
    nodes, tensors = [], {}
    for graph in _of(memoryview(content), GRAPH):
        nodes += [_fields(node) for node in _of(graph, NODE)]
        tensors |= dict(_tensor(_fields(tensor)) for tensor in _of(graph, INITIALIZER))
    constants = [
        Constant(_text(node[NODE_NAME][0]), tensors[name])
        for node in nodes
        for name in map(_text, node[INPUT])
        if name in tensors and name.startswith(UNNAMED)
    ]
    named = {name: tensor for name, tensor in tensors.items() if not name.startswith(UNNAMED)}
    for constant in constants:
        layer, _, kind = constant.node.strip("/").rpartition("/")
        if kind == PRODUCT:
            named[f"{layer.replace('/', '.')}.weight"] = constant.tensor.T.contiguous()
    return named, [constant for constant in constants if not constant.node.endswith(f"/{PRODUCT}")]


def _tensor(fields: dict[int, list[int | memoryview]]) -> tuple[str, torch.Tensor]:
    name = _text(fields[TENSOR_NAME][0])
    if fields[DATA_TYPE] != [FLOAT] or not fields[RAW_DATA]:
        raise ValueError(f"{name} is not stored as float32")
    return name, torch.tensor(np.frombuffer(fields[RAW_DATA][0], "<f4")).reshape(_shape(fields[DIMENSION]))


def _shape(dimensions: list[int | memoryview]) -> list[int]:
    """Numbers that lie one by one or, as newer writers have them, packed into bytes."""
    shape: list[int] = []
    for each in dimensions:
        if isinstance(each, int):
            shape.append(each)
            continue
        at = 0
        while at < len(each):
            size, at = _varint(each, at)
            shape.append(size)
    return shape


def _text(value: int | memoryview) -> str:
    return bytes(value).decode()


def _of(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Messages that lie in a field of another."""
    return (value for number, value in _entries(message) if number == wanted and isinstance(value, memoryview))


def _fields(message: memoryview) -> dict[int, list[int | memoryview]]:
    """All values by the number of their field, in their order."""
    fields: dict[int, list[int | memoryview]] = defaultdict(list)
    for number, value in _entries(message):
        fields[number].append(value)
    return fields


def _entries(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == BYTES:
            length, at = _varint(message, at)
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            length = 8 if kind == EIGHT_BYTES else 4
        else:
            raise ValueError(f"no protobuf: wire type {kind}")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number in groups of 7 bits, the lowest first, and where the next value begins."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
