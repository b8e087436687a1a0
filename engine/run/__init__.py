"""Run: one process brings plans to their manifests within a memory limit.

Held by tests/unit/run, tests/property/run and tests/e2e.
"""

from __future__ import annotations

from .local import LocalRunner
from .memory import MemoryPlan, Surroundings, plan_memory, plan_shared_memory
from .meter import PHASES, Meter, Phase, Stage
from .protocols import Member, Outcome, Progress, Runner
from .runner import run
from .shard import Shard, ShardWorker
from .stages import Stages
from .survey import SurveyWorker
from .surveys import survey_bytes
from .work_items import fold_bytes, shared_fold_bytes, surroundings

__all__ = [
    "PHASES",
    "LocalRunner",
    "Member",
    "MemoryPlan",
    "Meter",
    "Outcome",
    "Phase",
    "Progress",
    "Runner",
    "Shard",
    "ShardWorker",
    "Stage",
    "Stages",
    "Surroundings",
    "SurveyWorker",
    "fold_bytes",
    "plan_memory",
    "plan_shared_memory",
    "run",
    "shared_fold_bytes",
    "surroundings",
    "survey_bytes",
]
