"""The pass that swaps in what lies near the base."""

from __future__ import annotations

from ..methods import NearSwap
from ..plan import tiles
from .passes import WindowData, add_into
from .rounding import check_overflow, write_merged
from .tensor import TensorState
from .workspace import Workspace


class NearSwapPass:
    """The base plus the model's change, shortened where it is longer than t; one model."""

    def __init__(self, state: TensorState, method: NearSwap) -> None:
        self._state = state
        self._t = method.t
        self._nonfinite = [0] * (len(state.task.models) + 1)

    def run(self, data: WindowData, workspace: Workspace) -> None:
        state, nonfinite, overflowed = self._state, [0] * len(self._nonfinite), 0
        for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
            length = end - begin
            state.load(data, workspace, begin, end, nonfinite)
            total, active, change = (
                workspace.sum[:length],
                workspace.active[:length],
                workspace.task_vectors[0][:length],
            )
            total[:] = 0
            active[:] = 0
            state.kernels.shorten(change, self._t)
            state.kernels.accumulate(total, change, None, 1.0, 1.0, active)
            overflowed += write_merged(state, data, workspace, begin, end)
        with state.lock:
            add_into(self._nonfinite, nonfinite)
            state.targets[0].overflowed += overflowed

    def finish(self) -> None:
        self._state.settle_nonfinite(self._nonfinite)
        check_overflow(self._state)
