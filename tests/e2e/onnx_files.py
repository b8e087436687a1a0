"""ONNX files of models of our own, written as PyTorch's exporter writes them."""

from __future__ import annotations

import torch

from benchmarks.quality.onnx_file import (
    BYTES,
    DATA_TYPE,
    DIMENSION,
    FLOAT,
    GRAPH,
    INITIALIZER,
    INPUT,
    NODE,
    NODE_NAME,
    RAW_DATA,
    TENSOR_NAME,
    VARINT,
)


def write_onnx(named: dict[str, torch.Tensor], folded: dict[str, tuple[str, torch.Tensor]]) -> bytes:
    """A file of weights under their names, and of constants, each with the path of the node that takes it."""
    graph = b"".join(_member(INITIALIZER, _tensor(name, tensor)) for name, tensor in named.items())
    for name, (node, tensor) in folded.items():
        graph += _member(INITIALIZER, _tensor(name, tensor))
        graph += _member(
            NODE, _member(INPUT, b"before") + _member(INPUT, name.encode()) + _member(NODE_NAME, node.encode())
        )
    return _number(1, 8) + _member(GRAPH, graph)


def _tensor(name: str, tensor: torch.Tensor) -> bytes:
    sizes = b"".join(_number(DIMENSION, size) for size in tensor.shape)
    content = tensor.contiguous().numpy().tobytes()
    return sizes + _number(DATA_TYPE, FLOAT) + _member(TENSOR_NAME, name.encode()) + _member(RAW_DATA, content)


def _member(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | BYTES) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    some = []
    while value > 0x7F:
        some.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*some, value])
