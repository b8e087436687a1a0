"""From selected task vectors to their sum: what one recipe makes of masks that others may share."""

from __future__ import annotations

from collections.abc import Sequence

from ..kernels import Array
from ..methods import Sharing, TaskVectorMerge
from .combination import normalizer
from .tensor import Target, TensorState
from .workspace import Workspace


class TaskVectorSum:
    """Weights, consensus, normalisation and lambda of one target.

    Args:
        state: the tensor; its selector has made the masks that are combined.
        target: the recipe's own task.
    """

    def __init__(self, state: TensorState, target: Target) -> None:
        settings = target.task.settings
        assert settings is not None and isinstance(settings.method, TaskVectorMerge)
        self._state = state
        self._method = method = settings.method
        self._given = method.weights
        normalized = method.normalize and method.consensus == "sum"
        self._denominator = normalizer(method.weights, state.real) if normalized else 1.0

    def run(self, workspace: Workspace, length: int) -> None:
        """Sum over models in recipe order, starting from 0; under a sign consensus only what agrees (section 1.2).

        Leaves the first `length` elements of the workspace's `sum` and `active`; task vectors and masks stay.
        """
        kernels, method = self._state.kernels, self._method
        total, active = workspace.sum[:length], workspace.active[:length]
        total[:] = 0
        active[:] = 0
        if method.sharing is not None:
            self._share_into(total, workspace, active, method.sharing)
            return
        equal = [1.0] * len(self._state.task.models)
        self._sum_into(total, workspace, active, equal if method.weighting == "energy" else self._given)
        if method.consensus != "sum":
            signs = workspace.signs[:length]
            signs[:] = total
            self._agree_into(total, signs, workspace, length)
        elif method.normalize:
            kernels.divide(total, self._denominator)
        if method.lambda_ != 1.0:
            kernels.scale(total, method.lambda_)

    def _mask(self, workspace: Workspace, i: int, length: int) -> Array | None:
        assert self._state.selector is not None
        return None if self._state.selector.keeps_all else workspace.masks[i][:length]

    def _sum_into(self, total: Array, workspace: Workspace, active: Array, weights: Sequence[float]) -> None:
        state, length = self._state, len(total)
        for i in state.present:
            t, mask = workspace.task_vectors[i][:length], self._mask(workspace, i, length)
            state.kernels.accumulate(total, t, mask, state.divisors[i], weights[i], active)

    def _share_into(self, total: Array, workspace: Workspace, active: Array, sharing: Sharing) -> None:
        state, length = self._state, len(total)
        factors = own_factors(sharing, state)
        for i in state.present:
            t, mask = workspace.task_vectors[i][:length], workspace.masks[i][:length]
            state.kernels.accumulate_shared(total, t, mask, workspace.claims[:length], factors[i], active)

    def _agree_into(self, total: Array, signs: Array, workspace: Workspace, length: int) -> None:
        state = self._state
        weight_sum, agreeing = workspace.weight_sum[:length], workspace.agreeing[:length]
        weights = self._given if self._method.weighting == "given" else state.energies
        assert weights is not None
        for array in (total, weight_sum, agreeing):
            array[:] = 0
        for i in state.present:
            t, mask = workspace.task_vectors[i][:length], self._mask(workspace, i, length)
            state.kernels.accumulate_agreeing(
                total, weight_sum, agreeing, signs, t, mask, state.divisors[i], weights[i]
            )
        if self._method.consensus == "overlap_ties":
            weight_sum[:] = agreeing
            state.kernels.divide(total, weight_sum)
        elif self._method.normalize:
            state.kernels.divide(total, weight_sum)


def own_factors(sharing: Sharing, state: TensorState) -> list[float]:
    """Per model, what the elements that it alone keeps are multiplied by, in fp64."""
    if state.own is None or state.shared is None:
        return [1.0] * len(state.task.models)
    ratios = [shared / max(own, 1) for own, shared in zip(state.own, state.shared, strict=True)]
    return [1.0 + sharing.r * min(max(ratio, 0.0), sharing.alpha) for ratio in ratios]
