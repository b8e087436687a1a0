"""Nearswap: swaps in what lies near the base."""

from __future__ import annotations

from ..methods import NearSwap
from ..plan import TensorRow, tiles
from .family import TensorFold, merged_row
from .inputs import WindowData
from .passes import CountingPass
from .rounding import write_merged
from .tally import Target, WindowTally
from .tensor import TensorState
from .workspace import Workspace


class NearSwapFold(TensorFold):
    """One look; one model, which gives every element."""

    def __init__(self, state: TensorState, method: NearSwap) -> None:
        super().__init__(state, [NearSwapPass(state, method)])

    def row(self, target: Target) -> TensorRow:
        return merged_row(self.state, target, [self.state.task.numel], {})


class NearSwapPass(CountingPass):
    """The base plus the model's change, shortened where it is longer than t."""

    def __init__(self, state: TensorState, method: NearSwap) -> None:
        super().__init__(state)
        self._t = method.t

    def _look(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        state = self._state
        for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
            length = end - begin
            state.inputs.load(data, workspace, begin, end, tally.nonfinite)
            total, active = workspace.sum[:length], workspace.active[:length]
            change = workspace.task_vectors[0][:length]
            total[:] = 0
            active[:] = 0
            state.kernels.shorten(change, self._t)
            state.kernels.accumulate(total, change, None, 1.0, 1.0, active)
            tally.overflowed[0] += write_merged(state, data, workspace, begin, end)
