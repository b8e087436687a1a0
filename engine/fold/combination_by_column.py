"""One tensor as a sum of coefficients times tensors, with coefficients of their own for each column."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from ..kernels import Array, host, on_device
from ..plan import column_rows, tiles
from .inputs import WindowData
from .operands import CombinationPass, Operands, beyond_fp64
from .passes import CountingPass, Pass
from .tally import WindowTally
from .tensor import TensorState
from .workspace import Workspace

SOLVED_AT_ONCE = 4096
"""Columns; coefficients of so many are computed together."""


def column_passes(state: TensorState, operands: Operands) -> list[Pass]:
    """One look for the dot products of all columns, then the sums.

    A column holds the elements whose flat indices differ by multiples of the size of the first dimension's slices.

    Args:
        state: a tensor of two dimensions or more; every target has coefficients of its own.
        operands: what is added up.
    """
    combination = ColumnCombinationPass(state, operands)
    return [ColumnGramPass(state, operands, combination), combination]


class ColumnGramPass(CountingPass):
    """Dot products of the columns of all pairs of operands: f64 [k, k] per column.

    Rows are taken in groups. In a group products are added row after row, starting from 0; groups are added in pairs,
    and pairs again, until one is left. Nothing of that depends on windows.
    """

    def __init__(self, state: TensorState, operands: Operands, combination: ColumnCombinationPass) -> None:
        super().__init__(state)
        self._operands = operands
        self._combination = combination
        self._width = state.task.column_count
        self._rows = column_rows(self._width)
        self._pairs = [(a, b) for a in range(operands.count) for b in range(a, operands.count)]
        self._sums = PairedSums(-(-state.task.numel // (self._rows * self._width)))

    def _look(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        state, group = self._state, self._rows * self._width
        for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
            found = dict(self._operands.load(data, workspace, begin, end, tally.nonfinite))
            count = -(-(end - begin) // group)
            sums = np.zeros((count, len(self._pairs), self._width))
            device = state.kernels.empty(count * self._width, "f64").reshape(count, self._width)
            for place, (a, b) in enumerate(self._pairs):
                if a in found and b in found:
                    state.kernels.column_dots(found[a], found[b], self._width, self._rows, device)
                    sums[:, place] = host(device)
            for i in range(count):
                self._sums.add(begin // group + i, sums[i].copy())

    def _conclude(self) -> None:
        total = self._sums.total
        if not np.isfinite(total).all():
            raise beyond_fp64(self._state)
        self._combination.solve(total, self._pairs)


class PairedSums:
    """The sum of numbered arrays that any thread may bring in any order: of pairs, of pairs of pairs, and so on.

    Few arrays wait at a time: of what was brought without a gap, one for each power of two.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._waiting: dict[tuple[int, int], NDArray[np.float64]] = {}
        """By level and place."""
        self._lock = threading.Lock()
        self.total: NDArray[np.float64] = np.zeros(0)
        """Known when every array was added."""

    def add(self, place: int, sums: NDArray[np.float64]) -> None:
        """Each place is added once; `sums` is kept."""
        level, count = 0, self._count
        with self._lock:
            while count > 1:
                if place ^ 1 < count:  # the last of an odd number goes on alone
                    other = self._waiting.pop((level, place ^ 1), None)
                    if other is None:
                        self._waiting[level, place] = sums
                        return
                    sums = sums + other
                level, place, count = level + 1, place // 2, (count + 1) // 2
            self.total = sums


class ColumnCombinationPass(CombinationPass):
    """The sums of `CombinationPass`, every column with its own coefficients."""

    def __init__(self, state: TensorState, operands: Operands) -> None:
        super().__init__(state, operands)
        self._columns: list[NDArray[np.float64]] = []
        """Per target, f64 [operands, columns]; known when the pass starts."""

    def solve(self, sums: NDArray[np.float64], pairs: list[tuple[int, int]]) -> None:
        """Coefficients of every column, from the dot products f64 [pairs, columns]."""
        k, width = self._operands.count, sums.shape[1]
        self._columns = [np.empty((k, width)) for _ in self._merges]
        for first in range(0, width, SOLVED_AT_ONCE):
            part = slice(first, min(first + SOLVED_AT_ONCE, width))
            gram = np.empty((part.stop - first, k, k))
            for values, (a, b) in zip(sums, pairs, strict=True):
                gram[:, a, b] = gram[:, b, a] = values[part]
            for columns, (method, weights) in zip(self._columns, self._merges, strict=True):
                columns[:, part] = method.coefficients.solve(gram, weights).T

    def _add(self, place: int, operands: list[tuple[int, Array]], total: Array, active: Array) -> None:
        kernels = self._state.kernels
        for position, values in operands:
            factors = on_device(kernels, self._columns[place][position])
            kernels.accumulate_columns(total, values, factors, active)
