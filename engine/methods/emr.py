"""EMR-Merging: one unified task vector, and for each model a mask and a scale (arXiv 2405.17461)."""

from __future__ import annotations

from .stages import Elect


def emr() -> Elect:
    """The unified task vector; the parts of the tasks follow from the same plan (`parts.cut_parts`)."""
    return Elect()
