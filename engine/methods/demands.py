"""What stages must see of a tensor before they can merge it: neutral answers, which a stage replaces by its own.

The plan adds them up to passes, windows and bytes; nothing else asks a stage what kind it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar, Literal, Self

from .tadrop import Density, TadropDensity

Sight = Literal["element", "row", "column"]
"""What must be whole in memory: an element, a row of the last dimension, or a column of the first one."""
SurveyKind = Literal["", "moments", "quantiles", "threshold"]
"""Statistics of whole models: none, sums over task vectors, order statistics too, or one cut through a whole model."""


class SelectionDemands:
    """What a selection must see, and what it counts."""

    __slots__ = ()

    orders_magnitudes: ClassVar[bool] = False
    """Masks follow an order of magnitudes, in which activations may take part."""
    counts_claims: ClassVar[bool] = False
    """A byte counts how many models keep each element, so that there are 255 at most."""
    spans_model: ClassVar[bool] = False
    """One cut of the whole model decides, from a survey: F32 magnitudes, a plain number as density."""
    ranks_rows: ClassVar[bool] = False
    """The elements of a row are sorted."""
    sees: ClassVar[Sight] = "element"
    """What must be seen whole."""
    cuts: ClassVar[int] = 1
    """Order statistics of one model that one search looks for."""

    @property
    def block(self) -> int:
        """Elements that must be seen together, counted from the tensor's first."""
        return 1

    @property
    def searches(self) -> int:
        """Searches for exact order statistics of the tensor that wait for each other."""
        return 0

    def problem(self, model: int) -> str:  # noqa: ARG002 (of those that have values per model)
        """What is wrong with the values of one model for a tensor, in words; "" where nothing is."""
        return ""


class MethodDemands:
    """What a method must see of a tensor, and what is held of it between passes."""

    __slots__ = ()

    @property
    def reads_base(self) -> bool:
        """Whether the base's own values take part."""
        return True

    @property
    def merges_task_vectors(self) -> bool:
        """Whether differences to the base are selected or elected element by element."""
        return False

    @property
    def is_copy(self) -> bool:
        """Whether the result is one model's own bytes."""
        return False

    @property
    def densities(self) -> tuple[Density, ...]:
        """Per model, the share that is kept; () where no share decides."""
        return ()

    def with_densities(self, densities: Sequence[Density]) -> Self:  # noqa: ARG002 (of those that have some)
        """The same method with other densities, as a survey decides them."""
        return self

    @property
    def target_densities(self) -> dict[int, TadropDensity]:
        """By model, densities whose mean over the whole model is given."""
        return {}

    @property
    def survey(self) -> SurveyKind:
        """Which statistics of whole models it waits for."""
        return ""

    @property
    def looks(self) -> int:
        """Passes that take sums before the result can be written."""
        return 0

    @property
    def searches(self) -> int:
        """Searches for exact order statistics of the tensor that wait for each other."""
        return 0

    @property
    def histograms(self) -> int:
        """Order statistics of one model that are searched for in the same reading."""
        return 1

    @property
    def sees(self) -> Sight:
        """What must be seen whole."""
        return "element"

    @property
    def block(self) -> int:
        """Elements that must be seen together, counted from the tensor's first."""
        return 1

    @property
    def ranks_rows(self) -> bool:
        """Whether the elements of a row are sorted."""
        return False

    @property
    def keeps(self) -> Literal["nothing", "samples", "rows", "masks"]:
        """What is held of a tensor between passes: magnitudes near cuts, a number per row, sums of what masks keep."""
        return "nothing"

    def problem(self, model: int) -> str:  # noqa: ARG002 (of those that have values per model)
        """What is wrong with the values of one model for a tensor, in words; "" where nothing is."""
        return ""

    @property
    def selecting(self) -> Hashable:
        """What decides masks and statistics, equal for recipes that differ only in how they combine; None: nothing."""
        return None
