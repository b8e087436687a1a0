"""How two windows of one tensor differ, element by element. Pure: arrays in, numbers out.

Two elements have the same value when they compare equal, so that -0.0 and 0.0 do, or when both are NaN. Two elements of
one dtype have the same bits when their bytes are equal. What has the same value and other bits is counted apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
TILE = 1 << 18
"""Elements that are compared at once; sums of tiles are added exactly, so that windows and threads do not matter."""
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True, slots=True)
class TileDifference:
    """How elements of two tensors differ."""

    elements: int
    differing: int = 0
    """Elements with other values."""
    other_bits: int = 0
    """Elements with the same value and other bits: zeros of both signs, several kinds of NaN."""
    nonfinite: int = 0
    """Of `differing`, those of which one is NaN or infinite; they take no part in what follows."""
    largest: float = 0.0
    """max |a - b|."""
    squares: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Sums of a * a, b * b, a * b and (a - b) * (a - b), in fp64."""


def differing_bits(first: Bytes, second: Bytes, unit_bytes: int) -> Any:
    """bool [n]: whether units of two equally long runs of bytes differ."""
    kind = _UNSIGNED[unit_bytes]
    return np.not_equal(first.view(kind), second.view(kind))


def compare_units(first: Bytes, second: Bytes, unit_bytes: int) -> TileDifference:
    """Elements that are no floats, by their bytes: integers, truth values, packed codes."""
    return TileDifference(len(first) // unit_bytes, int(np.count_nonzero(differing_bits(first, second, unit_bytes))))


def compare_floats(first: Floats, second: Floats, bits: Any = None) -> TileDifference:
    """Elements [n] of two float tensors, decoded.

    Args:
        first: a.
        second: b.
        bits: bool [n], whether their bytes differ; None: they have different dtypes, and only values count.
    """
    if bits is not None and not bits.any() and np.isfinite(first).all():
        square = _dot(first.astype(np.float64), first.astype(np.float64))
        return TileDifference(len(first), squares=(square, square, square, 0.0))
    unequal = (first != second) & ~(np.isnan(first) & np.isnan(second))
    finite = np.isfinite(first) & np.isfinite(second)
    a, b = (np.where(finite, values, 0).astype(np.float64) for values in (first, second))
    differing = int(np.count_nonzero(unequal))
    with np.errstate(over="ignore"):  # of F64: an infinite sum has no ratio, see `TensorDifference`
        change = a - b
        squares = (_dot(a, a), _dot(b, b), _dot(a, b), _dot(change, change))
    return TileDifference(
        elements=len(first),
        differing=differing,
        other_bits=0 if bits is None else int(np.count_nonzero(bits)) - differing,
        nonfinite=int(np.count_nonzero(unequal & ~finite)),
        largest=float(np.abs(change).max(initial=0.0)),
        squares=squares,
    )


def _dot(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Not numpy's dot, whose order of sums depends on where arrays lie in memory."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float((a * b).sum())


@dataclass
class TensorDifference:
    """How two tensors of one shape differ; tiles are added in any order."""

    elements: int = 0
    differing: int = 0
    other_bits: int = 0
    nonfinite: int = 0
    largest: float = 0.0
    _squares: list[tuple[float, float, float, float]] = field(default_factory=list)

    def add(self, tile: TileDifference) -> None:
        self.elements += tile.elements
        self.differing += tile.differing
        self.other_bits += tile.other_bits
        self.nonfinite += tile.nonfinite
        self.largest = max(self.largest, tile.largest)
        self._squares.append(tile.squares)

    @property
    def relative(self) -> float | None:
        """|a - b| / |a|, Euclidean, over what is finite in both; None where a is zero and b is not."""
        a, _, _, change = self._sums()
        return 0.0 if change == 0 else _ratio(math.sqrt(change), math.sqrt(a))

    @property
    def cosine(self) -> float | None:
        """Of the angle between a and b, over what is finite in both; None where one of them is zero."""
        a, b, both, change = self._sums()
        if change == 0 and a > 0:
            return 1.0
        ratio = _ratio(both, math.sqrt(a) * math.sqrt(b))
        return None if ratio is None else max(-1.0, min(1.0, ratio))

    @property
    def norms(self) -> tuple[float, float]:
        """Of a, and of a - b, over what is finite in both."""
        a, _, _, change = self._sums()
        return math.sqrt(a), math.sqrt(change)

    def _sums(self) -> list[float]:
        try:
            return [math.fsum(column) for column in zip(*self._squares, strict=True)] or [0.0] * 4
        except OverflowError:
            return [math.inf] * 4


def _ratio(number: float, whole: float) -> float | None:
    """None where it is none."""
    if whole == 0 or not math.isfinite(whole) or not math.isfinite(number):
        return None
    return number / whole
