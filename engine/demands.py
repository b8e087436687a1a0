"""What a method must see of a tensor before it can be merged: how often, how many elements at once."""

from __future__ import annotations

from collections.abc import Sequence

from .methods.stages import Blocks, CombinationMerge, ModelThreshold, TaskVectorMerge, Top
from .settings import TadropDensity
from .task import TensorSettings, TensorTask

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
    if isinstance(settings.method, CombinationMerge):
        return 2 if settings.method.coefficients.needs_gram else 1
    if not isinstance(settings.method, TaskVectorMerge):
        return 1
    levels = 4 if is_double else 2
    passes = 1
    local = [d for d in settings.densities if isinstance(d, TadropDensity) and d.mean is None]
    if any(d.statistic != "quantile" for d in local) or settings.method.rescale in ("l1", "l2"):
        passes += 1
    if any(d.statistic == "quantile" for d in local):
        passes += levels
    if isinstance(settings.method.selection, Top):
        passes += levels * (len(settings.weights) if settings.method.selection.sequential else 1)
    return passes + (1 if settings.method.rescale in ("l1", "l2") else 0)


def grain(settings: TensorSettings | None) -> int:
    """Elements that must be seen together."""
    if settings is None or not isinstance(settings.method, TaskVectorMerge):
        return 1
    selection = settings.method.selection
    return selection.m if isinstance(selection, Blocks) else 1
