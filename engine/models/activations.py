"""How strongly each input feature of a matrix is used: mean squares of activations, from a safetensors file.

WANDA (arXiv 2306.11695) orders the weights of a linear layer by |w_rc| * sqrt(mean of x_c^2) instead of |w_rc|, where
x_c is the layer's input feature c over calibration data. Here the same factor orders the elements of task vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..storage import Store, open_store
from .checkpoint import read_file_header
from .header import TensorInfo
from .room import Room

Squares = NDArray[np.floating]

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Activations:
    """One file of mean squares, read and checked."""

    url: str
    """Absolute, normalised, without credentials."""
    size: int
    sha256: str
    """Of the whole file."""
    squares: Mapping[str, Squares] = field(compare=False, repr=False)
    """Per tensor name, the mean of x^2 for each input feature (the last dimension): finite, not negative."""

    def identity(self) -> dict[str, Any]:
        """What identifies the input, ready for canonical JSON."""
        return {"url": self.url, "size": self.size, "sha256": self.sha256}

    @property
    def held_bytes(self) -> int:
        """Memory that the vectors take."""
        return sum(vector.nbytes for vector in self.squares.values())


def open_activations(url: str, room: Room | None = None) -> Activations:
    """Read a file of mean squares.

    Args:
        url: of the file, absolute.
        room: memory for its header; None: it takes what it needs.

    Raises:
        InputError: it is missing or damaged, or holds what cannot be mean squares of input features.
    """
    folder, _, name = url.rpartition("/")
    store = open_store(folder)
    where = f"{store.url}/{name}"
    if not name.endswith(SUFFIX):
        raise InputError(f"{where}: activations are read from safetensors files", f"expected a name like x{SUFFIX}")
    file, header = read_file_header(store, name, room or Room())
    digest, squares = hashlib.sha256(), {}
    for info in header.tensors:
        squares[info.name] = _checked(_read(store, name, file.version, info), info, where)
    for begin in range(0, file.size, _CHUNK_BYTES):
        digest.update(_bytes(store, name, file.version, begin, min(_CHUNK_BYTES, file.size - begin)))
    return Activations(where, file.size, digest.hexdigest(), squares)


_CHUNK_BYTES = 8 << 20
_DECODED: Mapping[str, Any] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def _bytes(store: Store, name: str, version: str, offset: int, size: int) -> bytearray:
    data = bytearray(size)
    store.read_into(name, offset, memoryview(data), version)
    return data


def _read(store: Store, name: str, version: str, info: TensorInfo) -> Squares:
    if info.dtype not in _DECODED or len(info.shape) != 1 or info.numel == 0:
        shape = list(info.shape)
        raise InputError(
            f"{store.url}/{name}: {info.name!r} is {info.dtype} {shape}; mean squares of input features are one vector",
            f"expected one of {', '.join(_DECODED)} of shape [features]",
        )
    raw: NDArray[Any] = np.frombuffer(
        _bytes(store, name, version, info.offset, info.nbytes), np.dtype(_DECODED[info.dtype])
    )
    if info.dtype == "BF16":
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    squares: Squares = raw.astype(np.float64 if info.dtype == "F64" else np.float32)
    return squares


def _checked(squares: Squares, info: TensorInfo, where: str) -> Squares:
    bad = int(np.count_nonzero(~(np.isfinite(squares) & (squares >= 0))))
    if bad:
        text = f"{where}: {bad} of the mean squares of {info.name!r} are negative, NaN or infinite"
        raise InputError(text, "measure the activations again")
    return squares
