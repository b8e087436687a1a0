"""EMR-Merging (arXiv 2405.17461): from task vectors to the unified one, and to a mask per task.

Where there are densities, task vectors are first cut down to their largest elements. For each element: the sign of the
sum of all task vectors (that of 0 is -), the largest value that has this sign (0 without one), and for each model
whether its own value has it, too. See section 2.10 of docs/algorithms.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..methods import Elect
from ..plan import ElectedRow, TensorRow, tiles
from .family import TensorFold
from .inputs import WindowData
from .passes import CountingPass
from .rounding import write_values
from .sums import RowSums
from .tally import Target, WindowTally
from .task_vectors import density_passes, edge_passes
from .tensor import TensorState, method_of
from .tile_work import TileMasks, count_masks, keep_masked
from .window_work import masks_of
from .workspace import Workspace


class ElectFold(TensorFold):
    """Looks that find what is left of task vectors, if not all, and one that makes all parts."""

    def __init__(self, state: TensorState, method: Elect) -> None:
        self._elected = ElectPass(state)
        trimmed = [*density_passes(state, method, lambda: None), *edge_passes(state)]
        super().__init__(state, [*trimmed, self._elected])

    def row(self, target: Target) -> TensorRow:
        """What the receipt of a part says. Masks of a task speak of their own model alone."""
        state, method = self.state, method_of(target, Elect)
        models: list[ElectedRow | None] = [None] * len(state.task.models)
        for i, (moments, own) in enumerate(zip(state.moments, self._elected.selected, strict=True)):
            if moments is not None and own is not None and method.task in (None, i):
                l1, l2 = float(moments[0]), float(moments[1]) ** 0.5
                kept = state.tally.kept[i]
                density = state.masks.densities[i]
                models[i] = ElectedRow(density=density, kept=kept, l1=l1, l2=l2, selected=float(own[0]))
        overlaps = sorted(state.tally.overlaps.items())
        return TensorRow(
            name=target.task.name,
            action="merged",
            models=tuple(models),
            overlaps=tuple((*pair, count) for pair, count in overlaps if method.task in (None, *pair)),
            nonfinite=sum(state.tally.nonfinite),
            overflowed=target.overflowed,
            claims=state.tally.claims(state.task.numel) if method.task is None else (),
        )


class ElectPass(CountingPass):
    """Writes every part of one tensor that is wanted, and takes the sums from which the scales follow."""

    def __init__(self, state: TensorState) -> None:
        super().__init__(state)
        self._changes = RowSums(state)
        self._kept = RowSums(state)
        self.selected: Sequence[NDArray[np.float64] | None] = ()
        """Per model, sums over what its mask keeps of the unified task vector; known after the pass."""

    def _look(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        state = self._state
        rules = masks_of(state, data, workspace, state.present)
        trims = None if rules.keeps_all else TileMasks(state, state.present, rules)
        for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
            length = end - begin
            state.inputs.load(data, workspace, begin, end, tally.nonfinite)
            if trims is not None:
                trims.make(workspace, begin, end)
                keep_masked(state, workspace, length)
            self._changes.add(workspace, begin, end)
            self._elect(workspace, length)
            for place in range(len(state.targets)):
                tally.overflowed[place] += self._write(data, workspace, begin, end, place)
            count_masks(state, workspace, length, tally)
            for i in state.present:
                t = workspace.task_vectors[i][:length]
                t[:] = workspace.weight_sum[:length]
                t *= workspace.masks[i][:length]
            self._kept.add(workspace, begin, end)

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
        method = method_of(target, Elect)
        if method.task is None:
            return write_values(state, data, workspace.weight_sum[:length], begin, end, place)
        first = (begin - data.window.own_begin) // 8
        out = data.outs[place][first : first + target.task.out_bytes(length)]
        if method.task not in state.present:
            out[:] = 0
            return 0
        device_out = state.kernels.load(out)
        state.kernels.pack_bits(workspace.masks[method.task][:length], device_out)
        state.kernels.store(device_out, out)
        return 0

    def _conclude(self) -> None:
        state = self._state
        state.moments, self.selected = self._changes.total(), self._kept.total()
        for i in state.present:
            sums = (state.moments[i], self.selected[i])
            if not all(each is not None and np.isfinite(each[0]) for each in sums):
                raise InputError(
                    f"{state.inputs.name(i + 1)} has changes that are not finite in fp32",
                    "exclude the tensor, or repair the checkpoint",
                )
