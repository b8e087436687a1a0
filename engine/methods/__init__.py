"""Methods: what a merge method is, a composition of stages, and the formulas behind it.

Held by tests/unit/methods, tests/golden and tests/property/fold.
"""

from __future__ import annotations

from . import tadrop
from .coefficients import NoDirection
from .registry import BUILDERS
from .stages import (
    All,
    Band,
    Beyond,
    Blocks,
    CombinationMerge,
    Elect,
    Fusion,
    Method,
    ModelThreshold,
    NearSwap,
    Random,
    RankedRandom,
    Rescale,
    Selection,
    Sharing,
    TaskVectorMerge,
    Top,
    Variance,
)
from .tadrop import TadropDensity

__all__ = [
    "BUILDERS",
    "All",
    "Band",
    "Beyond",
    "Blocks",
    "CombinationMerge",
    "Elect",
    "Fusion",
    "Method",
    "ModelThreshold",
    "NearSwap",
    "NoDirection",
    "Random",
    "RankedRandom",
    "Rescale",
    "Selection",
    "Sharing",
    "TadropDensity",
    "TaskVectorMerge",
    "Top",
    "Variance",
    "tadrop",
]
