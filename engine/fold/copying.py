"""One tensor that is copied from the reference."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from ..plan import tiles
from .passes import WindowData
from .rounding import check_overflow, write_merged
from .tensor import TensorState
from .workspace import Workspace


class CopyPass:
    """The reference's own values: the same bytes, or rounded once to another float dtype.

    Integer, bool and packed tensors that are not excluded must be identical in every model.
    """

    def __init__(self, state: TensorState) -> None:
        self._state = state
        self._differing = [0] * len(state.task.models)

    def run(self, data: WindowData, workspace: Workspace) -> None:
        state, task = self._state, self._state.task
        base = data.raws[0]
        if base is None:  # a tensor without elements, or one that is left out
            return
        assert data.out is not None
        if task.stored == "nothing":
            pass
        elif task.out_dtype == task.base.info.dtype:
            data.out[:] = base
        else:
            self._convert(data, workspace)
        for i, raw in enumerate(data.raws[1:]):
            if raw is not None and not np.array_equal(raw, base):
                with state.lock:
                    self._differing[i] += int(np.count_nonzero(raw != base))

    def _convert(self, data: WindowData, workspace: Workspace) -> None:
        """What no model touches: NaN and infinities stay, but a finite value must not become one."""
        state, task = self._state, self._state.task
        overflowed = 0
        for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
            length = end - begin
            raw = state.bytes_of(data, 0, begin, length)
            assert raw is not None
            state.kernels.decode(raw, task.base.info.dtype, workspace.base[:length])
            workspace.sum[:length] = 0
            workspace.active[:length] = 0
            overflowed += write_merged(state, data, workspace, begin, end)
        with state.lock:
            state.targets[0].overflowed += overflowed

    def finish(self) -> None:
        for i, count in enumerate(self._differing):
            if count:
                raise InputError(
                    f"{self._state.source_name(i + 1)} differs from the base in {count} bytes and is "
                    f"{self._state.task.base.info.dtype}",
                    "integer tensors cannot be merged: list the tensor under `exclude` to copy the base's",
                )
        check_overflow(self._state)
