"""What is computed on the CPU while inputs are read: block scales and low-rank products."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .compile import jit

Numbers = npt.NDArray[np.float32]

COLUMNS = 512
"""Columns that are summed at once: running sums of four rows stay in the level-1 cache."""
ROWS = 64
"""Rows that a slice of the right factor is good for once it has been copied: their sums stay in the level-2 cache."""
DEPTH = 16
"""Ranks of such a slice: 32 KiB."""
VECTOR = 32
"""Columns are filled up to a multiple of it, so that no loop has a rest that is computed one by one."""


def scratch() -> tuple[Numbers, Numbers]:
    """What `add_low_rank` works in: a slice of the right factor, and sums."""
    return np.zeros(DEPTH * COLUMNS, np.float32), np.zeros(ROWS * COLUMNS, np.float32)


@jit
def scale_blocks(
    values: Any, start: int, columns: int, scales: Any, first_row: int, block_rows: int, block_columns: int
) -> None:
    """values *= the scale of each element's block; runs inside one block vectorise."""
    i = 0
    while i < values.size:
        row, column = (start + i) // columns, (start + i) % columns
        block = column // block_columns
        scale = scales[row // block_rows - first_row, block]
        stop = min(values.size, i + min(columns, (block + 1) * block_columns) - column)
        for j in range(i, stop):
            values[j] *= scale
        i = stop


@jit
def add_low_rank(
    values: Any,
    start: int,
    columns: int,
    left: Any,
    first_row: int,
    right: Any,
    first_column: int,
    first_rank: int,
    scale: Any,
    whole: bool,
    panel: Any,
    totals: Any,
) -> None:
    """values += scale * (left @ right) with all ranks there (`whole`), else values += left @ right without a scale.

    Blocks of columns, rows and ranks decide where the sums lie meanwhile, never in which order one's products are
    added. Scratch, f32: panel [DEPTH * COLUMNS], totals [ROWS * COLUMNS].
    """
    end, last_column = start + values.size, first_column + right.shape[1]
    for tile in range(first_column, last_column, COLUMNS):
        low, high = tile, min(tile + COLUMNS, last_column)
        first, last = start // columns, (end - 1) // columns
        if first == last:
            low, high = max(low, start - first * columns), min(high, end - last * columns)
        else:  # the first and the last row may not reach this far
            first += start - first * columns >= high
            last -= end - last * columns <= low
        if low >= high:
            continue
        for row in range(first, last + 1, ROWS):
            stop = min(row + ROWS, last + 1)
            begin_sums(values, start, columns, row, stop, low, high, whole, totals)
            for rank in range(0, right.shape[0], DEPTH):
                depth = min(DEPTH, right.shape[0] - rank)
                fill_panel(right, rank, depth, low - first_column, high - first_column, panel)
                add_panel(left, row - first_row, stop - first_row, first_rank + rank, depth, high - low, panel, totals)
            end_sums(values, start, columns, row, stop, low, high, scale, whole, totals)


@jit
def begin_sums(
    values: Any, start: int, columns: int, row: int, stop: int, low: int, high: int, whole: bool, totals: Any
) -> None:
    """Totals of columns [low, high) of some rows: 0, or what their sums have come to so far."""
    end = start + values.size
    for place in range(stop - row):
        origin = (row + place) * columns
        begin, until = max(start, origin + low), min(end, origin + high)
        own, total = values[begin - start : until - start], totals[place * COLUMNS + begin - origin - low :]
        for i in range(own.size):
            total[i] = 0 if whole else own[i]


@jit
def end_sums(
    values: Any,
    start: int,
    columns: int,
    row: int,
    stop: int,
    low: int,
    high: int,
    scale: Any,
    whole: bool,
    totals: Any,
) -> None:
    """What has become of them: values, or sums that wait for other ranks."""
    end = start + values.size
    for place in range(stop - row):
        origin = (row + place) * columns
        begin, until = max(start, origin + low), min(end, origin + high)
        own, total = values[begin - start : until - start], totals[place * COLUMNS + begin - origin - low :]
        for i in range(own.size):
            own[i] = own[i] + total[i] * scale if whole else total[i]


@jit
def fill_panel(right: Any, rank: int, depth: int, low: int, high: int, panel: Any) -> None:
    """Some ranks and columns side by side: lines of a wide matrix crowd into a few places of the cache."""
    for j in range(depth):
        line, out = right[rank + j, low:high], panel[j * COLUMNS : (j + 1) * COLUMNS]
        for i in range(line.size):
            out[i] = line[i]


@jit
def add_panel(left: Any, row: int, stop: int, rank: int, depth: int, count: int, panel: Any, totals: Any) -> None:
    """Four rows at once, so that what is loaded of the panel serves all of them."""
    padded = min(COLUMNS, -(-count // VECTOR) * VECTOR)
    for place in range(0, stop - row, 4):
        factors = left[row + place : stop]
        sums = totals[place * COLUMNS :]
        if factors.shape[0] < 4:
            for i in range(factors.shape[0]):
                add_to_row(sums[i * COLUMNS :][:padded], factors[i], rank, depth, panel)
        else:
            add_to_rows(sums, factors, rank, depth, padded, panel)


@jit
def add_to_rows(totals: Any, left: Any, rank: int, depth: int, count: int, panel: Any) -> None:
    """Four rows of `totals` += four ranks at a time; these save the sums' way to memory and back."""
    t0, t1 = totals[:count], totals[COLUMNS:][:count]
    t2, t3 = totals[2 * COLUMNS :][:count], totals[3 * COLUMNS :][:count]
    a, b, c, d = left[0, rank:], left[1, rank:], left[2, rank:], left[3, rank:]
    whole = depth - depth % 4
    for j in range(0, whole, 4):
        y0, y1 = panel[j * COLUMNS :][:count], panel[(j + 1) * COLUMNS :][:count]
        y2, y3 = panel[(j + 2) * COLUMNS :][:count], panel[(j + 3) * COLUMNS :][:count]
        a0, a1, a2, a3 = a[j], a[j + 1], a[j + 2], a[j + 3]
        b0, b1, b2, b3 = b[j], b[j + 1], b[j + 2], b[j + 3]
        c0, c1, c2, c3 = c[j], c[j + 1], c[j + 2], c[j + 3]
        d0, d1, d2, d3 = d[j], d[j + 1], d[j + 2], d[j + 3]
        for i in range(count):
            t0[i] = (((t0[i] + a0 * y0[i]) + a1 * y1[i]) + a2 * y2[i]) + a3 * y3[i]
            t1[i] = (((t1[i] + b0 * y0[i]) + b1 * y1[i]) + b2 * y2[i]) + b3 * y3[i]
            t2[i] = (((t2[i] + c0 * y0[i]) + c1 * y1[i]) + c2 * y2[i]) + c3 * y3[i]
            t3[i] = (((t3[i] + d0 * y0[i]) + d1 * y1[i]) + d2 * y2[i]) + d3 * y3[i]
    for j in range(whole, depth):
        y, a0, b0, c0, d0 = panel[j * COLUMNS :][:count], a[j], b[j], c[j], d[j]
        for i in range(count):
            t0[i] += a0 * y[i]
            t1[i] += b0 * y[i]
            t2[i] += c0 * y[i]
            t3[i] += d0 * y[i]


@jit
def add_to_row(total: Any, left: Any, rank: int, depth: int, panel: Any) -> None:
    """The same for one row."""
    count, factors = total.size, left[rank:]
    whole = depth - depth % 4
    for j in range(0, whole, 4):
        y0, y1 = panel[j * COLUMNS :][:count], panel[(j + 1) * COLUMNS :][:count]
        y2, y3 = panel[(j + 2) * COLUMNS :][:count], panel[(j + 3) * COLUMNS :][:count]
        x0, x1, x2, x3 = factors[j], factors[j + 1], factors[j + 2], factors[j + 3]
        for i in range(count):
            total[i] = (((total[i] + x0 * y0[i]) + x1 * y1[i]) + x2 * y2[i]) + x3 * y3[i]
    for j in range(whole, depth):
        y, x = panel[j * COLUMNS :][:count], factors[j]
        for i in range(count):
            total[i] += x * y[i]


@jit
def add_scaled(values: Any, sums: Any, factor: Any) -> None:
    """values += sums * factor."""
    for i in range(values.size):
        values[i] += sums[i] * factor
