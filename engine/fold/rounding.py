"""From sums to output bytes: rounded once, counted where they are beyond the output dtype."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from ..models import DTYPES
from .passes import WindowData
from .tensor import TensorState
from .workspace import Workspace


def write_merged(
    state: TensorState, data: WindowData, workspace: Workspace, begin: int, end: int, place: int = 0
) -> int:
    """Base plus sum of elements [begin, end), rounded once, where active; returns how many lie beyond the dtype.

    `place` says which of the state's targets is written.
    """
    task, length, target = state.task, end - begin, state.targets[place]
    out = out_bytes(data, target.task.out_dtype, begin, end, place)
    device_out = state.kernels.load(out)
    overflowed = state.kernels.finish(
        state.bytes_of(data, 0, begin, length),
        task.base.info.dtype,
        workspace.base[:length],
        workspace.sum[:length],
        workspace.active[:length],
        target.task.out_dtype,
        target.saturate,
        device_out,
    )
    state.kernels.store(device_out, out)
    return overflowed


def out_bytes(
    data: WindowData, dtype: str, begin: int, end: int, place: int = 0
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Where elements [begin, end) go in one of the window's outputs."""
    size = DTYPES[dtype].size
    first = (begin - data.window.own_begin) * size
    return data.outs[place][first : first + (end - begin) * size]


def check_overflow(state: TensorState) -> None:
    """Raises InputError when results are not finite; a recipe that saturates still has no answer to Inf - Inf."""
    for target in state.targets:
        count, what = target.overflowed, f"{target.label}tensor {target.task.name!r}"
        if count and target.saturate:
            raise InputError(
                f"{what}: {count} results are NaN, which saturation cannot repair", "choose smaller weights"
            )
        if count:
            raise InputError(
                f"{what}: {count} values are beyond the range of {target.task.out_dtype}",
                "choose a wider `out_dtype`, smaller weights, or set `overflow: saturate` in the recipe",
            )
