"""What a merge method is made of: a selection, a rescale, a consensus, or coefficients. Declarations only, no loops."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from .coefficients import Coefficients


@dataclass(frozen=True, slots=True)
class All:
    """Every element of every task vector is kept."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """n:m sparsity over the flattened tensor, models claiming positions in recipe order (CABS, arXiv 2503.01874)."""

    m: int
    """Elements per block; n follows from each model's density."""
    drop_tail: bool = False
    """Prune the last partial block away entirely, as the published RoBERTa script does."""
    overlap_never: bool = False
    """Later models get free positions only, even when these run out."""


@dataclass(frozen=True, slots=True)
class Top:
    """The int(density * N) largest magnitudes of a tensor."""

    sequential: bool = False
    """Models choose in recipe order, least-claimed positions first (CA of CABS without BS)."""


@dataclass(frozen=True, slots=True)
class Band:
    """The int(density * N) magnitudes that come after the int(gamma * N) largest (Breadcrumbs, arXiv 2312.06795)."""


@dataclass(frozen=True, slots=True)
class ModelThreshold:
    """Magnitudes at or above one threshold for the whole model (the published TIES code)."""


@dataclass(frozen=True, slots=True)
class Random:
    """Each element with probability density, from a counter-based generator (DARE, arXiv 2311.03099)."""


@dataclass(frozen=True, slots=True)
class RankedRandom:
    """Each element with a probability that grows with its magnitude's rank in its row (DELLA, arXiv 2406.11617).

    It goes from density - epsilon for the smallest to density + epsilon for the largest; a row is the last dimension.
    """


@dataclass(frozen=True, slots=True)
class Variance:
    """One mask for all models: of the elements in which they differ, the share with the largest variance (SCE)."""

    share: float


@dataclass(frozen=True, slots=True)
class Beyond:
    """Magnitudes above a given one: every element that a model really changed (RAM, arXiv 2601.13572)."""

    epsilon: float


@dataclass(frozen=True, slots=True)
class Sharing:
    """An element that several models keep gets the mean of their changes (RAM, arXiv 2601.13572)."""

    r: float = 0.0
    """How much a model's own elements, which no other keeps, are strengthened for those that it shares ..."""
    alpha: float = 0.0
    """... of which no more count than this many times its own: 1 + r * min(max(shared / own, 0), alpha) times."""


Selection = All | Blocks | Top | Band | ModelThreshold | Random | RankedRandom | Variance | Beyond
Rescale = Literal["none", "density", "l1", "l2"]
Consensus = Literal["sum", "ties", "overlap_ties"]
Weighting = Literal["given", "energy"]


@dataclass(frozen=True, slots=True)
class TaskVectorMerge:
    """W0 + lambda * consensus(rescale(select(W_i - W0)))."""

    selection: Selection
    rescale: Rescale = "none"
    """What kept values are divided by: nothing, the density, or the share of the norm that was kept.

    Where probabilities differ between elements, each is divided by its own instead of the density.
    """
    consensus: Consensus = "sum"
    """`ties`: values that agree with the sign of the weighted sum. `overlap_ties`: their mean, where masks overlap."""
    normalize: bool = False
    """Divide by the sum of weights (of the agreeing weights under `ties`)."""
    lambda_: float = 1.0
    weighting: Weighting = "given"
    """`energy`: the share of each model in the mean squares of what all keep; signs are elected without weights."""
    sharing: Sharing | None = None
    """In place of weights and consensus: what models that keep the same element make of it."""

    reads_base: ClassVar[bool] = True

    @property
    def counts_owners(self) -> bool:
        """Whether elements that one model alone keeps are counted before anything is merged."""
        return self.sharing is not None and self.sharing.r != 0

    @property
    def selecting(self) -> Hashable:
        """What decides masks and statistics, the same for recipes that differ only in how they combine."""
        return replace(self, consensus="sum", normalize=False, lambda_=1.0, sharing=None), self.counts_owners


@dataclass(frozen=True, slots=True)
class CombinationMerge:
    """A sum of coefficients times tensors."""

    coefficients: Coefficients
    of: Literal["models", "base", "differences"] = "models"
    """Of the models themselves; of the base and the models; or of the differences to the base, on top of it."""
    normalize: bool = False
    """Divide by the sum of the coefficients."""
    copies: bool = False
    """A single model with coefficient 1 is copied instead of merged."""
    vectors: Literal["tensor", "rows", "columns"] = "tensor"
    """What has coefficients of its own: the tensor, every row of the last dimension, every column of the first one."""

    @property
    def reads_base(self) -> bool:
        """Whether the base's own values take part."""
        return self.of != "models"

    @property
    def selecting(self) -> Hashable:
        """What decides which tensors are added up and whether they are looked at first."""
        return self.of, self.coefficients.needs_gram, self.vectors


@dataclass(frozen=True, slots=True)
class NearSwap:
    """The base plus the change of one model, the smaller the more of it: min(1, t / |W_1 - W0|) times it."""

    t: float

    reads_base: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Fusion:
    """The base plus those changes of one model whose importance stands out."""

    reads_base: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Elect:
    """One part of what EMR-Merging (arXiv 2405.17461) makes of a tensor; all parts look at it alike."""

    task: int | None = None
    """Whose mask is written, by position in the recipe; None: the unified task vector is."""

    reads_base: ClassVar[bool] = True

    @property
    def selecting(self) -> Hashable:
        """The same for all parts."""
        return "elect"


Method = TaskVectorMerge | CombinationMerge | NearSwap | Fusion | Elect
