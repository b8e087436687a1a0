"""What tables say of masks, against masks that the oracle makes: kept, overlaps, claims by count, energy kept."""

from __future__ import annotations

import math
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from anabranch.engine.output import read_tensor_rows
from anabranch.engine.storage.local import LocalStore

from ...merging import merge_tensors
from .. import merge_oracle
from .test_merge_oracle import checkpoints

SHAPES = [(64, 33), (4099,), (300, 701), (1,)]
CASES = {
    "cabs": ({"merge_method": "cabs", "parameters": {"block": 256}}, 0.25),
    "cabs, blocks over rows": ({"merge_method": "cabs", "parameters": {"block": 96}}, 0.3),
    "cabs by statistics": ({"merge_method": "cabs", "parameters": {"block": 32}}, {"tadrop": {}}),
    "ties": ({"merge_method": "ties"}, 0.2),
    "l2": ({"merge_method": "magnitude", "parameters": {"rescale": True, "rescale_norm": "l2"}}, 0.1),
    "bands": ({"merge_method": "breadcrumbs"}, 0.4),
    "random": ({"merge_method": "dare_linear"}, 0.4),
    "ranked": ({"merge_method": "della"}, 0.4),
    "ranked, divided": ({"merge_method": "della_linear", "parameters": {"rescale": True}}, 0.4),
    "variance": ({"merge_method": "sce", "parameters": {"select_topk": 0.3}}, None),
    "everything": ({"merge_method": "task_arithmetic"}, None),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow), torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_every_statistic_of_masks_is_that_of_the_plain_definition(tmp_path: Path, case: str, dtype) -> None:
    """Four models, one of which lacks a tensor; in bf16 windows are folded in one call, else tile by tile."""
    recipe, density = CASES[case]
    base, models = checkpoints(np.random.default_rng(len(case)), SHAPES, [dtype] * 5, 4)
    del models[1]["layers.0.w"]
    with mock.patch("anabranch.engine.run.memory.LARGEST_SLAB", 64 << 10):
        given = None if density is None else [density] * 4
        merge_tensors(tmp_path, base, models, recipe, None if density is None else [1.0] * 4, given)
    oracle = merge_oracle._Merge(base, models, recipe, [1.0] * 4, [1.0 if density is None else density] * 4, [{}] * 4)
    oracle.run()
    rows = {(row["tensor"], row["model"]): row for row in read_tensor_rows(LocalStore(tmp_path / "out"))}
    assert len(rows) == 4 * len(SHAPES) - 1
    for name in base:
        _, changes = oracle.deltas(name)
        present = [i for i in range(4) if name in models[i]]
        masks = oracle._masks(name, changes, [oracle.density(i, name, changes[i]) for i in range(4)], present)
        claims = np.bincount(sum(masks[i].astype(int) for i in present), minlength=len(present) + 1).tolist()
        for i in present:
            row, t = rows[name, i], changes[i]
            before, after = (merge_oracle.ordered_sum(x, 2) for x in (t, np.where(masks[i], t, t.dtype.type(0))))
            assert row["kept"] == np.count_nonzero(masks[i])
            assert row["overlaps"] == [
                np.count_nonzero(masks[i] & masks[j]) if j in present and j != i else 0 for j in range(4)
            ]
            assert row["claims"] == claims
            assert (row["l2"], row["kept_l2"]) == (math.sqrt(before), pytest.approx(math.sqrt(after), rel=3e-7))
            assert row["kept_l2"] <= row["l2"]
            assert row["energy_kept"] == (pytest.approx(after / before, rel=1e-6) if before else None)


def test_what_keeps_no_elements_has_no_such_statistics(tmp_path: Path) -> None:
    base, models = checkpoints(np.random.default_rng(1), [(33,)], [torch.float32] * 3, 2)
    merge_tensors(tmp_path, None, [base, *models], {"merge_method": "linear"}, [1.0] * 3)
    for row in read_tensor_rows(LocalStore(tmp_path / "out")):
        assert (row["kept_l2"], row["energy_kept"], row["claims"]) == (None, None, [])
