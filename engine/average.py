"""One tensor as a sum of coefficients times the models themselves."""

from __future__ import annotations

import numpy as np

from .methods.stages import CombinationMerge
from .results import check_overflow, out_bytes
from .scans import add_into
from .tensor import TensorState, WindowData, Workspace
from .windows import tiles


def normalizer(weights: tuple[float, ...], real: str) -> float:
    """fp32 sequential sum of the fp32 weights; 1 where it is nearly 0 (section 1.2)."""
    terms = np.array([0.0, *weights], np.float64 if real == "f64" else np.float32)
    total = float(np.add.accumulate(terms)[-1])
    return 1.0 if abs(total) < 1e-8 else total


class CombinationPass:
    """Coefficients times tensors, added in recipe order, starting from 0."""

    def __init__(self, state: TensorState, method: CombinationMerge, weights: tuple[float, ...]) -> None:
        self._state = state
        present = method.coefficients.solve([weights[i] for i in state.present])
        self._coefficients = dict(zip(state.present, present, strict=True))
        self._denominator = normalizer(present, state.real) if method.normalize else 1.0
        self._nonfinite = [0] * (len(state.task.models) + 1)

    def run(self, data: WindowData, workspace: Workspace) -> None:
        state = self._state
        nonfinite, overflowed = [0] * len(self._nonfinite), 0
        for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
            length = end - begin
            total, active = workspace.sum[:length], workspace.active[:length]
            total[:] = 0
            for i, coefficient in self._coefficients.items():
                values, source = workspace.task_vectors[i][:length], state.task.models[i]
                raw = state.bytes_of(data, i + 1, begin, length)
                assert raw is not None and source is not None
                nonfinite[i + 1] += state.kernels.decode(raw, source.info.dtype, values)
                state.kernels.accumulate(total, values, None, 1.0, coefficient, active)
            state.kernels.divide(total, self._denominator)
            out = out_bytes(data, state.task.out_dtype, begin, end)
            device_out = state.kernels.load(out)
            overflowed += state.kernels.convert(total, state.task.out_dtype, state.targets[0].saturate, device_out)
            state.kernels.store(device_out, out)
        with state.lock:
            add_into(self._nonfinite, nonfinite)
            state.targets[0].overflowed += overflowed

    def finish(self) -> None:
        self._state.settle_nonfinite(self._nonfinite)
        check_overflow(self._state)
