"""Plan: what becomes of every tensor, which bytes it takes, and which files come of it; pure but for `inputs`.

Held by tests/unit/plan and tests/property/plan.
"""

from __future__ import annotations

from .demands import (
    FOUND_PER_TENSOR,
    SAMPLE_ELEMENTS,
    column_rows,
    cut_elements,
    grain,
    histograms_per_model,
    kept_bytes,
    needs_columns,
    needs_rows,
    passes_over,
    sample_elements,
    selection_bytes,
)
from .inputs import Inputs, inputs_of_parts, open_inputs
from .plan import NUMERICS, Plan, plan_id
from .records import ElectedRow, InputRange, ModelRow, Receipt, Record, SurveyPart, SurveyRow, TensorRow, ranges_digest
from .shared_reading import SharedReading, share_reading, why_apart
from .side_files import SideFile
from .survey import Round, Survey, decide_densities, narrow_thresholds, redundancy, threshold_searches
from .task import TensorTask
from .unchanged import check_changes
from .windows import (
    Window,
    cut_stretch,
    cut_windows,
    joint_window_elements,
    least_joint_elements,
    tile_elements,
    tiles,
    window_elements,
)

__all__ = [
    "FOUND_PER_TENSOR",
    "NUMERICS",
    "SAMPLE_ELEMENTS",
    "ElectedRow",
    "InputRange",
    "Inputs",
    "ModelRow",
    "Plan",
    "Receipt",
    "Record",
    "Round",
    "SharedReading",
    "SideFile",
    "Survey",
    "SurveyPart",
    "SurveyRow",
    "TensorRow",
    "TensorTask",
    "Window",
    "check_changes",
    "column_rows",
    "cut_elements",
    "cut_stretch",
    "cut_windows",
    "decide_densities",
    "grain",
    "histograms_per_model",
    "inputs_of_parts",
    "joint_window_elements",
    "kept_bytes",
    "least_joint_elements",
    "narrow_thresholds",
    "needs_columns",
    "needs_rows",
    "open_inputs",
    "passes_over",
    "plan_id",
    "ranges_digest",
    "redundancy",
    "sample_elements",
    "selection_bytes",
    "share_reading",
    "threshold_searches",
    "tile_elements",
    "tiles",
    "why_apart",
    "window_elements",
]
