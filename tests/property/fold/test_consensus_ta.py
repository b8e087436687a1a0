"""Consensus Task Arithmetic: a table worked by hand, and every byte against the formula, whatever the execution."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.kernels.torch.reference import TorchKernels

from ...merging import load_output, merge, write_checkpoint, write_recipe
from ..kernel_cases import examples
from ..run.test_determinism import reading
from ..scratch import SCRATCH

FIRST = [[1.0, 1.0, 1.0, 2.0], [1.0, 1.0, -2.0, -2.0], [0.0, 0.0, 4.0, 4.0], [8.0, 8.0, -1.0, 1.5]]
SECOND = [[1.0, 2.0, 2.5, 1.0], [-1.0, -2.0, -2.0, 1.0], [0.0, 1.0, 2.0, 1.5], [-4.0, -3.0, 3.0, 3.0]]
BOTH = [[12.0, 13.0, 10.0, 13.0], [10.0, 9.0, 6.0, 9.0], [10.0, 10.0, 16.0, 10.0], [14.0, 10.0, 10.0, 14.5]]
"""10 + a + b where each is at least half of the other, 1.5 and 3 just so; 10 elsewhere, and where nothing changes."""
ANY = [[12.0, 13.0, 13.5, 13.0], [10.0, 9.0, 6.0, 9.0], [10.0, 11.0, 16.0, 15.5], [14.0, 15.0, 12.0, 14.5]]


def merged(folder: Path, models: list[dict[str, Any]], base: dict[str, Any], parameters: dict[str, Any], **run: Any):
    write_checkpoint(folder / "base", base)
    entries = []
    weights, lambdas = parameters.pop("weight", None), parameters.pop("lambda_mask", None)
    for i, tensors in enumerate(models):
        write_checkpoint(folder / f"model{i}", tensors)
        own = {"weight": weights[i]} if weights else {}
        own |= {"lambda_mask": lambdas[i]} if lambdas else {}
        entries.append({"model": str(folder / f"model{i}"), "parameters": own})
    content = {"merge_method": "consensus_ta", "base_model": str(folder / "base"), "models": entries}
    recipe = write_recipe(folder / "recipe.yml", content | {"parameters": parameters})
    merge(recipe, folder / "out", **run)
    return load_output(folder / "out")


@pytest.mark.parametrize("kernels", [CpuKernels, TorchKernels])
@pytest.mark.parametrize(("consensus", "expected"), [(1, ANY), (2, BOTH), (3, [[10.0] * 4] * 4)])
def test_a_table_by_hand(tmp_path: Path, kernels: Any, consensus: int, expected: list[list[float]]) -> None:
    base = {"w": torch.full((4, 4), 10.0)}
    models = [{"w": base["w"] + torch.tensor(change)} for change in (FIRST, SECOND)]
    parameters = {"consensus": consensus, "lambda_mask": [0.5, 0.5]}
    out = merged(tmp_path, models, base, parameters, kernels=kernels())
    assert out["w"].tolist() == expected


def test_each_model_has_its_own_lambda_and_a_model_without_the_tensor_claims_nothing(tmp_path: Path) -> None:
    """1 is at least 0.2 * 5 but not 0.3 * 5; the third model would make a second claim if it had zeros of its own."""
    base = {"w": torch.zeros(2), "v": torch.zeros(1)}
    models = [{"w": torch.tensor([1.0, 5.0])}, {"w": torch.tensor([5.0, 1.0])}, {"v": torch.ones(1)}]
    models = [base | model for model in models]
    del models[2]["w"]
    out = merged(tmp_path, models, base, {"lambda_mask": [0.2, 0.3, 0.0], "weight": [1, 2, 3], "lambda": 0.5})
    assert out["w"].tolist() == [0.5 * (1 + 2 * 5), 0.0]
    assert out["v"].tolist() == [0.0]


def oracle(base: Any, models: list[Any], weights: list[float], lambdas: list[float], consensus: int, factor: float):
    """The formula on whole tensors, one operation after the other in the type of `base`."""
    real = base.dtype.type
    vectors = [model - base for model in models]
    total, result = np.zeros_like(base), np.zeros_like(base)
    for t in vectors:
        total = total + t
    claims = [(np.abs(t) >= np.abs((total - t) * real(k))) & (t != 0) for t, k in zip(vectors, lambdas, strict=True)]
    kept = np.sum(claims, axis=0) >= consensus
    for t, weight in zip(vectors, weights, strict=True):
        result = result + np.where(kept, real(weight) * t, real(0))
    result = result * real(factor) if factor != 1.0 else result
    return np.where(kept, base + result, base)


@examples(12)
@given(
    seed=st.integers(0, 1 << 16),
    count=st.integers(1, 4),
    shape=st.sampled_from([(70, 401), (131_073,), (3,), (257, 600)]),
    double=st.booleans(),
    consensus=st.integers(1, 4),
    factor=st.sampled_from([1.0, 0.3]),
    threads=st.integers(1, 3),
    slab_kib=st.sampled_from([64, 512, 2048]),
    kernels=st.sampled_from([CpuKernels, TorchKernels]),
)
def test_every_byte_is_that_of_the_formula(seed, count, shape, double, consensus, factor, threads, slab_kib, kernels):
    generator = np.random.default_rng(seed)
    real = np.float64 if double else np.float32
    base = generator.standard_normal(shape).astype(real)
    changes = [generator.integers(-3, 4, shape) * generator.choice([0.1, 0.25]) for _ in range(count)]
    models = [base + change.astype(real) for change in changes]
    weights, lambdas = generator.uniform(-1, 2, count).tolist(), generator.choice([0.0, 0.2, 0.4, 1.0], count).tolist()
    parameters = {"weight": weights, "lambda_mask": lambdas, "consensus": consensus, "lambda": factor}
    expected = oracle(base, models, weights, lambdas, consensus, factor)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder, reading(slab_kib, keep_inputs=False):
        checkpoints = [{"w": torch.from_numpy(model)} for model in models]
        out = merged(
            Path(folder), checkpoints, {"w": torch.from_numpy(base)}, parameters, threads=threads, kernels=kernels()
        )
    assert out["w"].numpy().tobytes() == expected.astype(real).tobytes()


def test_values_that_are_no_numbers_keep_the_base_and_claim_nothing(tmp_path: Path) -> None:
    base = {"w": torch.tensor([1.0, 1.0, 1.0])}
    models = [{"w": torch.tensor([torch.nan, 2.0, 3.0])}, {"w": torch.tensor([2.0, torch.inf, 3.0])}]
    for i, tensors in enumerate(models):
        write_checkpoint(tmp_path / f"model{i}", tensors)
    write_checkpoint(tmp_path / "base", base)
    entries = [{"model": str(tmp_path / f"model{i}")} for i in range(2)]
    content = {"merge_method": "consensus_ta", "base_model": str(tmp_path / "base"), "models": entries}
    content |= {"nonfinite": "keep-base", "parameters": {"lambda_mask": 0.4}}
    merge(write_recipe(tmp_path / "recipe.yml", content), tmp_path / "out")
    assert load_output(tmp_path / "out")["w"].tolist() == [1.0, 1.0, 5.0]
