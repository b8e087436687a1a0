"""Out-of-core, resumable, deterministic merging of fine-tuned checkpoints.

import anabranch
print(anabranch.plan("recipe.yml", "out"))
print(anabranch.merge("recipe.yml", "out"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.run import Execution, compare, merge, merge_all, plan, survey, verify

__all__ = ["Execution", "compare", "merge", "merge_all", "plan", "survey", "verify"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .engine import run

    return getattr(run, name)
