"""One tensor being merged: its windows, and what its passes share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..kernels import LEVELS_32, LEVELS_64, ROW, Kernels
from ..methods import Method, ModelThreshold
from ..plan import Plan, TensorTask, cut_windows, grain, tile_elements
from .edges import KEEP_ALL_EQUAL, Cut, Edge
from .inputs import TensorInputs
from .masks import Masks
from .tally import Tally, Target
from .workspace import Real

M = TypeVar("M", bound=Method)


class TensorState:
    """What the passes over one tensor share.

    Windows only add integers or write to places of their own, so nothing here depends on the order of windows.

    Args:
        task: the tensor with its sources and method; densities that a survey decides are already numbers.
        plan: seed and treatment of values that cannot be merged.
        kernels: where the arithmetic runs.
        elements: of one window.
        targets: what the last pass writes; empty for a survey.
    """

    def __init__(
        self, task: TensorTask, plan: Plan, kernels: Kernels, elements: int, targets: Sequence[Target] = ()
    ) -> None:
        self.task = task
        self.targets = targets
        self.kernels = kernels
        self.keeps_nonfinite = plan.terms.keep_base_where_nonfinite
        """Whether the base stays where a value is NaN or Inf."""
        self.real: Real = "f64" if task.is_double else "f32"
        self.levels = LEVELS_64 if task.is_double else LEVELS_32
        self.windows = cut_windows(task.numel, elements, grain(task))
        self.tile = tile_elements(grain(task))
        self.inputs = TensorInputs(task, plan, kernels, self.real)
        self.present = self.inputs.present
        """The models that have the tensor."""
        self.masks = Masks(task, plan.terms.seed, kernels, self.real, len(self.windows))
        models = len(task.models)
        self.tally = Tally(self.present, targets, [0] * self.inputs.count, [0] * models)
        self.moments: list[NDArray[np.float64] | None] = [None] * models
        """Per model: f64 [2 or 3] = sum |t|, sum t^2 and, for densities, sum t^4; None until a pass took them."""
        self.kept_squares: list[float | None] = [None] * models
        """Per model, the sum of t^2 over what its mask keeps; None until a pass took it, and where none does."""
        self.divisors = [1.0] * models
        self.energies = [1.0] * models
        """Per model, the share of what its mask keeps in the sum of squares, once a pass took them."""
        self.owners: list[tuple[int, int]] | None = None
        """Per model, elements that its mask alone keeps, and those that other masks keep too; None: not counted."""
        self.lock = threading.Lock()

    @property
    def stat_tile(self) -> int:
        """Tile size of loops that take statistics: rows stay whole."""
        return self.tile if self.tile % ROW == 0 else tile_elements(1)

    def abandon(self) -> None:
        """Wake every thread that waits for another window of this tensor, because the run is being stopped."""
        self.masks.abandon()


def method_of(target: Target, kind: type[M]) -> M:
    """A target's method, which is of the kind that its family merges."""
    method = target.task.method
    assert isinstance(method, kind), "targets of one state are of one family"
    return method


def set_thresholds(state: TensorState, thresholds: Sequence[int] | None) -> None:
    """Give a tensor thresholds of whole models; zeros are never kept, since keeping them changes nothing.

    Args:
        state: the tensor.
        thresholds: per model of the plan, the smallest key that is kept; None where no survey decided any.
    """
    if thresholds is not None and isinstance(state.masks.selection, ModelThreshold):
        keys = [thresholds[state.task.model_of(i)] for i in range(len(state.task.models))]
        state.masks.edges = [[Edge(Cut(0, key, KEEP_ALL_EQUAL if key else 0)) if key >= 0 else None] for key in keys]
