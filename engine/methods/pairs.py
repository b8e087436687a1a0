"""Methods of a base and one model that look at each element by itself."""

from __future__ import annotations

from .stages import NearSwap


def nearswap(*, t: float) -> NearSwap:
    """The model's value where it is within t of the base's, and t nearer to it elsewhere (mergekit's nearswap)."""
    return NearSwap(t)
