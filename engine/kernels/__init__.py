"""Kernels: arithmetic on a tile, written twice, equal bit for bit.

`cpu/` is fast (numba on numpy arrays), `torch/` readable and for any device; both are loaded when they are first used.
Held by tests/property/kernels, tests/unit/kernels and tests/golden.
"""

from __future__ import annotations

from .opening import announce_compiling, make_kernels
from .protocol import Array, Kernels, host, on_device
from .rank_search import (
    LARGEST_KEY,
    LEVELS_32,
    LEVELS_64,
    NO_BRACKET,
    Bracket,
    RankSearch,
    key_value,
    quantile_rank,
    value_key,
)
from .row_sums import ROW, SUM_ROWS, fold_rows
from .window_calls import (
    NEAR_COUNTS,
    NEAR_HIGH,
    NEAR_LOW,
    NEAR_ZERO,
    OF_VARIANCE,
    AgreementRule,
    BandRule,
    BlockRule,
    CutRule,
    KeepAll,
    MaskRules,
    NearCounts,
    RandomRule,
    RankedRule,
    Rule,
    WindowCounts,
    WindowFold,
    WindowInputs,
    WindowLook,
    WindowNear,
    WindowSum,
)

__all__ = [
    "LARGEST_KEY",
    "LEVELS_32",
    "LEVELS_64",
    "NEAR_COUNTS",
    "NEAR_HIGH",
    "NEAR_LOW",
    "NEAR_ZERO",
    "NO_BRACKET",
    "OF_VARIANCE",
    "ROW",
    "SUM_ROWS",
    "AgreementRule",
    "Array",
    "BandRule",
    "BlockRule",
    "Bracket",
    "CutRule",
    "KeepAll",
    "Kernels",
    "MaskRules",
    "NearCounts",
    "RandomRule",
    "RankSearch",
    "RankedRule",
    "Rule",
    "WindowCounts",
    "WindowFold",
    "WindowInputs",
    "WindowLook",
    "WindowNear",
    "WindowSum",
    "announce_compiling",
    "fold_rows",
    "host",
    "key_value",
    "make_kernels",
    "on_device",
    "quantile_rank",
    "value_key",
]
