"""What a method must see of a tensor before it can be merged: how often, how many elements at once."""

from __future__ import annotations

from collections.abc import Sequence

from ..methods import (
    Band,
    Blocks,
    CombinationMerge,
    Elect,
    Fusion,
    ModelThreshold,
    RankedRandom,
    Selection,
    TadropDensity,
    TaskVectorMerge,
    Top,
    Variance,
)
from .task import TensorSettings, TensorTask
from .windows import ROW_ELEMENTS

COLUMN_ROWS, COLUMN_ELEMENTS = 64, 1 << 16
"""Statistics of columns are taken over groups of so many rows, of fewer where a group would have more elements."""
RANKED_ROW_BYTES = 32 << 10
"""Counters of digits and of random numbers, whatever the length of a row."""
SAMPLE_ELEMENTS = 1 << 15
"""Of tensors up to this size a sample is everything."""
SAMPLE_SHIFT = 10
"""Of very large tensors, one element in 2^10."""
FOUND_PER_TENSOR = 1 << 18
"""Keys near one cut that are held between passes."""
SurveyKind = str
"""'' (none), 'moments', 'quantiles' or 'threshold'."""


def survey_kind(tasks: Sequence[TensorTask]) -> SurveyKind:
    """Which statistics of whole models the tasks wait for."""
    kind = ""
    for settings in {id(task.settings): task.settings for task in tasks}.values():
        if settings is None or not isinstance(settings.method, TaskVectorMerge):
            continue
        if isinstance(settings.method.selection, ModelThreshold):
            return "threshold"
        for wanted in settings.densities:
            if isinstance(wanted, TadropDensity) and wanted.mean is not None:
                kind = "quantiles" if wanted.statistic == "quantile" or kind == "quantiles" else "moments"
    return kind


def passes_over(settings: TensorSettings | None, is_double: bool) -> int:
    """How often the inputs of a tensor are looked at; the last time its output is written."""
    if settings is None:
        return 1
    levels = 4 if is_double else 2  # of histograms; or a sample and a count, where that settles the cuts
    if isinstance(settings.method, CombinationMerge):
        return 2 if settings.method.coefficients.needs_gram and settings.method.vectors != "rows" else 1
    if not isinstance(settings.method, TaskVectorMerge):
        return 1 + levels if isinstance(settings.method, Fusion) else 1
    passes = 1
    local = [d for d in settings.densities if isinstance(d, TadropDensity) and d.mean is None]
    if any(d.statistic != "quantile" for d in local) or settings.method.rescale in ("l1", "l2"):
        passes += 1
    if any(d.statistic == "quantile" for d in local):
        passes += levels
    selection = settings.method.selection
    if isinstance(selection, Top | Band | Variance):
        in_turn = isinstance(selection, Top) and selection.sequential
        passes += levels * (len(settings.weights) if in_turn else 1)
    kept_sums = (settings.method.rescale in ("l1", "l2")) + (settings.method.weighting == "energy")
    return passes + kept_sums + settings.method.counts_owners


def histograms_per_model(settings: TensorSettings | None) -> int:
    """How many order statistics of one model's magnitudes are searched for in the same reading."""
    if settings is None or not isinstance(settings.method, TaskVectorMerge):
        return 3 if settings is not None and isinstance(settings.method, Fusion) else 1
    quantiles = any(isinstance(d, TadropDensity) and d.statistic == "quantile" for d in settings.densities)
    return 2 if quantiles or isinstance(settings.method.selection, Band) else 1


def grain(task: TensorTask) -> int:
    """Elements that must be seen together, counted from the tensor's first element."""
    selection = selection_of(task.settings)
    if isinstance(selection, Blocks):
        return selection.m
    if task.settings is not None and isinstance(task.settings.method, Elect):
        return 8  # whole bytes of packed masks
    if needs_columns(task):
        return column_rows(task.column_count) * task.column_count
    return task.row_elements if needs_rows(task) else 1


def needs_columns(task: TensorTask) -> bool:
    """Whether each column has statistics; a tensor of one dimension is one column and has those of a whole tensor."""
    method = task.settings.method if task.settings else None
    in_columns = isinstance(method, CombinationMerge) and method.vectors == "columns"
    return in_columns and len(task.base.info.shape) > 1


def column_rows(width: int) -> int:
    """Rows of `width` elements whose products are added one after the other: it decides the order of sums."""
    return max(1, min(COLUMN_ROWS, COLUMN_ELEMENTS // width))


def needs_rows(task: TensorTask) -> bool:
    """Whether rows of the last dimension are folded whole."""
    method = task.settings.method if task.settings else None
    if isinstance(method, CombinationMerge):
        return method.vectors == "rows"
    return isinstance(method, Fusion) or isinstance(selection_of(task.settings), RankedRandom)


def selection_bytes(task: TensorTask, elements: int) -> int:
    """What a selection needs beside the workspace to fold a tile of `elements` elements."""
    if needs_columns(task):  # sums of every group of the tile, one group's again, and sums that wait for others
        width, (pairs, waiting) = task.column_count, _column_sums(task)
        groups = -(-elements // grain(task))
        return 8 * width * (pairs * (groups + 1 + waiting) + groups + 1)
    if not needs_rows(task):
        return 0
    if selection_of(task.settings) is None:  # sums of one row, and numbers for every pair of operands of every row
        pairs = (len(task.models) + 1) ** 2
        return 8 * (3 * task.row_elements + (2 * pairs + 2) * (elements // task.row_elements + 1))
    real_bytes = 8 if task.is_double else 4
    return RANKED_ROW_BYTES + task.row_elements * (2 * 8 + 2 * real_bytes) + elements * 4


def kept_bytes(task: TensorTask) -> int:
    """What is held of a whole tensor between its passes, beside sums of rows of its task vectors."""
    settings = task.settings
    if settings is None:
        return 0
    if isinstance(settings.method, Elect):  # sums of rows of what masks keep
        return 24 * len(task.models) * (task.numel // ROW_ELEMENTS + 1)
    if isinstance(settings.method, Fusion):
        return 8 * (task.numel // task.row_elements)
    if needs_columns(task):  # sums that wait for others, their total, and the coefficients
        pairs, waiting = _column_sums(task)
        return 8 * task.column_count * (pairs * (waiting + 1) + len(task.models))
    searches = passes_over(settings, task.is_double) > 1 and isinstance(settings.method, TaskVectorMerge)
    held = min(task.numel, sample_elements(task.numel) + FOUND_PER_TENSOR)
    return 4 * held * len(task.models) * histograms_per_model(settings) if searches else 0


def _column_sums(task: TensorTask) -> tuple[int, int]:
    """Dot products per column, and how many groups of rows wait beside a gap for their neighbours, at most."""
    models, groups = len(task.models), -(-task.numel // grain(task))
    return models * (models + 1) // 2, min(2 * groups.bit_length(), groups)


def sample_elements(numel: int) -> int:
    """How many elements of a tensor are sampled, about."""
    return max(SAMPLE_ELEMENTS, numel >> SAMPLE_SHIFT)


def selection_of(settings: TensorSettings | None) -> Selection | None:
    """What is selected of task vectors; None where none are merged."""
    return settings.method.selection if settings and isinstance(settings.method, TaskVectorMerge) else None
