"""What is done with a window: the values that say it, and what comes of it.

Two executors work from them: tile by tile with the operations of `Kernels` (`fold/tile_work.py`, for any tensor), or
with one call of `Kernels` for the whole window. The results are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

OF_VARIANCE = -1
"""In place of a model: the variance over all of them."""
NEAR_ABOVE, NEAR_HIGH, NEAR_LOW, NEAR_ZERO, NEAR_COUNTS = range(5)
"""What `Kernels.count_near` counts: keys above, at the high end and at the low end of a bracket, and zeros."""


@dataclass(frozen=True, slots=True)
class WindowInputs:
    """The same elements of the base and of every model that has the tensor."""

    first: int
    """Flat index of the first element."""
    raws: Sequence[npt.NDArray[np.uint8]]
    dtypes: Sequence[str]


@dataclass(frozen=True, slots=True)
class WindowLook:
    """Histograms of a window's task vectors, for `Kernels.observe_window`; the numbers are those of `histogram`."""

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
    """[histograms]; not counted where they are not wanted."""


@dataclass(frozen=True, slots=True)
class WindowNear:
    """Keys of a window's task vectors near some brackets, for `Kernels.near_window`; as `count_near` counts them."""

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
    """[brackets, room]: keys strictly inside; only as many as `numbers` says are written."""
    numbers: npt.NDArray[np.int64]
    """[brackets]: how many keys lie strictly inside, which may be more than there is room for."""

    @classmethod
    def empty(cls, models: int, brackets: int, room: int) -> NearCounts:
        """Of no element."""
        return cls(
            np.zeros(1 + models, np.int64),
            np.zeros((brackets, NEAR_COUNTS), np.int64),
            np.empty((brackets, room), np.int32),
            np.zeros(brackets, np.int64),
        )


class KeepAll(NamedTuple):
    """Every element is kept; there is no mask."""


class BlockRule(NamedTuple):
    """n of each block of m elements, as `Kernels.mask_blocks` chooses them."""

    n: int
    m: int
    overlap_never: bool
    drop_tail: bool


class CutRule(NamedTuple):
    """What lies above a cut, as `Kernels.mask_top` keeps it."""

    level: int
    key: int
    keep_equal: int
    equal_before: int
    """Elements equal to the key in all windows before this one."""


class BandRule(NamedTuple):
    """What lies above one cut and not above another."""

    lower: CutRule
    upper: CutRule


class RandomRule(NamedTuple):
    """Random elements, as `Kernels.mask_random` draws them."""

    key0: int
    key1: int
    probability: float


class RankedRule(NamedTuple):
    """Random elements, larger ones with better chances, as `Kernels.mask_ranked` draws them."""

    key0: int
    key1: int
    low: float
    span: float
    row: int
    """Elements of one row of the tensor."""
    divides: bool
    """Whether kept elements are divided by their probability."""


class AgreementRule(NamedTuple):
    """Elements that enough models claim as theirs: |t_i| >= factor_i * |sum of all t - t_i|; one mask for all."""

    factors: tuple[float, ...]
    """Per model."""
    agreeing: int
    """Models that must claim an element."""


Rule: TypeAlias = KeepAll | BlockRule | CutRule | BandRule | RandomRule | RankedRule | AgreementRule


@dataclass(frozen=True, slots=True)
class MaskRules:
    """How the masks of a window are made."""

    rules: Sequence[Rule]
    """Per model that has a mask, in the order in which they choose; all of one type."""
    claims: Literal["ignored", "counted", "decide"] = "ignored"
    """Whether it is counted for cuts how many models keep an element, and whether a cut goes by what others keep."""
    of_variance: bool = False
    """Whether the one mask of all is made from the variance over the models."""
    scored: bool = False
    """Whether magnitudes are multiplied by factors of their columns before they are compared."""

    @property
    def one_for_all(self) -> bool:
        """Whether all models have one mask, made by the rule of the first."""
        return self.of_variance or any(isinstance(rule, AgreementRule) for rule in self.rules)

    @property
    def keeps_all(self) -> bool:
        """Whether there are no masks."""
        return all(isinstance(rule, KeepAll) for rule in self.rules)


@dataclass(frozen=True, slots=True)
class WindowSum:
    """What one output makes of the task vectors that a window's masks keep; lists of models as in `WindowFold`."""

    out_dtype: str
    saturate: bool
    consensus: Literal["sum", "ties", "overlap_ties", "shared"]
    """`shared` is `Kernels.accumulate_shared` with the weights, and nothing else."""
    weights: Sequence[float]
    voting: Sequence[float]
    """Weights in the sum whose sign is elected, or that is all there is."""
    normalize: bool = False
    denominator: float = 1.0
    """What a normalized sum is divided by where there is no consensus."""
    factor: float = 1.0
    """What the result is multiplied by."""


@dataclass(frozen=True, slots=True)
class WindowFold:
    """What becomes of a window of a tensor that is merged by task vectors: masks, sums of rows, outputs.

    Lists of models hold those that have the tensor.
    """

    masks: MaskRules
    moments: Literal["none", "changes", "kept"]
    """Of what sums of rows are taken: of nothing, of task vectors, or of what masks keep of them. For the last, masks
    are not counted and there are no outputs."""
    divisors: Sequence[float]
    """Per model, what kept values are divided by."""
    sums: Sequence[WindowSum]
    """Per output; all are made of the same masks."""
    kept_squares: bool = False
    """Whether sums of squares of what masks keep are taken, besides `moments`."""

    @property
    def counts_claims(self) -> bool:
        """Whether it is counted how many masks have an element: u8 holds the number, and masks differ."""
        return self.moments != "kept" and not self.masks.keeps_all and 3 <= len(self.divisors) < 256


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
    """[models, rows, 2], as `moments` gives them; no rows where they are not wanted."""
    overflowed: npt.NDArray[np.int64]
    """[outputs]"""
    kept_rows: npt.NDArray[np.float64]
    """[models, rows]: sums of squares of what masks keep, folded like `rows`; no rows where they are not wanted."""
    claimed: npt.NDArray[np.int64]
    """[1 + models]: positions that so many masks have, for 3 and more; empty where that is not counted."""
