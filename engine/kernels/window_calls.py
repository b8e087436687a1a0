"""What kernels that take whole windows are given and give back: one call for a window instead of several per tile.

Each says what `Kernels` does tile by tile, in the same order, so that the results are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Selected: TypeAlias = Literal["all", "blocks", "cut", "band", "variance", "random"]
"""Ways to select in `Kernels.fold_window`."""

OF_VARIANCE = -1
"""In place of a model: the variance over all of them."""
NEAR_ABOVE, NEAR_HIGH, NEAR_LOW, NEAR_ZERO, NEAR_COUNTS = range(5)
"""What `Kernels.count_near` counts: keys above, at the high end and at the low end of a bracket, and zeros."""


@dataclass(frozen=True, slots=True)
class WindowInputs:
    """The same elements of the base and of every model that has the tensor."""

    raws: Sequence[npt.NDArray[np.uint8]]
    dtypes: Sequence[str]


@dataclass(frozen=True, slots=True)
class WindowLook:
    """Histograms of a window's task vectors, for `Kernels.observe_window`; the numbers are those of `histogram`."""

    inputs: WindowInputs
    models: Sequence[int]
    """Per histogram, which of the models."""
    prefixes: Sequence[int]
    """Per histogram."""
    shift: int
    bits: int
    zeros: bool
    """Whether elements that are 0 are counted, too."""


@dataclass(frozen=True, slots=True)
class LookCounts:
    """What `Kernels.observe_window` counted, in i64."""

    nonfinite: npt.NDArray[np.int64]
    """[1 + models], of the base first."""
    histograms: npt.NDArray[np.int64]
    """[histograms, 2^bits]"""
    zeros: npt.NDArray[np.int64]
    """[histograms]"""


@dataclass(frozen=True, slots=True)
class WindowNear:
    """Keys of a window's task vectors near some brackets, for `Kernels.near_window`; as `count_near` counts them."""

    inputs: WindowInputs
    near: Sequence[tuple[int, int, int]]
    """Which of the models, or OF_VARIANCE for the variance over them; low and high."""
    room: int
    """How many keys inside a bracket are wanted."""


@dataclass(frozen=True, slots=True)
class NearCounts:
    """What `Kernels.near_window` counted."""

    nonfinite: npt.NDArray[np.int64]
    """[1 + models], of the base first."""
    counts: npt.NDArray[np.int64]
    """[brackets, NEAR_COUNTS]"""
    inside: npt.NDArray[np.int32]
    """[brackets, room]: keys strictly inside ..."""
    numbers: npt.NDArray[np.int64]
    """[brackets]: ... and how many there are, which may be more than there is room."""

    @classmethod
    def empty(cls, models: int, brackets: int, room: int) -> NearCounts:
        """Of no element."""
        return cls(
            np.zeros(1 + models, np.int64),
            np.zeros((brackets, NEAR_COUNTS), np.int64),
            np.empty((brackets, room), np.int32),
            np.zeros(brackets, np.int64),
        )


@dataclass(frozen=True, slots=True)
class WindowSum:
    """What one output makes of the task vectors that a window's masks keep; lists of models as in `WindowFold`."""

    out: npt.NDArray[np.uint8]
    """Bytes of the window's elements."""
    out_dtype: str
    saturate: bool
    consensus: Literal["sum", "ties", "overlap_ties"]
    weights: Sequence[float]
    voting: Sequence[float]
    """Weights in the sum whose sign is elected, or that is all there is."""
    normalize: bool
    denominator: float
    """What the sum is divided by where there is no consensus."""
    factor: float


@dataclass(frozen=True, slots=True)
class WindowFold:
    """A window of one tensor on its way from the inputs' bytes to the outputs', for `Kernels.fold_window`.

    Lists of models hold those that have the tensor. Selections are the kernels of the same names: "blocks" is
    `mask_blocks`, "cut" is `mask_top` without claims, "band" what lies above the first of two cuts and not above the
    second, "variance" a cut through the variance over the models, "random" is `mask_random`, "all" has no masks.
    """

    first: int
    """Flat index of the first element."""
    inputs: WindowInputs
    moments: bool
    """Whether sums over task vectors are wanted; `first` is then a multiple of ROW."""
    selection: Selected
    rules: Sequence[tuple[float, ...]]
    """Per model. blocks: n, m, overlap_never, drop_tail. cut: level, key, keep_equal, equal_before; band: two cuts;
    variance: a cut, of which the first model's counts. random: key0, key1, probability. all: nothing."""
    divisors: Sequence[float]
    sums: Sequence[WindowSum]
    """Per output; all are made of the same masks."""
    kept: bool = False
    """Whether the sums over task vectors are over what masks keep of them; nothing is written then."""


@dataclass(frozen=True, slots=True)
class WindowCounts:
    """What `Kernels.fold_window` counted; lists of models as in `WindowFold`."""

    nonfinite: npt.NDArray[np.int64]
    """[1 + models], of the base first."""
    kept: npt.NDArray[np.int64]
    """[models]"""
    shared: npt.NDArray[np.int64]
    """[models, models]: positions that masks i and j both kept, for i < j."""
    rows: npt.NDArray[np.float64]
    """[models, rows, 3], as `moments` gives them; no rows where they are not wanted."""
    overflowed: npt.NDArray[np.int64]
    """[outputs]"""
