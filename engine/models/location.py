"""Where a tensor's elements come from: bytes of a file, or a computation over several stored tensors while reading."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..kernels import Array, Kernels
from .header import DTYPES, TensorInfo

Bytes = NDArray[np.uint8]


class Reads(Protocol):
    """What filling a window may use: files of one checkpoint, arithmetic, and memory that is counted.

    One object serves all reader threads.
    """

    @property
    def kernels(self) -> Kernels:
        """The arithmetic of tiles."""

    def read(self, file: int, info: TensorInfo, begin: int, into: Bytes) -> None:
        """Fill `into` from byte `begin` of a tensor that a file of the checkpoint holds, in the version of the plan."""

    def of(self, url: str) -> Reads:
        """The same for another checkpoint of the merge."""

    def by_rows(self) -> Reads:
        """The same for tensors whose rows are read one by one, in any order."""

    @property
    def held_most_bytes(self) -> int:
        """Matrices of up to this size in fp32 are kept for the windows of a tensor."""

    def computing(self) -> AbstractContextManager[None]:
        """Counts what is computed inside as time of the reader threads."""

    def held(self, key: Hashable, size_bytes: int, make: Callable[[], Array]) -> Array:
        """What `make` returns, kept as long as there is room; `key` says all that it depends on in this checkpoint."""

    def scratch(self, slot: str, elements: int) -> Array:
        """An f32 array [elements] of this thread, the same memory whenever the slot is asked for again."""


class Derived(Protocol):
    """A tensor whose elements are computed while they are read; every element by itself, so windows do not matter."""

    @property
    def read_bytes(self) -> int:
        """Stored bytes that reading the whole tensor once needs."""

    @property
    def stretches(self) -> int:
        """Stretches of files that its stored bytes lie in, at most."""

    @property
    def out_dtype(self) -> str:
        """The dtype in which a merged tensor is stored when the recipe names none."""

    def held_bytes(self, most_bytes: int) -> int:
        """Memory for what is kept between windows, where matrices of up to `most_bytes` are."""

    def scratch_bytes(self, most_bytes: int) -> int:
        """Memory that a reader thread needs besides the window's own buffer, then."""

    def fill(self, begin: int, end: int, into: Bytes, reads: Reads) -> None:
        """Write elements [begin, end) of the tensor, in its logical dtype."""


@dataclass(frozen=True, slots=True)
class TensorLocation:
    """Where a tensor's elements come from."""

    file: int
    """Index in `Checkpoint.files`; of a derived tensor, that of its main part."""
    info: TensorInfo
    """Name, dtype and shape as the merge sees them; the offset means nothing for a derived tensor."""
    derived: Derived | None = None
    """How the elements are computed; None: they are the file's own bytes."""

    def __hash__(self) -> int:
        """Quick, as locations are keys while they are read: names of a file differ."""
        return hash((self.file, self.info.name))

    @property
    def read_bytes(self) -> int:
        """Stored bytes that reading the whole tensor once needs."""
        return self.info.nbytes if self.derived is None else self.derived.read_bytes

    @property
    def stretches(self) -> int:
        """Stretches of files that its stored bytes lie in, at most."""
        return 1 if self.derived is None else self.derived.stretches

    @property
    def out_dtype(self) -> str:
        """The dtype in which the merged tensor is stored when the recipe names none."""
        return self.info.dtype if self.derived is None else self.derived.out_dtype

    def fill(self, begin: int, end: int, into: Bytes, reads: Reads) -> None:
        """Write units [begin, end) of the tensor (see `TensorInfo.units`) into `into`, uint8.

        Raises:
            InputError: a file ends too early or is another one than when the plan was made.
        """
        if self.derived is not None:
            self.derived.fill(begin, end, into, reads)
        else:
            reads.read(self.file, self.info, begin * DTYPES[self.info.dtype].unit_bytes, into)
