"""Fold: one tensor, in passes over its windows, from task vectors to masks to output bytes.

Held by tests/property/fold, tests/unit/fold and tests/golden.
"""

from __future__ import annotations

from .brackets import order_passes
from .histograms import quantile_orders
from .passes import OptionalPass, Pass, WindowData
from .statistics import HistogramPass, StatisticsPass
from .tensor import Target, TensorState, set_thresholds
from .tensor_fold import TensorFold
from .workspace import Real, Workspace

__all__ = [
    "HistogramPass",
    "OptionalPass",
    "Pass",
    "Real",
    "StatisticsPass",
    "Target",
    "TensorFold",
    "TensorState",
    "WindowData",
    "Workspace",
    "order_passes",
    "quantile_orders",
    "set_thresholds",
]
