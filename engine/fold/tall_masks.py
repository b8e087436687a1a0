"""One mask for all models, of what enough of them claim: with operators alone, which numpy and torch round alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..kernels import AgreementRule, Array
from .workspace import Workspace

PIECE = 1 << 14
"""Elements at a time, so that what the operators return stays small beside the workspace."""


def mask_agreement(rule: AgreementRule, workspace: Workspace, models: Sequence[int], mask: Array) -> None:
    """Write the mask of a tile, u8.

    Args:
        rule: of which part of the others' sum each model's change must be the larger, and how many must agree.
        workspace: task vectors of the tile; its `sum`, `order` and `claims` are overwritten.
        models: those that have the tensor, in recipe order, as the rule's factors.
        mask: of as many elements as the tile has.
    """
    for begin in range(0, len(mask), PIECE):
        piece = slice(begin, min(begin + PIECE, len(mask)))
        total, others, claims = workspace.sum[piece], workspace.order[piece], workspace.claims[piece]
        total[:] = 0
        claims[:] = 0
        with np.errstate(over="ignore", invalid="ignore"):  # what is no number claims nothing
            for i in models:
                total += workspace.task_vectors[i][piece]
            for i, factor in zip(models, rule.factors, strict=True):
                t = workspace.task_vectors[i][piece]
                others[:] = total
                others -= t
                others *= factor
                claims += (abs(t) >= abs(others)) & (t != 0)
        mask[piece] = claims >= rule.agreeing
