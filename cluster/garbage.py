"""How often the command looks for garbage."""

from __future__ import annotations

import gc

COLLECT_AFTER = 20_000
"""New objects between two searches, instead of 700: what starting, planning and rows of results make stays anyway, and
130 searches were a tenth of the start."""


def collect_seldom() -> None:
    """Search for garbage a thirtieth as often; circles of objects, which alone wait for it, are small and few here."""
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])
