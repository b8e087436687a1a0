"""One tensor that is copied from the reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..plan import TensorRow, tiles
from .family import TensorFold
from .inputs import WindowData
from .passes import CountingPass
from .rounding import write_merged
from .tally import Target, WindowTally, add_into
from .tensor import TensorState
from .workspace import Workspace


class CopyFold(TensorFold):
    """One look, for a tensor that no method merges."""

    def __init__(self, state: TensorState) -> None:
        super().__init__(state, [CopyPass(state)])

    def row(self, target: Target) -> TensorRow:
        task = self.state.task
        return TensorRow(
            name=task.name,
            action="copied",
            reason=task.reason,
            nonfinite=sum(self.state.tally.nonfinite),
            overflowed=target.overflowed,
        )


class CopyPass(CountingPass):
    """The reference's own values: the same bytes, or rounded once to another float dtype.

    Integer, bool and packed tensors that are not excluded must be identical in every model. What is computed while
    it is read must be finite, as in a merge: its scales may come from anywhere.
    """

    def __init__(self, state: TensorState) -> None:
        super().__init__(state)
        self._differing = [0] * len(state.task.models)
        self._computed_nonfinite = 0

    def _look(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        state, task = self._state, self._state.task
        base = data.raws[0]
        if base is None:  # a tensor without elements, or one that is left out
            return
        if task.base.derived is not None:
            self._count_nonfinite(data, workspace)
        if task.stored != "nothing":
            if task.out_dtype == task.base.info.dtype:
                data.outs[0][:] = base
            else:
                self._convert(data, workspace, tally)
        for i, raw in enumerate(data.raws[1:]):
            if raw is not None and not np.array_equal(raw, base):
                with state.lock:
                    self._differing[i] += int(np.count_nonzero(raw != base))

    def _count_nonfinite(self, data: WindowData, workspace: Workspace) -> None:
        state, count = self._state, 0
        for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
            raw = state.inputs.bytes_of(data, 0, begin, end - begin)
            count += state.kernels.decode(raw, state.inputs.dtype(0), workspace.base[: end - begin])
        with state.lock:
            self._computed_nonfinite += count

    def _convert(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        """What no model touches: NaN and infinities stay, but a finite value must not become one."""
        state = self._state
        for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
            length = end - begin
            raw = state.inputs.bytes_of(data, 0, begin, length)
            state.kernels.decode(raw, state.inputs.dtype(0), workspace.base[:length])
            workspace.sum[:length] = 0
            workspace.active[:length] = 0
            tally.overflowed[0] += write_merged(state, data, workspace, begin, end)

    def _own_share(self, begin: int, end: int) -> Sequence[NDArray[np.int64]]:  # noqa: ARG002
        return [np.array(self._differing, np.int64)]

    def _take_own(self, numbers: Sequence[NDArray[np.int64]]) -> None:
        add_into(self._differing, numbers[0].tolist())

    def _conclude(self) -> None:
        state, count = self._state, self._computed_nonfinite
        state.tally.nonfinite[0] = count
        if count and not state.keeps_nonfinite:
            raise InputError(
                f"{state.inputs.name(0)} holds {count} NaN or Inf values as it is computed",
                "repair what it is made of: the checkpoint, its scales, or the scale of its adapter or masks",
            )
        for i, count in enumerate(self._differing):
            if count:
                raise InputError(
                    f"{self._state.inputs.name(i + 1)} differs from the base in {count} bytes and is "
                    f"{self._state.inputs.dtype(0)}",
                    "integer tensors cannot be merged: list the tensor under `exclude` to copy the base's",
                )
