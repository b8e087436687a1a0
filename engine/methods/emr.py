"""EMR-Merging: one unified task vector, and for each model a mask and a scale (arXiv 2405.17461)."""

from __future__ import annotations

from .schema import merge_method
from .stages import Elect


@merge_method()
def emr() -> Elect:
    """The unified task vector of EMR-Merging (arXiv 2405.17461); the tasks' outputs are cut from the same plan."""
    return Elect()
