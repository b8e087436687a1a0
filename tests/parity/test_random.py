"""Methods that drop at random: no element can be compared, but what is kept, how much, and how it is enlarged can."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from anabranch.engine.methods import METHODS

from ..merging import load_output, merge, write_recipe
from .checkpoints import HIDDEN
from .conftest import Peer
from .recipes import Case, random_case
from .test_differences import checkpoint

pytestmark = pytest.mark.parity

DENSITY, EPSILON = 0.4, 0.3
METHODS_HERE = [method for method in ("dare_linear", "dare_ties", "della_linear", "della") if method in METHODS]
CASES = [random_case(method, DENSITY, EPSILON if method.startswith("della") else None) for method in METHODS_HERE]
by_method = pytest.mark.parametrize("case", CASES, ids=METHODS_HERE)

Changes = list[tuple[torch.Tensor, torch.Tensor]]


def changes(peer: Peer, output: Path) -> Changes:
    """For each matrix, the model's difference to the base and what of it the merge made, in fp64."""
    base, tuned, merged = checkpoint(peer, "llama/base"), checkpoint(peer, "llama/a"), load_output(output)
    return [
        (tuned[name].double() - before.double(), merged[name].double() - before.double())
        for name, before in base.items()
        if before.dim() == 2
    ]


def factors(pairs: Changes) -> Iterator[torch.Tensor]:
    """What each kept change was multiplied with; only changes so large that fp32 shows it to three digits."""
    for change, made in pairs:
        large = (change.abs() > 1e-3) & (made != 0)
        yield made[large] / change[large]


def expect_share(kept: int, of: int, share: float) -> None:
    """Within five standard deviations of independent draws."""
    assert abs(kept - share * of) < 5 * math.sqrt(of * share * (1 - share))


@by_method
def test_both_keep_the_same_share(case: Case, peer: Peer, tmp_path: Path) -> None:
    merge(peer.recipe(case), tmp_path / "out")
    for output in (tmp_path / "out", peer.output(case)):
        pairs = changes(peer, output)
        expect_share(sum(int((made != 0).sum()) for _, made in pairs), sum(made.numel() for _, made in pairs), DENSITY)


@by_method
def test_ours_divides_by_the_probability_theirs_restores_the_l1_norm(case: Case, peer: Peer, tmp_path: Path) -> None:
    merge(peer.recipe(case), tmp_path / "out")
    for factor in factors(changes(peer, tmp_path / "out")):
        if case.name.startswith("dare"):
            assert torch.allclose(factor, torch.full_like(factor, 1 / DENSITY), rtol=1e-3)
        else:
            assert ((factor > 0.999 / (DENSITY + EPSILON)) & (factor < 1.001 / (DENSITY - EPSILON))).all()
            assert factor.max() > 1.2 * factor.min()
    theirs = changes(peer, peer.output(case))
    for (change, made), factor in zip(theirs, factors(theirs), strict=True):
        restored = change.abs().sum() / change[made != 0].abs().sum()
        assert torch.allclose(factor, restored.expand_as(factor), rtol=1e-3)


@by_method
def test_rescale_norm_l1_is_theirs(case: Case, peer: Peer, tmp_path: Path) -> None:
    recipe = case.data | {"parameters": case.data["parameters"] | {"rescale_norm": "l1"}}
    merge(write_recipe(peer.folder / f"l1_{case.file_name}.yml", recipe), tmp_path / "out")
    pairs = changes(peer, tmp_path / "out")
    for (change, made), factor in zip(pairs, factors(pairs), strict=True):
        restored = change.abs().sum() / change[made != 0].abs().sum()
        assert torch.allclose(factor, restored.expand_as(factor), rtol=1e-3)


@by_method
def test_both_expect_the_whole_change(case: Case, peer: Peer, tmp_path: Path) -> None:
    merge(peer.recipe(case), tmp_path / "out")
    for output in (tmp_path / "out", peer.output(case)):
        pairs = changes(peer, output)
        expected = sum(float(change.abs().sum()) for change, _ in pairs)
        assert sum(float(made.abs().sum()) for _, made in pairs) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("case", [c for c in CASES if c.name.startswith("della")], ids=lambda case: case.name)
def test_both_keep_large_changes_more_often(case: Case, peer: Peer, tmp_path: Path) -> None:
    merge(peer.recipe(case), tmp_path / "out")
    ranks = torch.arange(HIDDEN) / (HIDDEN - 1)
    for output in (tmp_path / "out", peer.output(case)):
        rows = [pair for pair in changes(peer, output) if pair[0].shape[1] == HIDDEN]
        for half in (slice(0, HIDDEN // 2), slice(HIDDEN // 2, HIDDEN)):
            chosen = [made.gather(1, change.abs().argsort(dim=1)[:, half]) for change, made in rows]
            share = DENSITY - EPSILON + 2 * EPSILON * float(ranks[half].mean())
            expect_share(sum(int((made != 0).sum()) for made in chosen), sum(made.numel() for made in chosen), share)
