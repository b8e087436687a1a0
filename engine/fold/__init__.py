"""Fold: one tensor, in passes over its windows, from task vectors to masks to output bytes.

Held by tests/property/fold, tests/unit/fold and tests/golden.
"""

from __future__ import annotations

from .brackets import order_passes
from .family import TensorFold
from .histograms import quantile_orders
from .inputs import WindowData
from .passes import CountingPass, OptionalPass, Pass, Share, SharePass
from .statistics import HistogramPass, StatisticsPass
from .tally import Target
from .task_vectors import Sums, passes_to_kept_sums
from .tensor import TensorState, set_thresholds
from .tensor_fold import fold_of_tensor
from .workspace import Real, Workspace

__all__ = [
    "CountingPass",
    "HistogramPass",
    "OptionalPass",
    "Pass",
    "Real",
    "Share",
    "SharePass",
    "StatisticsPass",
    "Sums",
    "Target",
    "TensorFold",
    "TensorState",
    "WindowData",
    "Workspace",
    "fold_of_tensor",
    "order_passes",
    "passes_to_kept_sums",
    "quantile_orders",
    "set_thresholds",
]
