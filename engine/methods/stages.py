"""What a merge method is made of: a selection, a rescale, a consensus, or coefficients. Declarations only, no loops."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

from .coefficients import Coefficients
from .demands import MethodDemands, SelectionDemands, Sight, SurveyKind
from .tadrop import Density, TadropDensity

# -- which elements of the task vectors are kept ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class All(SelectionDemands):
    """Every element of every task vector is kept."""


@dataclass(frozen=True, slots=True)
class _ByDensity(SelectionDemands):
    """A selection that keeps a share of each task vector."""

    densities: tuple[Density, ...]
    """Per model, the share that is kept; a TadropDensity with a target becomes a number after the survey."""


@dataclass(frozen=True, slots=True)
class Blocks(_ByDensity):
    """n:m sparsity over the flattened tensor, models claiming positions in recipe order (CABS, arXiv 2503.01874)."""

    m: int
    """Elements per block; n follows from each model's density."""
    drop_tail: bool = False
    """Prune the last partial block away entirely, as the published RoBERTa script does."""
    overlap_never: bool = False
    """Later models get free positions only, even when these run out."""

    orders_magnitudes: ClassVar[bool] = True
    counts_claims: ClassVar[bool] = True

    @property
    def block(self) -> int:
        return self.m


@dataclass(frozen=True, slots=True)
class Top(_ByDensity):
    """The int(density * N) largest magnitudes of a tensor."""

    orders_magnitudes: ClassVar[bool] = True

    @property
    def searches(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class TopInTurn(_ByDensity):
    """The same, but models choose in recipe order, least-claimed positions first (CA of CABS without BS)."""

    orders_magnitudes: ClassVar[bool] = True
    counts_claims: ClassVar[bool] = True

    @property
    def searches(self) -> int:
        return len(self.densities)


@dataclass(frozen=True, slots=True)
class Band(_ByDensity):
    """The int(density * N) magnitudes that come after the int(gamma * N) largest (Breadcrumbs, arXiv 2312.06795)."""

    gammas: tuple[float, ...]
    """Per model, the share of the largest magnitudes that is left out."""

    orders_magnitudes: ClassVar[bool] = True
    cuts: ClassVar[int] = 2

    @property
    def searches(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class ModelThreshold(_ByDensity):
    """Magnitudes at or above one threshold for the whole model (the published TIES code)."""

    orders_magnitudes: ClassVar[bool] = True
    spans_model: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Random(_ByDensity):
    """Each element with probability density, from a counter-based generator (DARE, arXiv 2311.03099)."""


@dataclass(frozen=True, slots=True)
class RankedRandom(_ByDensity):
    """Each element with a probability that grows with its magnitude's rank in its row (DELLA, arXiv 2406.11617).

    It goes from density - epsilon for the smallest to density + epsilon for the largest; a row is the last dimension.
    """

    epsilons: tuple[float, ...]
    """Per model, how far probabilities lie from the density at most."""

    orders_magnitudes: ClassVar[bool] = True
    ranks_rows: ClassVar[bool] = True
    sees: ClassVar[Sight] = "row"

    def problem(self, model: int) -> str:
        density, epsilon = self.densities[model], self.epsilons[model]
        # Densities that follow from the tensor are known later, and epsilon gives way to them; 0 and 1 leave nothing
        # to chance.
        if isinstance(density, TadropDensity) or density in (0.0, 1.0):
            return ""
        if density - epsilon > 0 and density + epsilon < 1:
            return ""
        return (
            f"density {density:g} +- epsilon {epsilon:g} must lie between 0 and 1, because these are the probabilities "
            "of its smallest and largest changes"
        )


@dataclass(frozen=True, slots=True)
class Variance(SelectionDemands):
    """One mask for all models: of the elements in which they differ, the share with the largest variance (SCE)."""

    share: float

    @property
    def searches(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class Beyond(SelectionDemands):
    """Magnitudes above a given one: every element that a model really changed (RAM, arXiv 2601.13572)."""

    epsilon: float

    counts_claims: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Agreement(SelectionDemands):
    """One mask for all models: elements that enough models claim as theirs (TALL masks, arXiv 2405.07813).

    Model i claims an element that it changes where |t_i| >= lambda_i * |sum of all t - t_i|.
    """

    lambdas: tuple[float, ...]
    """Per model; the larger, the fewer elements it claims."""
    consensus: int
    """Models that must claim an element."""

    counts_claims: ClassVar[bool] = True


Selection = (
    All | Blocks | Top | TopInTurn | Band | ModelThreshold | Random | RankedRandom | Variance | Beyond | Agreement
)
Selected_co = TypeVar("Selected_co", bound=Selection, covariant=True)

# -- what becomes of what is kept -------------------------------------------------------------------------------------

Rescale = Literal["none", "density", "l1", "l2"]
Consensus = Literal["sum", "ties", "overlap_ties"]
Weighting = Literal["given", "energy"]


@dataclass(frozen=True, slots=True)
class Sharing:
    """An element that several models keep gets the mean of their changes (RAM, arXiv 2601.13572)."""

    r: float = 0.0
    """How much a model's own elements, which no other keeps, are strengthened for those that it shares ..."""
    alpha: float = 0.0
    """... of which no more count than this many times its own: 1 + r * min(max(shared / own, 0), alpha) times."""


class _Selecting(MethodDemands):
    """A method that selects from task vectors, by densities where its selection has any."""

    __slots__ = ()

    selection: Any

    @property
    def densities(self) -> tuple[Density, ...]:
        return self.selection.densities if isinstance(self.selection, _ByDensity) else ()

    def with_densities(self, densities: Sequence[Density]) -> Self:
        made: Any = self
        made = replace(made, selection=replace(self.selection, densities=tuple(densities)))
        assert isinstance(made, type(self))
        return made

    @property
    def local_densities(self) -> dict[int, TadropDensity]:
        """By model, densities that follow from the tensor alone."""
        return {i: d for i, d in enumerate(self.densities) if isinstance(d, TadropDensity) and d.mean is None}

    @property
    def target_densities(self) -> dict[int, TadropDensity]:
        return {i: d for i, d in enumerate(self.densities) if isinstance(d, TadropDensity) and d.mean is not None}

    @property
    def survey(self) -> SurveyKind:
        if self.selection.spans_model:
            return "threshold"
        wanted = {density.statistic for density in self.target_densities.values()}
        return "quantiles" if "quantile" in wanted else "moments" if wanted else ""

    @property
    def searches(self) -> int:
        return int(self.selection.searches) + any(d.statistic == "quantile" for d in self.local_densities.values())

    @property
    def histograms(self) -> int:
        quantiles = any(isinstance(d, TadropDensity) and d.statistic == "quantile" for d in self.densities)
        return 2 if quantiles else int(self.selection.cuts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskVectorMerge(_Selecting, Generic[Selected_co]):
    """W0 + lambda * consensus(rescale(select(W_i - W0)))."""

    selection: Selected_co
    weights: tuple[float, ...] = ()
    """Per model; () where they follow from what the masks keep."""
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

    merges_task_vectors: ClassVar[bool] = True

    @property
    def counts_owners(self) -> bool:
        """Whether elements that one model alone keeps are counted before anything is merged."""
        return self.sharing is not None and self.sharing.r != 0

    @property
    def needs_weights(self) -> bool:
        """Whether the sum has weights of its own, not those that follow from what the masks keep."""
        return self.sharing is None and self.weighting == "given"

    @property
    def restores_norm(self) -> bool:
        """Whether norms are taken of the task vectors, and again of what is kept of them."""
        return self.rescale in ("l1", "l2")

    @property
    def looks(self) -> int:
        sums = self.restores_norm or any(d.statistic != "quantile" for d in self.local_densities.values())
        kept_sums = self.restores_norm + (self.weighting == "energy")
        return sums + kept_sums + self.counts_owners

    @property
    def sees(self) -> Sight:
        return self.selection.sees

    @property
    def block(self) -> int:
        return self.selection.block

    @property
    def ranks_rows(self) -> bool:
        return self.selection.ranks_rows

    def problem(self, model: int) -> str:
        return self.selection.problem(model)

    @property
    def keeps(self) -> Literal["nothing", "samples"]:
        return "samples" if self.looks or self.searches else "nothing"

    @property
    def selecting(self) -> Hashable:
        alike = replace(self, weights=(), consensus="sum", normalize=False, lambda_=1.0, sharing=None)
        return alike, self.counts_owners


# -- tensors themselves, with coefficients ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CombinationMerge(MethodDemands):
    """A sum of coefficients times tensors."""

    coefficients: Coefficients
    weights: tuple[float, ...] = ()
    """Per model; () where coefficients follow from the tensors alone."""
    of: Literal["models", "base", "differences"] = "models"
    """Of the models themselves; of the base and the models; or of the differences to the base, on top of it."""
    normalize: bool = False
    """Divide by the sum of the coefficients."""
    copies: bool = False
    """A single model with coefficient 1 is copied instead of merged."""
    vectors: Literal["tensor", "rows", "columns"] = "tensor"
    """What has coefficients of its own: the tensor, every row of the last dimension, every column of the first one."""

    def weights_of(self, models: Sequence[int]) -> list[float]:
        """The weights of some models; 1 where the method takes none."""
        return [self.weights[i] if self.weights else 1.0 for i in models]

    @property
    def reads_base(self) -> bool:
        return self.of != "models"

    @property
    def is_copy(self) -> bool:
        return self.copies and self.weights == (1.0,)

    @property
    def looks(self) -> int:
        return int(self.coefficients.needs_gram and self.vectors != "rows")

    @property
    def sees(self) -> Sight:
        sights: dict[str, Sight] = {"tensor": "element", "rows": "row", "columns": "column"}
        return sights[self.vectors]

    @property
    def selecting(self) -> Hashable:
        return self.of, self.coefficients.needs_gram, self.vectors


# -- methods of their own kind ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NearSwap(MethodDemands):
    """The base plus the change of one model, the smaller the more of it: min(1, t / |W_1 - W0|) times it."""

    t: float


@dataclass(frozen=True, slots=True)
class Fusion(MethodDemands):
    """The base plus those changes of one model whose importance stands out."""

    sees: ClassVar[Sight] = "row"
    histograms: ClassVar[int] = 3
    keeps: ClassVar[Literal["rows"]] = "rows"

    @property
    def searches(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class Elect(_Selecting):
    """One part of what EMR-Merging (arXiv 2405.17461) makes of a tensor; all parts look at it alike."""

    task: int | None = None
    """Whose mask is written, by position in the recipe; None: the unified task vector is."""
    selection: All | Top = All()
    """What is left of each task vector before the election."""

    merges_task_vectors: ClassVar[bool] = True
    block: ClassVar[int] = 8
    keeps: ClassVar[Literal["masks"]] = "masks"

    @property
    def looks(self) -> int:
        return int(any(density.statistic != "quantile" for density in self.local_densities.values()))

    @property
    def selecting(self) -> Hashable:
        """The same for all parts."""
        return "elect", self.selection


Method = TaskVectorMerge[Selection] | CombinationMerge | NearSwap | Fusion | Elect
