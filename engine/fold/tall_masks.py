"""One mask for all models, of what enough of them claim: with operators alone, which numpy and torch round alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..methods import Agreement
from .workspace import Workspace

PIECE = 1 << 14
"""Elements at a time, so that what the operators return stays small beside the workspace."""


def mask_agreement(selection: Agreement, workspace: Workspace, models: Sequence[int], length: int) -> None:
    """Write the masks of a tile, u8 [length], the same for every model.

    Args:
        selection: whose masks count, and how many must agree.
        workspace: task vectors of the tile; its `sum`, `order` and `claims` are overwritten.
        models: those that have the tensor, in recipe order.
        length: elements of the tile.
    """
    first = workspace.masks[models[0]]
    for begin in range(0, length, PIECE):
        piece = slice(begin, min(begin + PIECE, length))
        total, others, claims = workspace.sum[piece], workspace.order[piece], workspace.claims[piece]
        total[:] = 0
        claims[:] = 0
        with np.errstate(over="ignore", invalid="ignore"):  # what is no number claims nothing
            for i in models:
                total += workspace.task_vectors[i][piece]
            for i in models:
                t = workspace.task_vectors[i][piece]
                others[:] = total
                others -= t
                others *= selection.lambdas[i]
                claims += (abs(t) >= abs(others)) & (t != 0)
        first[piece] = claims >= selection.consensus
    for i in models[1:]:
        workspace.masks[i][:length] = first[:length]
