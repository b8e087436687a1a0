"""From sums to output bytes: rounded once, counted where they are beyond the output dtype."""

from __future__ import annotations

import numpy as np

from .errors import InputError
from .header import DTYPES
from .tensor import TensorState, WindowData, Workspace


def write_merged(state: TensorState, data: WindowData, workspace: Workspace, begin: int, end: int) -> int:
    """Base plus sum of elements [begin, end), rounded once, where active; returns how many lie beyond the dtype."""
    task, length = state.task, end - begin
    out = out_bytes(data, task.out_dtype, begin, end)
    device_out = state.kernels.load(out)
    overflowed = state.kernels.finish(
        state.bytes_of(data, 0, begin, length),
        task.base.info.dtype,
        workspace.base[:length],
        workspace.sum[:length],
        workspace.active[:length],
        task.out_dtype,
        state.plan.saturate,
        device_out,
    )
    state.kernels.store(device_out, out)
    return overflowed


def out_bytes(data: WindowData, dtype: str, begin: int, end: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The place of elements [begin, end) in the window's output."""
    assert data.out is not None
    size = DTYPES[dtype].size
    first = (begin - data.window.own_begin) * size
    return data.out[first : first + (end - begin) * size]


def check_overflow(state: TensorState) -> None:
    """Raises InputError when results are not finite; a recipe that saturates still has no answer to Inf - Inf."""
    count, task = state.tally.overflowed, state.task
    if count and state.plan.saturate:
        raise InputError(
            f"tensor {task.name!r}: {count} results are NaN, which saturation cannot repair", "choose smaller weights"
        )
    if count:
        raise InputError(
            f"tensor {task.name!r}: {count} values are beyond the range of {task.out_dtype}",
            "choose a wider `out_dtype`, smaller weights, or set `overflow: saturate` in the recipe",
        )
