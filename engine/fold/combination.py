"""One tensor as a sum of coefficients times tensors: the models themselves, the base too, or differences to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..kernels import ROW, SUM_ROWS, Array, fold_rows, host, on_device
from ..methods import CombinationMerge, NoDirection
from ..plan import needs_rows, tiles
from .passes import Pass, WindowData, add_into
from .rounding import check_overflow, out_bytes, write_merged
from .tensor import Target, TensorState
from .workspace import Workspace


def normalizer(weights: Sequence[float], real: str) -> float:
    """fp32 sequential sum of the fp32 weights; 1 where it is nearly 0 (section 1.2)."""
    terms = np.array([0.0, *weights], np.float64 if real == "f64" else np.float32)
    total = float(np.add.accumulate(terms)[-1])
    return 1.0 if abs(total) < 1e-8 else total


def combination_passes(state: TensorState, method: CombinationMerge) -> list[Pass]:
    """What it takes to merge a tensor by coefficients: one look for the dot products if they matter, then the sums.

    Args:
        state: the tensor; every target has coefficients of its own.
        method: of the first target; `selecting` is the same for all.
    """
    operands = Operands(state, method.of)
    if needs_rows(state.task):
        return [RowCombinationPass(state, operands)]
    combination = CombinationPass(state, operands)

    def solve(gram: NDArray[np.float64]) -> None:
        combination.coefficients = [_coefficients(target, operands, gram) for target in state.targets]

    if method.coefficients.needs_gram:
        return [GramPass(state, operands, solve), combination]
    solve(np.zeros((0, 0)))
    return [combination]


def _coefficients(target: Target, operands: Operands, gram: NDArray[np.float64]) -> list[float]:
    """One per operand."""
    method, weights = _merge_of(target, operands)
    try:
        solved = method.coefficients.solve(gram, weights)
    except NoDirection as error:
        text = f"{target.label}tensor {target.task.name!r}: {error}"
        raise InputError(text, "choose other weights or exclude it") from None
    return [float(c) for c in solved]


def _merge_of(target: Target, operands: Operands) -> tuple[CombinationMerge, list[float]]:
    """A target's method, and its weights of the models that have a coefficient."""
    settings = target.task.settings
    assert settings is not None and isinstance(settings.method, CombinationMerge)
    return settings.method, settings.method.weights_of(operands.models)


def beyond_fp64(state: TensorState) -> InputError:
    """What to say when dot products of finite numbers are not finite; possible with F64 inputs only."""
    text = f"tensor {state.task.name!r} has values so large that their squares are beyond fp64"
    return InputError(text, "exclude the tensor")


class Operands:
    """The tensors that are added up, in their order: the base where it takes part, then the models.

    Attributes:
        models: the models that have a coefficient. A model that lacks the tensor is left out of a sum of models, and
            has a difference of 0 to the base.
    """

    def __init__(self, state: TensorState, of: Literal["models", "base", "differences"]) -> None:
        self._state = state
        self.differences = of == "differences"
        self.with_base = of == "base"
        self.models = list(range(len(state.task.models))) if self.differences else state.present
        self.count = len(self.models) + self.with_base

    def load(
        self, data: WindowData, workspace: Workspace, begin: int, end: int, nonfinite: list[int]
    ) -> list[tuple[int, Array]]:
        """Decode elements [begin, end): (position among the operands, real [end - begin]) of each that exists."""
        state, length = self._state, end - begin
        if self.differences:
            state.load(data, workspace, begin, end, nonfinite)
            return [(i, workspace.task_vectors[i][:length]) for i in state.present]
        found: list[tuple[int, Array]] = []
        places = [(0, workspace.base)] if self.with_base else []
        places += [(i + 1, workspace.task_vectors[i]) for i in state.present]
        for position, (source, place) in enumerate(places):
            location = state.task.models[source - 1] if source else state.task.base
            raw, values = state.bytes_of(data, source, begin, length), place[:length]
            assert raw is not None and location is not None
            nonfinite[source] += state.kernels.decode(raw, location.info.dtype, values)
            found.append((position, values))
        return found


class GramPass:
    """Dot products of all pairs of operands, in the one defined order (ALGORITHMS 1.4); `then` gets f64 [k, k].

    Windows of the defined order are folded as soon as their last row is there, so a tensor of any size needs memory
    only for those that are under way.
    """

    def __init__(self, state: TensorState, operands: Operands, then: Callable[[NDArray[np.float64]], None]) -> None:
        self._state = state
        self._operands = operands
        self._then = then
        self._pairs = [(a, b) for a in range(operands.count) for b in range(a, operands.count)]
        self._sums = WindowSums(state.task.numel, len(self._pairs))
        self._nonfinite = [0] * (len(state.task.models) + 1)

    def run(self, data: WindowData, workspace: Workspace) -> None:
        state, nonfinite = self._state, [0] * len(self._nonfinite)
        for begin, end in tiles(data.window.begin, data.window.end, state.stat_tile):
            found = dict(self._operands.load(data, workspace, begin, end, nonfinite))
            count = -(-(end - begin) // ROW)
            rows, device_rows = np.zeros((count, len(self._pairs))), workspace.rows[:count]
            for column, (a, b) in enumerate(self._pairs):
                if a in found and b in found:
                    state.kernels.dots(found[a], found[b], device_rows)
                    rows[:, column] = host(device_rows)
            self._sums.add(begin // ROW, rows)
        with state.lock:
            add_into(self._nonfinite, nonfinite)

    def finish(self) -> None:
        self._state.settle_nonfinite(self._nonfinite)
        total, gram = self._sums.total(), np.zeros((self._operands.count, self._operands.count))
        for (a, b), value in zip(self._pairs, total, strict=True):
            gram[a, b] = gram[b, a] = value
        if not np.isfinite(gram).all():
            raise beyond_fp64(self._state)
        self._then(gram)


class WindowSums:
    """Sums over a whole tensor in the defined order, from rows that any thread may bring in any order.

    Args:
        numel: elements of the tensor.
        columns: how many sums are taken side by side.
    """

    def __init__(self, numel: int, columns: int) -> None:
        self._rows = -(-numel // ROW)
        self._windows = np.zeros((-(-self._rows // SUM_ROWS), columns))
        self._open: dict[int, tuple[NDArray[np.float64], list[int]]] = {}
        """Per window under way: its rows, and how many of them are missing."""
        self._lock = threading.Lock()

    def add(self, first: int, rows: NDArray[np.float64]) -> None:
        """Rows f64 [R, columns] of the tensor from row `first` on; each row is added once."""
        for window in range(first // SUM_ROWS, (first + len(rows) - 1) // SUM_ROWS + 1):
            start = window * SUM_ROWS
            begin, end = max(first, start), min(first + len(rows), start + SUM_ROWS)
            with self._lock:
                if window not in self._open:
                    whole = min(SUM_ROWS, self._rows - start)
                    self._open[window] = np.zeros((whole, rows.shape[1])), [whole]
                kept, missing = self._open[window]
                kept[begin - start : end - start] = rows[begin - first : end - first]
                missing[0] -= end - begin
                if missing[0]:
                    continue
                del self._open[window]
            self._windows[window] = fold_rows(kept)

    def total(self) -> NDArray[np.float64]:
        """f64 [columns]."""
        assert not self._open, "every row was added"
        total = np.zeros(self._windows.shape[1])
        for window in self._windows:
            total += window
        return total


class CombinationPass:
    """Coefficients times operands, added in their order, starting from 0; on top of the base for differences."""

    def __init__(self, state: TensorState, operands: Operands) -> None:
        self._state = state
        self._operands = operands
        self._nonfinite = [0] * (len(state.task.models) + 1)
        self._merges = [_merge_of(target, operands) for target in state.targets]
        self.coefficients: list[list[float]] = []
        """Per target and operand; known when the pass starts."""

    def run(self, data: WindowData, workspace: Workspace) -> None:
        state, nonfinite, overflowed = self._state, [0] * len(self._nonfinite), [0] * len(self._state.targets)
        for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
            operands = self._operands.load(data, workspace, begin, end, nonfinite)
            total, active = workspace.sum[: end - begin], workspace.active[: end - begin]
            for place in range(len(state.targets)):
                total[:] = 0
                active[:] = 0
                self._add(place, operands, total, active)
                overflowed[place] += self._write(place, data, workspace, begin, end)
        with state.lock:
            add_into(self._nonfinite, nonfinite)
            for target, count in zip(state.targets, overflowed, strict=True):
                target.overflowed += count

    def _add(self, place: int, operands: list[tuple[int, Array]], total: Array, active: Array) -> None:
        coefficients = self.coefficients[place]
        for position, values in operands:
            self._state.kernels.accumulate(total, values, None, 1.0, coefficients[position], active)
        if self._merges[place][0].normalize and not self._operands.differences:
            self._state.kernels.divide(total, normalizer(coefficients, self._state.real))

    def _write(self, place: int, data: WindowData, workspace: Workspace, begin: int, end: int) -> int:
        state, target = self._state, self._state.targets[place]
        if self._operands.differences:
            return write_merged(state, data, workspace, begin, end, place)
        out = out_bytes(data, target.task.out_dtype, begin, end, place)
        device_out = state.kernels.load(out)
        values = workspace.sum[: end - begin]
        overflowed = state.kernels.convert(values, target.task.out_dtype, target.saturate, device_out)
        state.kernels.store(device_out, out)
        return overflowed

    def finish(self) -> None:
        self._state.settle_nonfinite(self._nonfinite)
        check_overflow(self._state)


class RowCombinationPass(CombinationPass):
    """The same with coefficients of their own for each row, from dot products of rows: all in one look."""

    def __init__(self, state: TensorState, operands: Operands) -> None:
        super().__init__(state, operands)
        self._beyond = False
        """Whether a dot product of finite numbers was not finite."""

    def _add(self, place: int, operands: list[tuple[int, Array]], total: Array, active: Array) -> None:
        kernels, width, found = self._state.kernels, self._state.task.row_elements, dict(operands)
        rows, k = len(total) // width, self._operands.count
        gram, device = np.zeros((rows, k, k)), kernels.empty(rows, "f64")
        for a, values in operands:
            for b in range(a, k):
                if b in found:
                    kernels.row_dots(values, found[b], width, device)
                    gram[:, a, b] = gram[:, b, a] = host(device)
        wrong = ~np.isfinite(gram).all(axis=(1, 2))
        if wrong.any():
            gram[wrong], self._beyond = 0, True
        method, weights = self._merges[place]
        solved = method.coefficients.solve(gram, weights)
        for position, values in operands:
            kernels.accumulate_rows(total, values, on_device(kernels, solved[:, position]), width, active)

    def finish(self) -> None:
        self._state.settle_nonfinite(self._nonfinite)
        if self._beyond:
            raise beyond_fp64(self._state)
        check_overflow(self._state)
