"""The defined order of sums that become statistics: rows of 4096 elements, folded in halves (ALGORITHMS 1.4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROW = 4096
"""Elements of one row of the defined summation order."""


SUM_ROWS = 256
"""Rows of one window of the defined summation order: a window is 2^20 elements."""


def fold_rows(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Row sums f64 [R, 3] of a whole tensor -> its sums [3], in the defined order.

    The 256 row sums of each window are folded in halves (missing rows are +0.0), windows are added one after the other.
    """
    total = np.zeros(rows.shape[1], np.float64)
    if len(rows) == 1:
        total += rows[0]
        return total
    windows = max(1, -(-rows.shape[0] // SUM_ROWS))
    # What is folded onto the rows of a short window is +0.0 until only about as many are left as there are.
    width = SUM_ROWS if windows > 1 else 1 << max(0, rows.shape[0] - 1).bit_length()
    padded = np.zeros((windows, width, rows.shape[1]), np.float64)
    padded.reshape(windows * width, rows.shape[1])[: rows.shape[0]] = rows
    half = width // 2
    while half:
        padded[:, :half] += padded[:, half : 2 * half]
        half //= 2
    for window in range(windows):
        total += padded[window, 0]
    return total
