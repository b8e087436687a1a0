"""One tensor: windows of the inputs -> windows of the output, in passes that the family of its method makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..methods import CombinationMerge, Elect, Fusion, Method, NearSwap, TaskVectorMerge
from .arcee_fusion import FusionFold
from .combination import CombinationFold
from .copying import CopyFold
from .emr import ElectFold
from .family import TensorFold
from .nearswap import NearSwapFold
from .task_vectors import TaskVectorFold
from .tensor import TensorState

FAMILIES: dict[type[Method], Callable[[TensorState, Any], TensorFold]] = {
    TaskVectorMerge: TaskVectorFold,
    CombinationMerge: CombinationFold,
    NearSwap: NearSwapFold,
    Fusion: FusionFold,
    Elect: ElectFold,
}
"""By the type of a method, what folds a tensor with it: called with the state and a method of this type."""


def fold_of_tensor(state: TensorState) -> TensorFold:
    """What merges or copies a tensor."""
    method = state.task.method
    return CopyFold(state) if method is None else FAMILIES[type(method)](state, method)
