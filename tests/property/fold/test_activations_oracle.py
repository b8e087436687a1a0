"""Masks ordered by magnitude times activation against the plain oracle, over many windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ...merging import load_output, merge, write_checkpoint, write_recipe
from .. import merge_oracle
from .test_merge_oracle import LOCAL, SMALLEST_WINDOWS, assert_same_bytes, coarse

CASES = {
    "magnitude": {"density": 0.3},
    "magnitude-sequential": {"density": 0.6, "conflict": "sequential"},
    "ties": {"density": LOCAL},
    "cabs": {"density": 0.25},
    "cabs-100": {"density": 0.9, "block": 100, "overlap": "never"},
    "breadcrumbs": {"density": 0.4, "gamma": 0.1},
    "della": {"density": 0.5, "epsilon": 0.2},
    "della_linear-l1": {"density": 0.5, "epsilon": 0.2, "rescale_norm": "l1"},
}
ROWS, COLUMNS = 500, 1537


def squares(rng: np.random.Generator, dtype: type) -> np.ndarray:
    """Wild factors, few of them distinct, some of them zero."""
    return rng.choice([0.0, 0.25, 1.0, 1.0, 9.0, 1e-30, 7e5], COLUMNS).astype(dtype)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((case, torch.bfloat16) for case in CASES),
        *(
            pytest.param(case, torch.float64, marks=() if case in ("ties", "cabs", "della") else pytest.mark.slow)
            for case in CASES
        ),
    ],
)
def test_activations_order_like_the_oracle(tmp_path: Path, case: str, dtype: torch.dtype) -> None:
    """The first model has a file of its own, the second the recipe's, which lacks one of the tensors."""
    rng = np.random.default_rng(3)
    base, models = coarse(rng, dtype, 2, (ROWS, COLUMNS))
    base["v"] = torch.zeros(COLUMNS, dtype=dtype)
    for tensors in models:
        tensors["v"] = torch.from_numpy(rng.standard_normal(COLUMNS)).to(dtype)
    kind = np.float64 if dtype == torch.float64 else np.float32
    own = [{"w": squares(rng, kind), "v": squares(rng, kind)}, {"w": squares(rng, kind)}]
    for i, given in enumerate(own):
        write_checkpoint(tmp_path / f"model{i}", models[i])
        save_file(given, tmp_path / f"squares{i}.safetensors")
    write_checkpoint(tmp_path / "base", base)
    parameters = dict(CASES[case])
    recipe = {"merge_method": case.split("-", maxsplit=1)[0], "parameters": parameters, "seed": 5}
    files = {
        "base_model": "base",
        "models": [{"model": "model0", "activations": "squares0.safetensors"}, {"model": "model1"}],
        "activations": "squares1.safetensors",
    }
    with SMALLEST_WINDOWS:
        merge(write_recipe(tmp_path / "recipe.yml", recipe | files), tmp_path / "out", threads=3)
    expected = merge_oracle.merge(base, models, recipe, [1.0, 1.0], [parameters["density"]] * 2, own)
    plain = merge_oracle.merge(base, models, recipe, [1.0, 1.0], [parameters["density"]] * 2)
    assert_same_bytes(load_output(tmp_path / "out"), expected)
    assert not torch.equal(expected["w"], plain["w"])
