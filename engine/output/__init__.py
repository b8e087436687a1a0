"""Output: what becomes visible, in which order, and whether it is still what was written.

Held by tests/unit/output and tests/faults.
"""

from __future__ import annotations

from .commit import OutputDirectory
from .finished import Finished, check_is_model, check_manifest_is, open_outputs, verify_outputs
from .loading import Loading, check_loading
from .manifest import (
    INPUTS_NAME,
    MANIFEST_NAME,
    PLAN_ATTRIBUTE,
    PLAN_NAME,
    RECEIPTS_FOLDER,
    SURVEY_FOLDER,
    SURVEY_NAME,
    TASKS_NAME,
    TENSORS_NAME,
    FileEntry,
    Manifest,
    manifest_sha256,
)
from .problems import Problem, check_file, inputs_error, problems_error
from .push import push
from .repair import withdraw_damaged
from .tables import read_survey_rows, read_task_rows, read_tensor_rows, write_table
from .verify import Verification
from .verify_inputs import InputsVerification, inputs_bytes, verify_inputs

__all__ = [
    "INPUTS_NAME",
    "MANIFEST_NAME",
    "PLAN_ATTRIBUTE",
    "PLAN_NAME",
    "RECEIPTS_FOLDER",
    "SURVEY_FOLDER",
    "SURVEY_NAME",
    "TASKS_NAME",
    "TENSORS_NAME",
    "FileEntry",
    "Finished",
    "InputsVerification",
    "Loading",
    "Manifest",
    "OutputDirectory",
    "Problem",
    "Verification",
    "check_file",
    "check_is_model",
    "check_loading",
    "check_manifest_is",
    "inputs_bytes",
    "inputs_error",
    "manifest_sha256",
    "open_outputs",
    "problems_error",
    "push",
    "read_survey_rows",
    "read_task_rows",
    "read_tensor_rows",
    "verify_inputs",
    "verify_outputs",
    "withdraw_damaged",
    "write_table",
]
