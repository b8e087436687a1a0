"""Methods: what a merge method is, a function that makes stages, and the formulas behind them.

Held by tests/unit/methods, tests/golden and tests/property/fold.
"""

from __future__ import annotations

from . import tadrop
from .coefficients import (
    Karcher,
    ModelStock,
    MultiSlerp,
    NoDirection,
    NuSlerp,
    Slerp,
    Weights,
)
from .demands import SurveyKind
from .parameters import (
    Density,
    Enlarge,
    Lambda,
    Normalize,
    RescaleNorm,
    Share,
    Weight,
    divisor,
)
from .registry import (
    METHODS,
    NoMethod,
    find_method,
)
from .schema import (
    FLOAT32_MAX,
    SAME_FOR_ALL_TENSORS,
    HasBase,
    Means,
    MergeMethod,
    MethodSchema,
    Parameter,
    PerModel,
    Range,
    merge_method,
)
from .stages import (
    Agreement,
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
    TopInTurn,
    Variance,
)
from .tadrop import (
    TadropDensity,
)

__all__ = [
    "FLOAT32_MAX",
    "METHODS",
    "SAME_FOR_ALL_TENSORS",
    "Agreement",
    "All",
    "Band",
    "Beyond",
    "Blocks",
    "CombinationMerge",
    "Density",
    "Elect",
    "Enlarge",
    "Fusion",
    "HasBase",
    "Karcher",
    "Lambda",
    "Means",
    "MergeMethod",
    "Method",
    "MethodSchema",
    "ModelStock",
    "ModelThreshold",
    "MultiSlerp",
    "NearSwap",
    "NoDirection",
    "NoMethod",
    "Normalize",
    "NuSlerp",
    "Parameter",
    "PerModel",
    "Random",
    "Range",
    "RankedRandom",
    "Rescale",
    "RescaleNorm",
    "Selection",
    "Share",
    "Sharing",
    "Slerp",
    "SurveyKind",
    "TadropDensity",
    "TaskVectorMerge",
    "Top",
    "TopInTurn",
    "Variance",
    "Weight",
    "Weights",
    "divisor",
    "find_method",
    "merge_method",
    "tadrop",
]
