"""EMR-Merging: one unified task vector, and for each model a mask and a scale (arXiv 2405.17461)."""

from __future__ import annotations

from .parameters import Density
from .schema import merge_method
from .stages import All, Elect, Top


@merge_method()
def emr(*, density: Density = (1.0,)) -> Elect:
    """The unified task vector of EMR-Merging (arXiv 2405.17461); the tasks' outputs are cut from the same plan.

    With a density each task vector is cut down to its int(d N) largest elements first.
    """
    return Elect(selection=All() if all(d == 1.0 for d in density) else Top(density))
