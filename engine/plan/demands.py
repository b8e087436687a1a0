"""What a method must see of a tensor before it can be merged: how often, how many elements at once."""

from __future__ import annotations

from collections.abc import Sequence

from ..kernels import ROW, SUM_ROWS
from ..methods import Method, SurveyKind
from .task import TensorTask

COLUMN_ROWS, COLUMN_ELEMENTS = 64, 1 << 16
"""Statistics of columns are taken over groups of so many rows, of fewer where a group would have more elements."""
RANKED_ROW_BYTES = 32 << 10
"""Counters of digits and of random numbers, whatever the length of a row."""
SAMPLE_ELEMENTS = 1 << 15
"""Elements of a sample; tensors up to this size are not sampled, as all their keys are held."""
SAMPLE_SHIFT = 10
"""Of very large tensors, one element in 2^10."""
FOUND_PER_TENSOR = 1 << 18
"""Keys near one cut that are held between passes."""


def survey_kind(tasks: Sequence[TensorTask]) -> SurveyKind:
    """Which statistics of whole models the tasks wait for."""
    made = {id(task.method): task.method for task in tasks}.values()
    wanted = {method.survey for method in made if method is not None}
    kinds: tuple[SurveyKind, ...] = ("threshold", "quantiles", "moments", "")
    return next((kind for kind in kinds if kind in wanted), "")


def passes_over(method: Method | None, is_double: bool) -> int:
    """How often the inputs of a tensor are looked at; the last time its output is written."""
    if method is None:
        return 1
    levels = 4 if is_double else 2  # of histograms; or a sample and a count, where that settles the cuts
    return 1 + method.looks + levels * method.searches


def histograms_per_model(method: Method | None) -> int:
    """How many order statistics of one model's magnitudes are searched for in the same reading."""
    return 1 if method is None else method.histograms


def grain(task: TensorTask) -> int:
    """Elements that must be seen together, counted from the tensor's first element."""
    if needs_columns(task):
        return column_rows(task.column_count) * task.column_count
    if needs_rows(task):
        return task.row_elements
    return 1 if task.method is None else task.method.block


def cut_elements(task: TensorTask) -> int:
    """Elements between places where a tensor may be cut so that each piece is merged by itself; 0: it stays whole.

    One look must be enough, and at each place a block of the method, a window of the defined order of sums and a block
    of what is noted of the inputs must begin.
    """
    window = ROW * SUM_ROWS
    method = task.method
    if method is not None:
        local = method.sees in ("element", "block") and method.keeps == "nothing" and not method.survey
        if not local or passes_over(method, task.is_double) > 1 or window % method.block:
            return 0
    if task.stored != "values" or any(source is not None and source.derived is not None for source in task.sources):
        return 0
    return window if task.numel > window else 0


def needs_columns(task: TensorTask) -> bool:
    """Whether each column has statistics; a tensor of one dimension is one column and has those of a whole tensor."""
    return task.method is not None and task.method.sees == "column" and len(task.base.info.shape) > 1


def column_rows(width: int) -> int:
    """Rows of `width` elements whose products are added one after the other: it decides the order of sums."""
    return max(1, min(COLUMN_ROWS, COLUMN_ELEMENTS // width))


def needs_rows(task: TensorTask) -> bool:
    """Whether rows of the last dimension are folded whole."""
    return task.method is not None and task.method.sees == "row"


def selection_bytes(task: TensorTask, elements: int) -> int:
    """What a selection needs beside the workspace to fold a tile of `elements` elements."""
    if needs_columns(task):  # sums of every group of the tile, one group's again, and sums that wait for others
        width, (pairs, waiting) = task.column_count, _column_sums(task)
        groups = -(-elements // grain(task))
        return 8 * width * (pairs * (groups + 1 + waiting) + groups + 1)
    if task.method is None or not needs_rows(task):
        return 0
    if not task.method.ranks_rows:  # sums of one row, and numbers for every pair of operands of every row
        pairs = (len(task.models) + 1) ** 2
        return 8 * (3 * task.row_elements + (2 * pairs + 2) * (elements // task.row_elements + 1))
    real_bytes = 8 if task.is_double else 4
    return RANKED_ROW_BYTES + task.row_elements * (2 * 8 + 2 * real_bytes) + elements * 4


def kept_bytes(task: TensorTask) -> int:
    """What is held of a whole tensor between its passes, beside sums of rows of its task vectors."""
    if task.method is None:
        return 0
    if needs_columns(task):  # sums that wait for others, their total, and the coefficients
        pairs, waiting = _column_sums(task)
        return 8 * task.column_count * (pairs * (waiting + 1) + len(task.models))
    held = min(task.numel, sample_elements(task.numel) + FOUND_PER_TENSOR)
    samples = 4 * held * len(task.models) * histograms_per_model(task.method)
    match task.method.keeps:
        case "masks":
            return 24 * len(task.models) * (task.numel // ROW + 1) + (samples if task.method.searches else 0)
        case "rows":
            return 8 * (task.numel // task.row_elements)
        case "samples":
            return samples
        case "nothing":
            return 0


def _column_sums(task: TensorTask) -> tuple[int, int]:
    """Dot products per column, and how many groups of rows wait beside a gap for their neighbours, at most."""
    models, groups = len(task.models), -(-task.numel // grain(task))
    return models * (models + 1) // 2, min(2 * groups.bit_length(), groups)


def sample_elements(numel: int) -> int:
    """How many elements of a tensor are sampled, about."""
    return max(SAMPLE_ELEMENTS, numel >> SAMPLE_SHIFT)
