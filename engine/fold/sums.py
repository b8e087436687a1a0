"""Sums in the one defined order: of weights, of rows of task vectors, and the pass that takes moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..kernels import ROW, SUM_ROWS, Array, fold_rows, host
from ..plan import tiles
from .inputs import WindowData
from .passes import CountingPass
from .tally import WindowTally
from .tensor import TensorState
from .workspace import Workspace


def normalizer(weights: Sequence[float], real: str) -> float:
    """fp32 sequential sum of the fp32 weights; 1 where it is nearly 0 (section 1.2)."""
    terms = np.array([0.0, *weights], np.float64 if real == "f64" else np.float32)
    total = float(np.add.accumulate(terms)[-1])
    return 1.0 if abs(total) < 1e-8 else total


class RowSums:
    """Sums of |t| and t^2 of every present model's task vector, in the one defined order (ALGORITHMS 1.4).

    Rows have places of their own, so any thread may add any tile. A row that two tiles share waits for its other part.
    """

    numbers = 2
    """Sums of each row."""

    def __init__(self, state: TensorState) -> None:
        self._state = state
        rows = -(-state.task.numel // ROW)
        self._rows = {i: np.zeros((rows, self.numbers), np.float64) for i in state.present}
        self._shares: list[Sequence[NDArray[np.float64]]] = []
        self._parts: dict[tuple[int, int], _SharedRow] = {}
        """By model and row."""

    def add(self, workspace: Workspace, begin: int, end: int) -> None:
        """Add the workspace's task vectors of elements [begin, end); every element of the tensor is added once."""
        for i in self._rows:
            self.add_values(i, workspace.task_vectors[i], workspace, begin, end)

    def add_values(self, i: int, t: Array, workspace: Workspace, begin: int, end: int) -> None:
        """Add elements [begin, end) of model i; t holds them, and maybe more behind them."""
        whole_begin = min(-(-begin // ROW) * ROW, end)
        whole_end = end if end == self._state.task.numel else end // ROW * ROW
        whole_end = max(whole_end, whole_begin)
        if whole_begin < whole_end:
            self._add_rows(i, t[whole_begin - begin : whole_end - begin], whole_begin, workspace)
        for first, last in ((begin, whole_begin), (whole_end, end)):
            if first < last:
                self._add_part(i, t[first - begin : last - begin], first, workspace)

    def _add_rows(self, i: int, t: Array, begin: int, workspace: Workspace) -> None:
        first, count = begin // ROW, -(-len(t) // ROW)
        device_rows = workspace.rows[: self.numbers * count].reshape(count, self.numbers)
        self._sum(t, device_rows)
        self._rows[i][first : first + count] = host(device_rows)

    def _sum(self, t: Array, rows: Array) -> None:
        """The sums of rows of t into f64 [rows, numbers]."""
        self._state.kernels.moments(t, rows)

    def _add_part(self, i: int, t: Array, begin: int, workspace: Workspace) -> None:
        row, place = divmod(begin, ROW)
        length = min(ROW, self._state.task.numel - row * ROW)
        with self._state.lock:
            if (i, row) not in self._parts:
                self._parts[i, row] = _SharedRow(self._state.kernels.empty(length, self._state.real), length)
            part = self._parts[i, row]
            part.values[place : place + len(t)] = t
            part.missing -= len(t)
            if part.missing:
                return
            del self._parts[i, row]
        self._add_rows(i, part.values, row * ROW, workspace)

    def put(self, i: int, begin: int, rows: NDArray[np.float64]) -> None:
        """Whole rows of one model that were summed elsewhere, the first of which starts at element `begin`."""
        first = begin // ROW
        self._rows[i][first : first + len(rows)] = rows

    def total(self) -> list[NDArray[np.float64] | None]:
        """Per model: f64 [numbers], or None for a model without the tensor. Asked once: the rows are let go."""
        assert not self._parts, "every element was added"
        if self._shares:
            totals = [np.add.accumulate(np.concatenate(shares))[-1] for shares in zip(*self._shares, strict=True)]
            found = dict(zip(self._rows, totals, strict=True))
            return [found.get(i) for i in range(len(self._state.task.models))]
        rows, self._rows = self._rows, {}
        return [fold_rows(rows[i]) if i in rows else None for i in range(len(self._state.task.models))]

    def share(self, begin: int, end: int) -> list[NDArray[np.float64]]:
        """Per present model, f64 [windows, numbers]: sums of the windows of the defined order in elements [begin, end).

        The first begins at `begin`.
        """
        assert not self._parts, "every element was added"
        first, last = begin // ROW, -(-end // ROW)
        return [
            np.stack([fold_rows(rows[place : min(place + SUM_ROWS, last)]) for place in range(first, last, SUM_ROWS)])
            for rows in self._rows.values()
        ]

    def take(self, share: Sequence[NDArray[np.float64]]) -> None:
        """Sums of windows that were taken elsewhere, in the order of windows; then no rows are added here."""
        self._shares.append(share)


class MomentSums(RowSums):
    """Sums of t^4 as well: what densities follow from."""

    numbers = 3


class KeptSquares(RowSums):
    """The sum of t^2 alone, of task vectors that are 0 where their masks are (see `Kernels.squares`)."""

    numbers = 1

    def _sum(self, t: Array, rows: Array) -> None:
        self._state.kernels.squares(t, rows.reshape(-1))


@dataclass(slots=True)
class _SharedRow:
    """A row whose elements come with several tiles, because blocks of n:m are no divisors of rows."""

    values: Array
    missing: int
    """Elements that are not there yet."""


class MomentsPass(CountingPass):
    """Sums over every task vector of the tensor; `then` decides densities from them."""

    def __init__(self, state: TensorState, then: Callable[[], None]) -> None:
        super().__init__(state)
        self._then = then
        self._sums = MomentSums(state)

    def _look(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        for begin, end in tiles(data.window.begin, data.window.end, self._state.stat_tile):
            self._state.inputs.load(data, workspace, begin, end, tally.nonfinite)
            self._sums.add(workspace, begin, end)

    def _conclude(self) -> None:
        self._state.moments = self._sums.total()
        self._then()


def check_moments(state: TensorState, i: int) -> NDArray[np.float64]:
    """Sums over the task vector of model i, which has the tensor.

    Raises:
        InputError: they are beyond fp64, so that no density follows from them.
    """
    moments = state.moments[i]
    assert moments is not None, "a pass took them"
    if not np.isfinite(moments).all():
        raise InputError(
            f"{state.inputs.name(i + 1)} has changes so large that their powers are beyond fp64, so TADrop finds no "
            "density",
            "exclude the tensor or give it a number as density",
        )
    return moments
