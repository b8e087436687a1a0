"""What is computed on the CPU while inputs are read: block scales and low-rank products."""

from __future__ import annotations

from typing import Any

from .compile import jit

COLUMNS = 1024
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
    """values += scale * (left @ right): for each row the sums of some columns (scratch f32 [COLUMNS]), rank by rank."""
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
            for j in range(rank):
                factor, line = left[row - first_row, j], right[j, column : column + count]
                for i in range(count):
                    total[i] += factor * line[i]
            out = values[begin - start : stop - start]
            for i in range(count):
                out[i] += total[i] * scale
