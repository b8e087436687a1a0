"""What is to be done with a window of a tensor that is merged by task vectors, and who does it.

The work is described once (`fold_of`). One call of the kernels does it where they have one for such a window,
`tile_work` elsewhere; what comes of it is the same, in the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..kernels import ROW, MaskRules, WindowCounts, WindowFold, WindowSum
from ..methods import Sharing, TaskVectorMerge
from ..plan import tiles
from .edges import Cut, EqualLedger
from .inputs import WindowData
from .sums import KeptSquares, RowSums, normalizer
from .tally import Target, WindowTally, add_into
from .tensor import TensorState, method_of
from .tile_work import TileMasks, fold_tiles
from .workspace import Workspace


def masks_of(state: TensorState, data: WindowData, workspace: Workspace, models: Sequence[int]) -> MaskRules:
    """How the masks of these models are made in this window; counts its equals first where nobody did yet."""
    window = data.window.index
    new = [entry for entry in state.masks.ledgers(models) if not entry[-1].published(window)]
    if new:
        _publish_equals(state, data, workspace, models, new)
    return state.masks.rules(models, window)


def _publish_equals(
    state: TensorState,
    data: WindowData,
    workspace: Workspace,
    models: Sequence[int],
    new: Sequence[tuple[int, Cut, EqualLedger]],
) -> None:
    """Count the elements of a window that are equal to some cuts."""
    unranked = {i for i, *_ in new}
    earlier = [i for i in models if i not in unranked] if state.masks.claims_decide else []
    masks = TileMasks(state, earlier, masks_of(state, data, workspace, earlier))
    counts, ignored = [0] * len(new), [0] * state.inputs.count
    for begin, end in tiles(data.window.own_begin, data.window.own_end, state.tile):
        state.inputs.load(data, workspace, begin, end, ignored)
        claims = masks.make(workspace, begin, end) if state.masks.claims_decide else None
        for place, (i, cut, _) in enumerate(new):
            values = state.masks.order_values(workspace, i, begin, end)
            counts[place] += state.kernels.count_equal(values, claims, cut.level, cut.key)
    for (*_, ledger), count in zip(new, counts, strict=True):
        ledger.publish(data.window.index, count)


def fold_of(
    state: TensorState,
    data: WindowData,
    workspace: Workspace,
    moments: Literal["none", "changes", "kept"],
    kept_squares: bool = False,
) -> WindowFold:
    """What is to be done with a window, for all of the state's targets; `moments` and more as in `WindowFold`."""
    return WindowFold(
        masks=masks_of(state, data, workspace, state.present),
        moments=moments,
        divisors=[state.divisors[i] for i in state.present],
        sums=[] if moments == "kept" else [_sum_of(state, target) for target in state.targets],
        kept_squares=kept_squares,
    )


def _sum_of(state: TensorState, target: Target) -> WindowSum:
    method = method_of(target, TaskVectorMerge)
    if method.sharing is not None:
        own = own_factors(method.sharing, state)
        factors = [own[i] for i in state.present]
        return WindowSum(target.task.out_dtype, target.saturate, "shared", weights=factors, voting=factors)
    normalized = method.normalize and method.consensus == "sum"
    denominator = normalizer(method.weights, state.real) if normalized else 1.0
    weights: Sequence[float] = method.weights
    voting = weights
    if method.weighting == "energy":
        weights, voting = state.energies, [1.0] * len(state.energies)
    return WindowSum(
        out_dtype=target.task.out_dtype,
        saturate=target.saturate,
        consensus=method.consensus,
        weights=[weights[i] for i in state.present],
        voting=[voting[i] for i in state.present],
        normalize=method.normalize,
        denominator=denominator,
        factor=method.lambda_,
    )


def own_factors(sharing: Sharing, state: TensorState) -> list[float]:
    """Per model, what the elements that it alone keeps are multiplied by, in fp64."""
    if state.owners is None:
        return [1.0] * len(state.task.models)
    ratios = [shared / max(own, 1) for own, shared in state.owners]
    return [1.0 + sharing.r * min(max(ratio, 0.0), sharing.alpha) for ratio in ratios]


def fold_window(
    state: TensorState,
    work: WindowFold,
    data: WindowData,
    workspace: Workspace,
    rows: RowSums | None,
    kept: KeptSquares | None,
    tally: WindowTally,
) -> None:
    """Do a window's work.

    Args:
        state: the tensor.
        work: what is done.
        data: the window; its outputs are written.
        workspace: of this thread.
        rows: gets the sums of rows, where the work wants any.
        kept: gets those of what masks keep, where the work wants any.
        tally: gets what is counted.
    """
    counts = _fold_whole(state, work, data)
    if counts is None:
        fold_tiles(state, work, data, workspace, rows, kept, tally)
        return
    tally.add_nonfinite(state.inputs.sources, counts.nonfinite.tolist())
    for place, i in enumerate(state.present):
        if rows is not None:
            rows.put(i, data.window.own_begin, counts.rows[place])
        if kept is not None:
            kept.put(i, data.window.own_begin, counts.kept_rows[place, :, None])
    if work.moments != "kept":
        _take_masks(state.present, counts, tally)
    for number, count in enumerate(counts.claimed.tolist()):
        tally.claimed[number] += count
    add_into(tally.overflowed, counts.overflowed.tolist())


def _take_masks(present: Sequence[int], counts: WindowCounts, tally: WindowTally) -> None:
    """Add how much the masks of these models keep, each and in pairs."""
    shared = counts.shared.tolist()
    for place, (i, number) in enumerate(zip(present, counts.kept.tolist(), strict=True)):
        tally.kept[i] += number
        for other, j in enumerate(present[place + 1 :], place + 1):
            tally.overlaps[i, j] += shared[place][other]


def _fold_whole(state: TensorState, work: WindowFold, data: WindowData) -> WindowCounts | None:
    """With one call, or None where that cannot be: then nothing was done."""
    window = data.window
    whole_rows = window.own_begin % ROW == 0 and (window.own_end % ROW == 0 or window.own_end == state.task.numel)
    inputs = state.inputs.whole(data) if whole_rows else None
    return None if inputs is None else state.kernels.fold_window(work, inputs, data.outs)
