"""Run: one process brings plans to their manifests within a memory limit.

Held by tests/unit/run, tests/property/run and tests/e2e.
"""

from __future__ import annotations

from .commands import compare, merge, merge_all, merge_reading, plan, survey, told_kernels, verify
from .compare import Comparison, open_side
from .comparison_report import ComparedTensor, ComparisonReport
from .energies import ModelEnergy, take_energies
from .execution import Execution
from .lanes import Lanes, Stretch
from .machine import available_cores, process_began
from .memory import MemoryPlan
from .merge_report import MergeReport
from .meter import Meter, Phase
from .part_writer import Part, PartRecord
from .parts import begin_shard, part_worker
from .places import Place, Places
from .prepare import TABLES_BYTES_PER_TENSOR, PreparedMerge, check_disk, outputs_of, prepare_all, share_readings
from .protocols import Member, Runner, Silent
from .repair import Repair, repair
from .shard import Shard
from .survey_report import SurveyReport
from .wording import counted, duration
from .work import Done, R, Work, Worker, receipts_of

__all__ = [
    "TABLES_BYTES_PER_TENSOR",
    "ComparedTensor",
    "Comparison",
    "ComparisonReport",
    "Done",
    "Execution",
    "Lanes",
    "Member",
    "MemoryPlan",
    "MergeReport",
    "Meter",
    "ModelEnergy",
    "Part",
    "PartRecord",
    "Phase",
    "Place",
    "Places",
    "PreparedMerge",
    "R",
    "Repair",
    "Runner",
    "Shard",
    "Silent",
    "Stretch",
    "SurveyReport",
    "Work",
    "Worker",
    "available_cores",
    "begin_shard",
    "check_disk",
    "compare",
    "counted",
    "duration",
    "merge",
    "merge_all",
    "merge_reading",
    "open_side",
    "outputs_of",
    "part_worker",
    "plan",
    "prepare_all",
    "process_began",
    "receipts_of",
    "repair",
    "share_readings",
    "survey",
    "take_energies",
    "told_kernels",
    "verify",
]
