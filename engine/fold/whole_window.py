"""A window of a tensor in one call of the kernels, where the tensor is of the usual kind; tile by tile otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..kernels import ROW, Selected, WindowCounts, WindowFold, WindowSum
from ..methods import All, Band, Blocks, ModelThreshold, Random, TaskVectorMerge, Top, Variance
from .combination import normalizer
from .masks import Edge, Ranks, block_keep
from .passes import WindowData
from .tensor import Target, TensorState

NOTHING_ABOVE = (0, 0x7FFFFFFF, 0, 0)
"""The rule of a cut that keeps nothing."""


def _cut_rule(edge: Edge | None, equal_before: int) -> tuple[float, ...]:
    if edge is None:
        return NOTHING_ABOVE
    return edge.cut.level, edge.cut.key, edge.cut.keep_equal, equal_before


def fold_whole(
    state: TensorState, data: WindowData, ranks: Ranks, moments: bool, kept: bool = False
) -> WindowCounts | None:
    """Fold a window with one call, or None where that cannot be: then nothing was done.

    Args:
        state: the tensor.
        data: the window.
        ranks: equals of each model's cut before the window.
        moments: whether sums over task vectors are taken.
        kept: whether they are over what the masks keep; nothing is merged then.
    """
    task, window = state.task, data.window
    settings, selector = task.settings, state.selector
    assert settings is not None and isinstance(settings.method, TaskVectorMerge) and selector is not None
    length, selection = window.own_end - window.own_begin, selector.selection
    whole_rows = window.own_begin % ROW == 0 and (window.own_end % ROW == 0 or window.own_end == task.numel)
    ordered_by_t = all(factors is None for factors in state.factors)
    if not length or not whole_rows or not ordered_by_t:
        return None
    inputs = state.whole_inputs(data)
    if inputs is None:
        return None
    way: Selected
    rules: list[tuple[float, ...]]
    match selection:
        case All():
            way, rules = "all", [() for _ in state.present]
        case Blocks(m=m, drop_tail=drop, overlap_never=never):
            way, rules = "blocks", [(block_keep(selector.densities[i], m), m, never, drop) for i in state.present]
        case Top() | ModelThreshold():
            way, rules = "cut", [_cut_rule(selector.edges[i][0], ranks[i][0]) for i in state.present]
        case Band():
            edges = [zip(selector.edges[i], ranks[i], strict=True) for i in state.present]
            way, rules = "band", [(*_cut_rule(*lower), *_cut_rule(*upper)) for lower, upper in edges]
        case Variance():
            first = state.present[0]
            way, rules = "variance", [_cut_rule(selector.edges[first][0], ranks[first][0]) for _ in state.present]
        case Random():
            way, rules = "random", [(*selector.keys[i], selector.densities[i]) for i in state.present]
        case _:
            return None
    fold = WindowFold(
        first=window.own_begin,
        inputs=inputs,
        moments=moments,
        selection=way,
        rules=rules,
        divisors=[state.divisors[i] for i in state.present],
        sums=[] if kept else [_sum(state, target, out) for target, out in zip(state.targets, data.outs, strict=True)],
        kept=kept,
    )
    return state.kernels.fold_window(fold)


def _sum(state: TensorState, target: Target, out: NDArray[np.uint8]) -> WindowSum:
    settings = target.task.settings
    assert settings is not None and isinstance(settings.method, TaskVectorMerge)
    method = settings.method
    weights: Sequence[float] = method.weights
    voting = weights
    if method.weighting == "energy":
        assert state.energies is not None
        weights, voting = state.energies, [1.0] * len(state.energies)
    normalized = method.normalize and method.consensus == "sum"
    return WindowSum(
        out=out,
        out_dtype=target.task.out_dtype,
        saturate=target.saturate,
        consensus=method.consensus,
        weights=[weights[i] for i in state.present],
        normalize=method.normalize,
        voting=[voting[i] for i in state.present],
        denominator=normalizer(method.weights, state.real) if normalized else 1.0,
        factor=method.lambda_,
    )
