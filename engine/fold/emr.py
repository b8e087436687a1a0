"""The pass of EMR-Merging (arXiv 2405.17461): from task vectors to the unified one, and to a mask per task.

For each element: the sign of the sum of all task vectors (that of 0 is -), the largest value that has this sign (0
without one), and for each model whether its own value has it, too. See section 2.10 of docs/algorithms.md.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..methods import Elect
from ..plan import ElectedRow, TensorRow, tiles
from .passes import WindowData, add_into
from .rounding import check_overflow, out_bytes
from .sums import RowSums
from .tensor import Target, TensorState
from .workspace import Workspace


class ElectPass:
    """Writes every part of one tensor that is wanted, and takes the sums from which the scales follow."""

    def __init__(self, state: TensorState) -> None:
        self._state = state
        self._changes = RowSums(state)
        self._selected = RowSums(state)
        self._sums: list[NDArray[np.float64] | None] = []
        """Per model, of what its mask keeps of the unified task vector."""
        self._nonfinite = [0] * (len(state.task.models) + 1)

    def run(self, data: WindowData, workspace: Workspace) -> None:
        state, nonfinite, kept = self._state, [0] * len(self._nonfinite), [0] * len(self._state.task.models)
        overlaps = dict.fromkeys(combinations(state.present, 2), 0)
        overflowed = [0] * len(state.targets)
        for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
            length = end - begin
            state.load(data, workspace, begin, end, nonfinite)
            self._changes.add(workspace, begin, end)
            self._elect(workspace, length)
            for place in range(len(state.targets)):
                overflowed[place] += self._write(data, workspace, begin, end, place)
            state.count_masks(workspace, length, kept, overlaps)
            for i in state.present:
                t = workspace.task_vectors[i][:length]
                t[:] = workspace.weight_sum[:length]
                t *= workspace.masks[i][:length]
            self._selected.add(workspace, begin, end)
        with state.lock:
            add_into(self._nonfinite, nonfinite)
            state.add_counts(kept, overlaps, overflowed)

    def _elect(self, workspace: Workspace, length: int) -> None:
        """Leaves the unified task vector in the workspace's `weight_sum`, and a mask for each model."""
        state, kernels = self._state, self._state.kernels
        total, active = workspace.sum[:length], workspace.active[:length]
        elected = workspace.weight_sum[:length]
        for array in (total, active, elected):
            array[:] = 0
        vectors = {i: workspace.task_vectors[i][:length] for i in state.present}
        for t in vectors.values():
            kernels.accumulate(total, t, None, 1.0, 1.0, active)
        for t in vectors.values():
            kernels.elect(elected, total, t)
        for i, t in vectors.items():
            kernels.mask_agreeing(t, elected, workspace.masks[i][:length])

    def _write(self, data: WindowData, workspace: Workspace, begin: int, end: int, place: int) -> int:
        """One part's elements [begin, end); returns how many lie beyond its dtype."""
        state, target, length = self._state, self._state.targets[place], end - begin
        method = target.task.settings.method if target.task.settings is not None else None
        assert isinstance(method, Elect)
        if method.task is None:
            out = out_bytes(data, target.task.out_dtype, begin, end, place)
            device_out = state.kernels.load(out)
            elected = workspace.weight_sum[:length]
            overflowed = state.kernels.convert(elected, target.task.out_dtype, target.saturate, device_out)
            state.kernels.store(device_out, out)
            return overflowed
        first = (begin - data.window.own_begin) // 8
        out = data.outs[place][first : first + target.task.out_bytes(length)]
        if method.task not in state.present:
            out[:] = 0
            return 0
        device_out = state.kernels.load(out)
        state.kernels.pack_bits(workspace.masks[method.task][:length], device_out)
        state.kernels.store(device_out, out)
        return 0

    def finish(self) -> None:
        self._state.settle_nonfinite(self._nonfinite)
        self._state.moments, self._sums = self._changes.total(), self._selected.total()
        for i in self._state.present:
            sums = (self._state.moments[i], self._sums[i])
            if not all(each is not None and np.isfinite(each[0]) for each in sums):
                raise InputError(
                    f"{self._state.source_name(i + 1)} has changes that are not finite in fp32",
                    "exclude the tensor, or repair the checkpoint",
                )
        check_overflow(self._state)

    def row(self, target: Target) -> TensorRow:
        """What the receipt of a part says; valid after `finish`. Masks of a task speak of their own model alone."""
        state, settings = self._state, target.task.settings
        task = settings.method.task if settings is not None and isinstance(settings.method, Elect) else None
        models: list[ElectedRow | None] = [None] * len(state.task.models)
        for i in state.present:
            moments, own = state.moments[i], self._sums[i]
            assert moments is not None and own is not None
            if task is None or task == i:
                l1, l2 = float(moments[0]), float(moments[1]) ** 0.5
                kept = state.tally.kept[i]
                models[i] = ElectedRow(density=1.0, kept=kept, l1=l1, l2=l2, selected=float(own[0]))
        overlaps = sorted(state.tally.overlaps.items())
        return TensorRow(
            name=target.task.name,
            action="merged",
            models=tuple(models),
            overlaps=tuple((a, b, count) for (a, b), count in overlaps if task is None or task in (a, b)),
            nonfinite=sum(state.tally.nonfinite),
            overflowed=target.overflowed,
        )
