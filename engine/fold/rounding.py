"""From sums to output bytes: rounded once, counted where they are beyond the output dtype."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..kernels import Array
from ..models import DTYPES
from .inputs import WindowData
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
        state.inputs.bytes_of(data, 0, begin, length),
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


def write_values(state: TensorState, data: WindowData, values: Array, begin: int, end: int, place: int = 0) -> int:
    """Real values for elements [begin, end) of a target, rounded once; returns how many lie beyond the dtype."""
    target = state.targets[place]
    out = out_bytes(data, target.task.out_dtype, begin, end, place)
    device_out = state.kernels.load(out)
    overflowed = state.kernels.convert(values, target.task.out_dtype, target.saturate, device_out)
    state.kernels.store(device_out, out)
    return overflowed


def out_bytes(data: WindowData, dtype: str, begin: int, end: int, place: int) -> NDArray[np.uint8]:
    """Where elements [begin, end) go in one of the window's outputs."""
    size = DTYPES[dtype].size
    first = (begin - data.window.own_begin) * size
    return data.outs[place][first : first + (end - begin) * size]
