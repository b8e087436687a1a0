"""A window of a tensor in one call of the kernels, where the tensor is of the usual kind; tile by tile otherwise."""

from __future__ import annotations

from typing import Literal

from .average import normalizer
from .kernels import ROW, WindowCounts, WindowFold
from .methods.stages import All, Blocks, ModelThreshold, Random, TaskVectorMerge, Top
from .select import Edge, Ranks, block_keep
from .tensor import TensorState, WindowData

NOTHING_ABOVE = (0, 0x7FFFFFFF, 0, 0)
"""The rule of a cut that keeps nothing."""


def _cut_rule(edge: Edge | None, equal_before: int) -> tuple[float, ...]:
    if edge is None:
        return NOTHING_ABOVE
    return edge.cut.level, edge.cut.key, edge.cut.keep_equal, equal_before


def fold_whole(state: TensorState, data: WindowData, ranks: Ranks, moments: bool) -> WindowCounts | None:
    """Fold a window with one call, or None where that cannot be: then nothing was done.

    Args:
        state: the tensor, with one target.
        data: the window.
        ranks: equals of each model's cut before the window.
        moments: whether sums over task vectors are taken.
    """
    task, window = state.task, data.window
    settings, selector = state.targets[0].task.settings, state.selector
    if len(state.targets) != 1:
        return None
    assert settings is not None and isinstance(settings.method, TaskVectorMerge) and selector is not None
    length, method, selection = window.own_end - window.own_begin, settings.method, selector.selection
    whole_rows = window.own_begin % ROW == 0 and (window.own_end % ROW == 0 or window.own_end == task.numel)
    ordered_by_t = all(factors is None for factors in state.factors)
    if not length or not whole_rows or not ordered_by_t or method.weighting != "given":
        return None
    inputs = state.whole_inputs(data)
    if inputs is None:
        return None
    way: Literal["all", "blocks", "cut", "random"]
    rules: list[tuple[float, ...]]
    match selection:
        case All():
            way, rules = "all", [() for _ in state.present]
        case Blocks(m=m, drop_tail=drop, overlap_never=never):
            way, rules = "blocks", [(block_keep(selector.densities[i], m), m, never, drop) for i in state.present]
        case Top(sequential=False) | ModelThreshold():
            way, rules = "cut", [_cut_rule(selector.edges[i][0], ranks[i][0]) for i in state.present]
        case Random():
            way, rules = "random", [(*selector.keys[i], selector.densities[i]) for i in state.present]
        case _:
            return None
    weights = settings.weights
    normalized = method.normalize and method.consensus == "sum"
    return state.kernels.fold_window(
        WindowFold(
            first=window.own_begin, inputs=inputs,
            out=data.outs[0], out_dtype=state.targets[0].task.out_dtype, saturate=state.targets[0].saturate,
            moments=moments, selection=way, rules=rules,
            consensus=method.consensus,
            weights=[weights[i] for i in state.present],
            divisors=[state.divisors[i] for i in state.present],
            normalize=method.normalize,
            denominator=normalizer(weights, state.real) if normalized else 1.0,
            factor=method.lambda_,
        )
    )  # fmt: skip
