"""What a family of methods has to offer for one tensor: passes, and the row of a receipt."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from ..plan import ModelRow, TensorRow
from .passes import Pass
from .tally import Target
from .tensor import TensorState


class TensorFold(ABC):
    """The passes that merge or copy one tensor, and the rows that report it.

    Attributes:
        state: the tensor, made for these passes alone.
        passes: run one after the other; the last one writes the state's targets.
    """

    def __init__(self, state: TensorState, passes: Sequence[Pass]) -> None:
        self.state = state
        self.passes = passes

    @abstractmethod
    def row(self, target: Target) -> TensorRow:
        """What a recipe's receipt says of this tensor; valid after the last pass."""


def merged_row(
    state: TensorState,
    target: Target,
    kept: Sequence[int],
    overlaps: Mapping[tuple[int, int], int],
    claims: tuple[int, ...] = (),
) -> TensorRow:
    """The row of a tensor that was merged from what its models keep: a number per model, and per pair of models.

    `claims` are as `TensorRow` has them.
    """
    models: list[ModelRow | None] = [None] * len(state.task.models)
    for i in state.present:
        moments, squares = state.moments[i], state.kept_squares[i]
        l2 = None if moments is None else _writable(math.sqrt(float(moments[1])))
        models[i] = ModelRow(
            density=state.masks.densities[i],
            kept=kept[i],
            l1=None if moments is None else _writable(float(moments[0])),
            l2=l2,
            kept_l2=_kept_norm(l2, squares),
        )
    return TensorRow(
        name=state.task.name,
        action="merged",
        models=tuple(models),
        overlaps=tuple((a, b, count) for (a, b), count in sorted(overlaps.items())),
        nonfinite=sum(state.tally.nonfinite),
        overflowed=target.overflowed,
        claims=claims,
    )


SMALLEST_NORM = 1e-10
"""Squares of fp32 numbers lose nothing that counts in a sum of which this is the root."""


def _kept_norm(l2: float | None, squares: float | None) -> float | None:
    """The root of what masks keep; None where it is not known well. What is added less precisely exceeds no whole."""
    if l2 is None or squares is None or 0 < l2 < SMALLEST_NORM or not math.isfinite(squares):
        return None
    return min(math.sqrt(squares), l2)


def _writable(value: float) -> float | None:
    """A number that JSON knows: squares of fp64 task vectors may lie beyond fp64."""
    return value if math.isfinite(value) else None
