"""What is computed while inputs are read: block scales and low-rank products, each element by itself."""

from __future__ import annotations

import torch
from torch import Tensor


def scale_blocks(
    values: Tensor, start: int, columns: int, scales: Tensor, first_row: int, block: tuple[int, int]
) -> None:
    """One product with the scale of each element's block."""
    index = torch.arange(start, start + values.numel(), device=values.device)
    row, column = index // columns, index % columns
    values *= scales[row // block[0] - first_row, column // block[1]]


def add_low_rank(
    values: Tensor,
    start: int,
    columns: int,
    left: Tensor,
    first_row: int,
    right: Tensor,
    first_column: int,
    scale: Tensor,
) -> None:
    """Sums from 0 on; nothing is added in columns that the right factor lacks, not even 0."""
    sums = torch.zeros_like(values)
    inside = add_products(sums, start, columns, left, first_row, right, first_column, 0)
    values[inside] += sums[inside] * scale


def add_products(
    sums: Tensor,
    start: int,
    columns: int,
    left: Tensor,
    first_row: int,
    right: Tensor,
    first_column: int,
    first_rank: int,
) -> Tensor:
    """One product after the other, for all elements; returns in which of them the right factor has the column."""
    index = torch.arange(start, start + sums.numel(), device=sums.device)
    row, column = index // columns - first_row, index % columns - first_column
    inside = (column >= 0) & (column < right.shape[1])
    row, column, total = row[inside], column[inside], sums[inside]
    for j in range(right.shape[0]):
        total = total + left[row, first_rank + j] * right[j, column]
    sums[inside] = total
    return inside
