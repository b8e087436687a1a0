"""What is computed on the CPU while inputs are read: block scales and low-rank products."""

from __future__ import annotations

from typing import Any

from .compile import jit

COLUMNS = 512
"""Columns that are summed at once: the running sums and a slice of the right factor stay in the cache."""


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
    scale: Any,
    sums: Any,
) -> None:
    """values += scale * (left @ right): for each row the sums of some columns (scratch f32 [COLUMNS]), rank by rank.

    Four ranks at once save the running sums' way to memory and back; the order of additions is the same.
    """
    rank, end = right.shape[0], start + values.size
    last_column = first_column + right.shape[1]
    for tile in range(first_column, last_column, COLUMNS):
        for row in range(start // columns, (end - 1) // columns + 1):
            begin = max(start, row * columns + tile)
            stop = min(end, row * columns + min(tile + COLUMNS, last_column))
            count = stop - begin
            if count <= 0:
                continue
            column = begin - row * columns - first_column
            total = sums[:count]
            for i in range(count):
                total[i] = 0
            factors, whole = left[row - first_row], rank - rank % 4
            for j in range(0, whole, 4):
                x0, x1, x2, x3 = factors[j], factors[j + 1], factors[j + 2], factors[j + 3]
                y0, y1 = right[j, column : column + count], right[j + 1, column : column + count]
                y2, y3 = right[j + 2, column : column + count], right[j + 3, column : column + count]
                for i in range(count):
                    total[i] = (((total[i] + x0 * y0[i]) + x1 * y1[i]) + x2 * y2[i]) + x3 * y3[i]
            for j in range(whole, rank):
                factor, line = factors[j], right[j, column : column + count]
                for i in range(count):
                    total[i] += factor * line[i]
            out = values[begin - start : stop - start]
            for i in range(count):
                out[i] += total[i] * scale
