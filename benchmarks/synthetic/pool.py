"""Weights that stand in memory once and are sent again and again: families of blocks, for a base and its fine-tunes."""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..generate import WEIGHT_SPREAD, Tensor, Windows

FAMILIES = 8
"""Of each kind of weights: tensors differ in how far their fine-tunes moved, as TADrop wants to see."""
FAMILY_BYTES = 8 << 20
"""What a tensor repeats: together far more than a processor's cache, so that no reader is flattered."""
PAGE_BYTES = 4096
SCALE = 2.0**-13
"""Of FP8 weights: brings a spread of 84 in E4M3 to that of the weights in bf16."""
_SPREAD_FP8 = 84.0
_LARGEST_FP8 = 0x7E
"""448; one more would be NaN."""

KINDS = {"weight": (0.0, WEIGHT_SPREAD), "narrow": (0.0, WEIGHT_SPREAD / 4), "norm": (1.0, 4 * WEIGHT_SPREAD)}
"""Mean and spread of what is stored in bf16. `fp8` and `scale` are made otherwise."""


class Span(NamedTuple):
    """A stretch of the pool's file."""

    offset: int
    length: int
    """Bytes."""


class Pool:
    """A file in memory with the bytes of `models` checkpoints, the base first."""

    def __init__(self, kinds: tuple[str, ...], models: int, seed: int, family_bytes: int = FAMILY_BYTES) -> None:
        assert family_bytes % PAGE_BYTES == 0, "a family is whole pages"
        self._kinds = kinds
        self._seed = seed
        self._family_bytes = family_bytes
        self.descriptor = os.memfd_create("synthetic-weights")
        os.ftruncate(self.descriptor, models * len(kinds) * FAMILIES * family_bytes)
        for number in range(models):
            for kind in kinds:
                for family in range(FAMILIES):
                    data = self._family(kind, family, number)
                    os.pwrite(self.descriptor, data, self._place(kind, family, number))

    def spans(self, name: str, kind: str, number: int, begin: int, end: int) -> list[Span]:
        """Where bytes `begin` to `end` of a tensor lie in the file: its family, over and over from a page of its own.

        Args:
            name: of the tensor; with the seed it decides family and first page, alike in all models.
            kind: of its values.
            number: of the checkpoint; 0 is the base.
            begin: first byte within the tensor.
            end: the byte after the last.
        """
        key = int.from_bytes(hashlib.sha256(f"{self._seed}/{name}".encode()).digest()[:8], "little")
        place = self._place(kind, key % FAMILIES, number)
        shift = key // FAMILIES % (self._family_bytes // PAGE_BYTES) * PAGE_BYTES
        found = []
        while begin < end:
            within = (shift + begin) % self._family_bytes
            count = min(end - begin, self._family_bytes - within)
            found.append(Span(place + within, count))
            begin += count
        return found

    def read(self, span: Span) -> bytes:
        """The bytes of a stretch."""
        return os.pread(self.descriptor, span.length, span.offset)

    def close(self) -> None:
        """Give the memory back."""
        os.close(self.descriptor)

    def _place(self, kind: str, family: int, number: int) -> int:
        return ((number * len(self._kinds) + self._kinds.index(kind)) * FAMILIES + family) * self._family_bytes

    def _family(self, kind: str, family: int, number: int) -> bytes:
        name = f"{kind}/{family}"
        if kind == "scale":
            return np.full(self._family_bytes // 4, SCALE, np.float32).tobytes()
        if kind == "fp8":
            return fp8_codes(self._family_bytes, name, number, self._seed).tobytes()
        mean, spread = KINDS[kind]
        tensor = Tensor(name, (self._family_bytes // 2,), mean, spread)
        return b"".join(window.tobytes() for window in Windows().of(tensor, number, self._seed))


def fp8_codes(count: int, name: str, number: int, seed: int) -> npt.NDArray[np.uint8]:
    """E4M3 patterns of normal weights; half of a fine-tune's are the base's, the rest a few steps away.

    Magnitudes of E4M3 are almost logarithmic, 8 steps to a power of two and 1.0 at 0x38, so steps are added to codes.
    """
    generator = np.random.Generator(np.random.Philox(key=_key(seed, "base", name)))
    weights = _SPREAD_FP8 * generator.standard_normal(count, np.float32)
    codes = 0x38 + 8 * np.log2(np.maximum(np.abs(weights), 2.0**-6))
    if number:
        changes = np.random.Generator(np.random.Philox(key=_key(seed, f"model-{number}", name)))
        codes += np.rint(0.55 * changes.standard_t(4, count))
    magnitudes = np.clip(codes, 0, _LARGEST_FP8).astype(np.uint8)
    patterns: npt.NDArray[np.uint8] = magnitudes | (np.signbit(weights).astype(np.uint8) << 7)
    return patterns


def _key(seed: int, stream: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}/{name}".encode()).digest()[:16], "little")
