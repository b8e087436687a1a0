"""Output: what becomes visible, in which order, and whether it is still what was written.

Held by tests/unit/output and tests/faults.
"""

from __future__ import annotations

from .commit import OutputDirectory
from .loading import Loading, check_loading
from .manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    PLAN_ATTRIBUTE,
    PLAN_NAME,
    RECEIPTS_FOLDER,
    SURVEY_FOLDER,
    TASKS_NAME,
    TENSORS_NAME,
    Manifest,
)
from .tables import write_table
from .verify import Problem, Verification, problems_error, read_manifest, verify

__all__ = [
    "INDEX_NAME",
    "MANIFEST_NAME",
    "PLAN_ATTRIBUTE",
    "PLAN_NAME",
    "RECEIPTS_FOLDER",
    "SURVEY_FOLDER",
    "TASKS_NAME",
    "TENSORS_NAME",
    "Loading",
    "Manifest",
    "OutputDirectory",
    "Problem",
    "Verification",
    "check_loading",
    "problems_error",
    "read_manifest",
    "verify",
    "write_table",
]
