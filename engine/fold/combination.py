"""One tensor as a sum of coefficients times tensors: the models themselves, the base too, or differences to it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..kernels import ROW, SUM_ROWS, Array, fold_rows, host, on_device
from ..methods import CombinationMerge, NoDirection
from ..plan import TensorRow, needs_columns, needs_rows, tiles
from .combination_by_column import column_passes
from .family import TensorFold, merged_row
from .inputs import WindowData
from .operands import CombinationPass, Operands, beyond_fp64
from .passes import CountingPass, Pass
from .tally import Target, WindowTally
from .tensor import TensorState
from .workspace import Workspace


class CombinationFold(TensorFold):
    """One look for the dot products if they matter, then the sums; every target has coefficients of its own."""

    def __init__(self, state: TensorState, method: CombinationMerge) -> None:
        operands = Operands(state, method.of)
        if needs_columns(state.task):
            passes = column_passes(state, operands)
        elif needs_rows(state.task):
            passes = [RowCombinationPass(state, operands)]
        else:
            passes = combination_passes(state, operands, method.coefficients.needs_gram)
        super().__init__(state, passes)

    def row(self, target: Target) -> TensorRow:
        numel = self.state.task.numel  # every model gives every element
        overlaps = dict.fromkeys(combinations(self.state.present, 2), numel)
        return merged_row(self.state, target, [numel] * len(self.state.task.models), overlaps)


def combination_passes(state: TensorState, operands: Operands, needs_gram: bool) -> list[Pass]:
    """The passes for coefficients of a whole tensor."""
    combination = CombinationPass(state, operands)

    def solve(gram: NDArray[np.float64]) -> None:
        combination.coefficients = [_coefficients(target, operands, gram) for target in state.targets]

    if needs_gram:
        return [GramPass(state, operands, solve), combination]
    solve(np.zeros((0, 0)))
    return [combination]


def _coefficients(target: Target, operands: Operands, gram: NDArray[np.float64]) -> list[float]:
    """One per operand."""
    method, weights = operands.merge_of(target)
    try:
        solved = method.coefficients.solve(gram, weights)
    except NoDirection as error:
        text = f"{target.label}tensor {target.task.name!r}: {error}"
        raise InputError(text, "choose other weights or exclude it") from None
    return [float(c) for c in solved]


class GramPass(CountingPass):
    """Dot products of all pairs of operands, in the one defined order (ALGORITHMS 1.4); `then` gets f64 [k, k].

    Windows of the defined order are folded as soon as their last row is there, so a tensor of any size needs memory
    only for those that are under way.
    """

    def __init__(self, state: TensorState, operands: Operands, then: Callable[[NDArray[np.float64]], None]) -> None:
        super().__init__(state)
        self._operands = operands
        self._then = then
        self._pairs = [(a, b) for a in range(operands.count) for b in range(a, operands.count)]
        self._sums = WindowSums(state.task.numel, len(self._pairs))

    def _look(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        state = self._state
        for begin, end in tiles(data.window.begin, data.window.end, state.stat_tile):
            found = dict(self._operands.load(data, workspace, begin, end, tally.nonfinite))
            count = -(-(end - begin) // ROW)
            rows, device_rows = np.zeros((count, len(self._pairs))), workspace.rows[:count]
            for column, (a, b) in enumerate(self._pairs):
                if a in found and b in found:
                    state.kernels.dots(found[a], found[b], device_rows)
                    rows[:, column] = host(device_rows)
            self._sums.add(begin // ROW, rows)

    def _conclude(self) -> None:
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

    def _conclude(self) -> None:
        if self._beyond:
            raise beyond_fp64(self._state)
