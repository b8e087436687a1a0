"""A window's work tile by tile, with one operation of the kernels after the other: any dtype, any device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..kernels import (
    AgreementRule,
    Array,
    BandRule,
    BlockRule,
    CutRule,
    KeepAll,
    MaskRules,
    RandomRule,
    RankedRule,
    Rule,
    WindowFold,
    WindowSum,
)
from ..plan import tiles
from .inputs import WindowData
from .rounding import write_merged
from .sums import KeptSquares, RowSums
from .tall_masks import mask_agreement
from .tally import WindowTally
from .tensor import TensorState
from .workspace import Workspace


class TileMasks:
    """Makes the masks of a window's tiles, which come in order.

    Args:
        state: the tensor.
        models: whose masks are made, in the order in which they choose.
        masks: by which rules; they speak of these models.
        kept: gets sums of squares of what is kept where a mask comes with divided task vectors: nothing else sees what
            they were.
    """

    def __init__(
        self, state: TensorState, models: Sequence[int], masks: MaskRules, kept: KeptSquares | None = None
    ) -> None:
        self._state = state
        self._kept = kept if state.masks.divides else None
        self._models = models
        self._masks = masks
        self._equals: dict[tuple[int, str], int] = {}
        """By model and edge, how many elements of the window's tiles so far are equal to the cut's key."""

    def make(self, workspace: Workspace, begin: int, end: int) -> Array:
        """Write the masks of elements [begin, end); returns the claims that they make together (u8)."""
        length = end - begin
        claims = workspace.claims[:length]
        claims[:] = 0
        own = 1 if self._masks.one_for_all else len(self._models)
        for i, rule in zip(self._models[:own], self._masks.rules, strict=False):
            self._select(i, rule, workspace, begin, end)
        for i in self._models[own:]:
            workspace.masks[i][:length] = workspace.masks[self._models[0]][:length]
        return claims

    def _select(self, i: int, rule: Rule, workspace: Workspace, begin: int, end: int) -> None:
        """One model's mask; where claims matter it is added to them."""
        kernels, length = self._state.kernels, end - begin
        t, mask = workspace.task_vectors[i][:length], workspace.masks[i][:length]
        claims, values = workspace.claims[:length], self._state.masks.order_values(workspace, i, begin, end)
        match rule:
            case KeepAll():
                mask[:] = 1
            case BlockRule(n, m, overlap_never, drop_tail):
                kernels.mask_blocks(values, n, m, claims, mask, overlap_never, drop_tail)
            case CutRule():
                self._cut((i, "lower"), rule, values, claims if self._masks.claims == "decide" else None, mask)
                if self._masks.claims != "ignored":
                    claims += mask
            case BandRule(lower, upper):
                spare = workspace.spare[:length]
                self._cut((i, "lower"), lower, values, None, mask)
                self._cut((i, "upper"), upper, values, None, spare)
                mask ^= spare  # what lies above the upper cut lies above the lower one
            case RandomRule(key0, key1, probability):
                kernels.mask_random(key0, key1, begin, probability, mask)
            case RankedRule(key0, key1, low, span, row, divides):
                before = workspace.sum[:length]
                if self._kept is not None:
                    before[:] = t
                kernels.mask_ranked(values, row, key0, key1, begin, low, span, mask, t if divides else None)
                if self._kept is not None:
                    before *= mask
                    self._kept.add_values(i, before, workspace, begin, end)
            case AgreementRule():
                mask_agreement(rule, workspace, self._models, mask)

    def _cut(self, edge: tuple[int, str], rule: CutRule, values: Array, claims: Array | None, mask: Array) -> None:
        """What lies above an edge of a model; its equals are counted on."""
        before = rule.equal_before + self._equals.get(edge, 0)
        equal = self._state.kernels.mask_top(values, claims, rule.level, rule.key, rule.keep_equal, before, mask)
        self._equals[edge] = before + equal - rule.equal_before

    def count(self, workspace: Workspace, length: int, tally: WindowTally) -> None:
        """Add what the masks of a tile keep, per model and per pair of models."""
        if self._masks.keeps_all:
            for i in self._models:
                tally.kept[i] += length
            for pair in tally.overlaps:
                tally.overlaps[pair] += length
        else:
            count_masks(self._state, workspace, length, tally)


def count_masks(state: TensorState, workspace: Workspace, length: int, tally: WindowTally) -> None:
    """Add what the masks in the workspace keep, per model, per pair of models, and by how many have it."""
    for i in state.present:
        tally.kept[i] += state.kernels.count(workspace.masks[i][:length])
    for a, b in tally.overlaps:
        masks = workspace.masks[a][:length], workspace.masks[b][:length]
        tally.overlaps[a, b] += state.kernels.pair_overlap(*masks)
    if 3 <= len(state.present) < 256:
        claims, alike = workspace.spare[:length], workspace.agreeing[:length]
        claims[:] = 0
        for i in state.present:
            claims += workspace.masks[i][:length]
        for number in range(3, len(tally.claimed)):
            alike[:] = claims == number
            tally.claimed[number] += state.kernels.count(alike)


def fold_tiles(
    state: TensorState,
    work: WindowFold,
    data: WindowData,
    workspace: Workspace,
    rows: RowSums | None,
    kept: KeptSquares | None,
    tally: WindowTally,
) -> None:
    """What `Kernels.fold_window` does; sums of rows are added to `rows` and `kept`, where `work` wants any."""
    masks = TileMasks(state, state.present, work.masks, kept)
    for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
        length = end - begin
        state.inputs.load(data, workspace, begin, end, tally.nonfinite)
        if rows is not None and work.moments == "changes":
            rows.add(workspace, begin, end)
        if not work.masks.keeps_all:
            masks.make(workspace, begin, end)
        if rows is not None and work.moments == "kept":
            if not work.masks.keeps_all:
                keep_masked(state, workspace, length)
            rows.add(workspace, begin, end)
            continue
        masks.count(workspace, length, tally)
        for place, each in enumerate(work.sums):
            combine(state, work, each, workspace, length)
            tally.overflowed[place] += write_merged(state, data, workspace, begin, end, place)
        if kept is not None and not state.masks.divides:
            keep_masked(state, workspace, length)
            kept.add(workspace, begin, end)


def keep_masked(state: TensorState, workspace: Workspace, length: int) -> None:
    """Task vectors *= masks."""
    with np.errstate(invalid="ignore"):  # an infinity that is not kept has been counted, and stops the merge later
        for i in state.present:
            t = workspace.task_vectors[i][:length]
            t *= workspace.masks[i][:length]


def combine(state: TensorState, work: WindowFold, each: WindowSum, workspace: Workspace, length: int) -> None:
    """Sum over models in recipe order, starting from 0; under a sign consensus only what agrees (section 1.2).

    Leaves the first `length` elements of the workspace's `sum` and `active`; task vectors and masks stay.
    """
    kernels, total, active = state.kernels, workspace.sum[:length], workspace.active[:length]
    total[:] = 0
    active[:] = 0
    vectors = [workspace.task_vectors[i][:length] for i in state.present]
    masks = [None if work.masks.keeps_all else workspace.masks[i][:length] for i in state.present]
    if each.consensus == "shared":
        claims = workspace.claims[:length]
        for t, mask, weight in zip(vectors, masks, each.weights, strict=True):
            kernels.accumulate_shared(total, t, mask, claims, weight, active)
        return
    for t, mask, divisor, weight in zip(vectors, masks, work.divisors, each.voting, strict=True):
        kernels.accumulate(total, t, mask, divisor, weight, active)
    if each.consensus != "sum":
        signs, weight_sum = workspace.signs[:length], workspace.weight_sum[:length]
        agreeing = workspace.agreeing[:length]
        signs[:] = total
        for array in (total, weight_sum, agreeing):
            array[:] = 0
        for t, mask, divisor, weight in zip(vectors, masks, work.divisors, each.weights, strict=True):
            kernels.accumulate_agreeing(total, weight_sum, agreeing, signs, t, mask, divisor, weight)
        if each.consensus == "overlap_ties":
            weight_sum[:] = agreeing
            kernels.divide(total, weight_sum)
        elif each.normalize:
            kernels.divide(total, weight_sum)
    elif each.normalize:
        kernels.divide(total, each.denominator)
    if each.factor != 1.0:
        kernels.scale(total, each.factor)
