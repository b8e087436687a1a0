"""Outputs of a window that is folded in one call: those of one operation after the other, for any finite codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.kernels.window_calls import (
    BlockRule,
    CutRule,
    KeepAll,
    MaskRules,
    Rule,
    WindowFold,
    WindowInputs,
    WindowSum,
)

from ..kernel_cases import codes, examples

KERNELS = CpuKernels()
Array = npt.NDArray[Any]
RULES: dict[str, Rule] = {
    "all": KeepAll(),
    "blocks": BlockRule(3, 8, False, False),
    "long blocks": BlockRule(20, 64, False, False),
    "cut": CutRule(0, int(np.float32(0.004).view(np.int32)), 0, 0),
    "cut of equals": CutRule(0, 0, 5, 2),
}


def operations(fold: WindowFold, raws: list[Array], each: WindowSum) -> tuple[Array, int, list[int]]:
    """One output, how much is beyond its range, and what masks keep: one operation of the kernels after the other."""
    size, k = len(raws[0]) // 2, KERNELS
    base, total, signs, weights = (np.zeros(size, np.float32) for _ in range(4))
    claims, active, agreeing = (np.zeros(size, np.uint8) for _ in range(3))
    k.decode(raws[0], "BF16", base)
    vectors, masks = [], []
    for raw, rule in zip(raws[1:], fold.masks.rules, strict=True):
        t, mask = np.empty(size, np.float32), np.ones(size, np.uint8)
        k.task_vector(raw, "BF16", base, t)
        if isinstance(rule, BlockRule):
            k.mask_blocks(t, rule.n, rule.m, claims, mask, rule.overlap_never, rule.drop_tail)
        elif isinstance(rule, CutRule):
            k.mask_top(t, None, rule.level, rule.key, rule.keep_equal, rule.equal_before, mask)
        vectors.append(t)
        masks.append(mask)
    for t, mask, divisor, voting in zip(vectors, masks, fold.divisors, each.voting, strict=True):
        k.accumulate(total, t, mask, divisor, voting, active)
    if each.consensus != "sum":
        signs[:], total[:] = total, 0
        for t, mask, divisor, weight in zip(vectors, masks, fold.divisors, each.weights, strict=True):
            k.accumulate_agreeing(total, weights, agreeing, signs, t, mask, divisor, weight)
        if each.consensus == "overlap_ties":
            k.divide(total, agreeing.astype(np.float32))
        elif each.normalize:
            k.divide(total, weights)
    elif each.normalize:
        k.divide(total, each.denominator)
    if each.factor != 1.0:
        k.scale(total, each.factor)
    out = np.empty(2 * size, np.uint8)
    beyond = k.finish(raws[0], "BF16", base, total, active, "BF16", each.saturate, out)
    return out, beyond, [int(mask.sum()) for mask in masks]


@pytest.mark.parametrize("models", [1, 2, 3, 5])
@pytest.mark.parametrize("consensus", ["sum", "ties", "overlap_ties"])
@examples(30)
@given(
    rule=st.sampled_from(sorted(RULES)),
    size=st.sampled_from([1, 63, 4096, 9000]),
    seed=st.integers(0, 2**32 - 1),
    normalize=st.booleans(),
    saturate=st.booleans(),
    divided=st.booleans(),
    factor=st.sampled_from([1.0, 0.7, -1e30]),
    denominator=st.sampled_from([0.0, 1.0, 1.7]),
    huge=st.booleans(),
)
def test_as_by_operations(
    models: int,
    consensus: Any,
    rule: str,
    size: int,
    seed: int,
    normalize: bool,
    saturate: bool,
    divided: bool,
    factor: float,
    denominator: float,
    huge: bool,
) -> None:
    """Sums overflow, cancel and become NaN here; task vectors may be infinite, and weights beyond fp32."""
    rng = np.random.default_rng(seed)
    raws = [codes(rng, "BF16", size, finite=True)]
    for _ in range(models):
        raw = codes(rng, "BF16", size, finite=True) if rng.random() < 0.5 else raws[0].copy()
        same = np.repeat(rng.random(size) < 0.5, 2)
        raws.append(np.where(same, raws[0], raw))
    weights = [float(weight) for weight in rng.normal(size=models) * (1e38 if huge else 1.0)]
    if huge:
        weights[0] = 1e39
    voting = [1.0] * models if consensus != "sum" and rng.random() < 0.5 else weights
    each = WindowSum("BF16", saturate, consensus, weights, voting, normalize, denominator, factor)
    divisors = [0.3 + i if divided else 1.0 for i in range(models)]
    claims: Any = "decide" if "blocks" in rule else "ignored"
    fold = WindowFold(MaskRules([RULES[rule]] * models, claims), "none", divisors, [each])
    with np.errstate(all="ignore"):
        expected, beyond, kept = operations(fold, raws, each)
    for _ in range(2):  # small windows use the call of the one before
        out = np.empty(2 * size, np.uint8)
        with np.errstate(all="ignore"):
            counts = KERNELS.fold_window(fold, WindowInputs(0, raws, ["BF16"] * (models + 1)), [out])
        assert counts is not None
        np.testing.assert_array_equal(out.view(np.uint16), expected.view(np.uint16))
        assert counts.overflowed.tolist() == [beyond]
        assert counts.kept.tolist() == kept


def test_small_windows_of_one_size_share_nothing_but_their_call() -> None:
    """Factors that are equal but for the sign of 0, and windows that lie elsewhere, one after the other."""
    kernels, rng = CpuKernels(), np.random.default_rng(1)
    base = np.full(64, 0x8000, np.uint16)  # -0
    for factor in (0.5, -0.0, 0.0, -0.0, 0.5, 0.7, 0.5):
        raws = [base.view(np.uint8), codes(rng, "BF16", 64, finite=True)]
        each = WindowSum("BF16", False, "sum", [0.6], [0.6], factor=factor)
        fold = WindowFold(MaskRules([KeepAll()]), "changes", [1.0], [each])
        found = []
        for own in (kernels, CpuKernels()):
            out = np.empty(128, np.uint8)
            counts = own.fold_window(fold, WindowInputs(0, raws, ["BF16"] * 2), [out])
            assert counts is not None
            found.append((out.tobytes(), counts.rows.tobytes(), counts.kept.tolist(), counts.nonfinite.tolist()))
        assert found[0] == found[1]


def test_equals_of_a_cut_are_counted_anew_in_every_small_window() -> None:
    kernels, base = CpuKernels(), np.zeros(64, np.uint16)
    ones = np.full(64, 0x3F80, np.uint16)
    fold = WindowFold(
        MaskRules([CutRule(0, int(np.float32(1).view(np.int32)), 10, 0)]),
        "changes",
        [1.0],
        [WindowSum("BF16", False, "sum", [1.0], [1.0])],
    )
    for _ in range(3):
        out = np.empty(128, np.uint8)
        counts = kernels.fold_window(
            fold, WindowInputs(0, [base.view(np.uint8), ones.view(np.uint8)], ["BF16"] * 2), [out]
        )
        assert counts is not None and counts.kept.tolist() == [10]
        assert (out.view(np.uint16) != 0).sum() == 10
