"""EMR-Merging: every byte of every part against a plain oracle, whatever the execution; models read from the parts."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml

from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.kernels.protocol import Kernels
from anabranch.engine.kernels.torch.reference import TorchKernels

from ...merging import load_output, merge, merge_parts, write_checkpoint, write_recipe
from ..emr_oracle import Parts, emr, task_model
from ..run.test_determinism import EXECUTIONS, everything, reading
from .test_merge_oracle import assert_same_bytes

SHAPES = [(300, 401), (70_001,), (3,), (), (0, 4), (257, 256), (1 << 17, 2)]
MODELS = 3
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def tensors_of(dtype: torch.dtype, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A base and models whose changes often cancel each other, tie, or are absent; model 1 lacks a tensor."""
    generator = torch.Generator().manual_seed(seed)
    base = {f"layers.{i}.w": torch.randn(shape, generator=generator).to(dtype) for i, shape in enumerate(SHAPES)}
    base["norm"] = torch.randn(33, generator=generator)  # F32 beside narrower ones
    base["embed"] = torch.randn((50, 8), generator=generator).to(dtype)
    base["ids"] = torch.arange(9)
    models = []
    for m in range(MODELS):
        tensors = dict(base)
        for name, tensor in base.items():
            if tensor.is_floating_point():
                change = torch.randint(-3, 4, tensor.shape, generator=generator) / 64
                tensors[name] = (tensor.float() + change).to(torch.float32 if m == 2 else tensor.dtype)
        models.append(tensors)
    del models[1]["layers.2.w"]
    return base, models


def write(folder: Path, base: dict[str, Any], models: list[dict[str, Any]], **keys: Any) -> Path:
    write_checkpoint(folder / "base", base, shards=2)
    entries = []
    for m, tensors in enumerate(models):
        write_checkpoint(folder / f"model{m}", tensors, shards=2)
        entries.append({"model": str(folder / f"model{m}"), "name": f"task{m}"})
    content = {"merge_method": "emr", "base_model": str(folder / "base"), "models": entries}
    return write_recipe(folder / "emr.yml", content | {"output": {"shard_size": "300KB"}} | keys)


def scale_of(part: Path) -> float:
    scale: float = json.loads((part / "anabranch.emr.json").read_text())["scale"]
    return scale


def assert_parts_are(folder: Path, base: dict[str, Any], expected: Parts) -> None:
    """The unified vector, masks and scales in `out`, and the models that are read from them."""
    assert_same_bytes(load_output(folder / "out" / "unified"), expected.unified)
    for m in range(MODELS):
        part = folder / "out" / f"task{m}"
        assert_same_bytes(load_output(part), expected.masks[m])
        assert scale_of(part) == expected.scales[m]
        content = {"merge_method": "passthrough", "models": [{"model": f"{folder / 'base'}+{part}"}]}
        merge(write_recipe(folder / "task.yml", content), folder / f"model-of-task{m}")
        assert_same_bytes(load_output(folder / f"model-of-task{m}"), task_model(base, expected, m))


KEYS: list[dict[str, Any]] = [{}, {"out_dtype": "float32"}, {"out_dtype": "bfloat16", "exclude": ["*embed*"]}]
FAST = [("bf16", 0), ("f16", 1), ("f32", 2)]


@pytest.mark.parametrize(
    ("dtype", "keys"),
    [
        pytest.param(dtype, keys, marks=() if (dtype, number) in FAST else pytest.mark.slow)
        for dtype in DTYPES
        for number, keys in enumerate(KEYS)
    ],
)
def test_parts_and_models_are_those_of_the_definition(tmp_path: Path, dtype: str, keys: dict[str, Any]) -> None:
    base, models = tensors_of(DTYPES[dtype], seed=len(keys))
    recipe = write(tmp_path, base, models, **keys)
    merge_parts(recipe, tmp_path / "out")
    assert_parts_are(tmp_path, base, emr(base, models, keys))


DENSITIES: dict[str, Any] = {
    "number": 0.3,
    "nothing of some": [{"filter": "layers.0", "value": 0.0}, {"value": 0.3}],
    "filters": [{"filter": "layers.1", "value": 0.05}, {"filter": "norm", "value": 1.0}, {"value": 0.6}],
    "own": {"tadrop": {}},
    "quantile": {"tadrop": {"statistic": "quantile"}},
    "target": {"tadrop": {"mean": 0.4, "spread": 0.2}},
    "target of what changed": {"tadrop": {"mean": 0.4, "mean_of": "changed"}},
    "mixed": [{"filter": "layers", "value": {"tadrop": {"statistic": "kurtosis", "mean": 0.3}}}, {"value": 0.5}],
}


@pytest.mark.parametrize(
    "density",
    [
        pytest.param(density, marks=pytest.mark.slow if density in ("number", "own", "target") else ())
        for density in DENSITIES
    ],
)
def test_task_vectors_are_trimmed_before_the_election(tmp_path: Path, density: str) -> None:
    base, models = tensors_of(torch.bfloat16, seed=21)
    keys = {"parameters": {"density": DENSITIES[density]}}
    merge_parts(write(tmp_path, base, models, **keys), tmp_path / "out")
    assert_parts_are(tmp_path, base, emr(base, models, keys))


def test_a_density_of_one_is_none(tmp_path: Path) -> None:
    """Bytes, plans and receipts are those of a recipe that gives no density."""
    base, models = tensors_of(torch.bfloat16, seed=22)
    recipe = write(tmp_path, base, models)
    merge_parts(recipe, tmp_path / "without")
    content = yaml.safe_load(recipe.read_text()) | {"parameters": {"density": 1.0}}
    merge_parts(write_recipe(tmp_path / "with.yml", content), tmp_path / "with")
    assert everything(tmp_path / "with") == everything(tmp_path / "without")


def test_bad_values_leave_the_base(tmp_path: Path) -> None:
    base, models = tensors_of(torch.bfloat16, seed=9)
    models[0]["layers.1.w"][5] = torch.nan
    models[2]["norm"][:3] = torch.inf
    recipe = write(tmp_path, base, models, nonfinite="keep-base")
    outcomes = merge_parts(recipe, tmp_path / "out")
    expected = emr(base, models, {"nonfinite": "keep-base"})
    assert_same_bytes(load_output(tmp_path / "out" / "unified"), expected.unified)
    assert [scale_of(tmp_path / "out" / f"task{m}") for m in range(MODELS)] == expected.scales
    table = everything(tmp_path / "out" / "task0")["anabranch.tensors.parquet"]
    assert sum(row["nonfinite"] for row in table if row["model"] == 0) == 4
    assert outcomes["task0"].manifest.summary[0]["scale"] == expected.scales[0]


def run(
    recipe: Path,
    out: Path,
    threads: int = 2,
    slab_kib: int = 2048,
    kernels: Callable[[], Kernels] = CpuKernels,
    keep_inputs: bool = True,
    limit_mib: int = 1024,
) -> dict[str, Any]:
    with reading(slab_kib, keep_inputs):
        merge_parts(recipe, out, threads, limit_mib + 100, kernels())
    return everything(out)


@pytest.mark.parametrize(
    "density", [{"tadrop": {}}, *(pytest.param(density, marks=pytest.mark.slow) for density in (1.0, 0.2))]
)
def test_no_execution_changes_a_byte(tmp_path: Path, density: Any) -> None:
    recipe = write(tmp_path, *tensors_of(torch.bfloat16, seed=3), parameters={"density": density})
    expected = run(recipe, tmp_path / "out")
    assert sum(file.endswith(".safetensors") for file in expected) > 2 * (MODELS + 1)
    for number, (execution, options) in enumerate(EXECUTIONS.items()):
        found = run(recipe, tmp_path / str(number), **options)
        assert found.keys() == expected.keys(), execution
        assert not [file for file in expected if found[file] != expected[file]], execution


def test_no_execution_changes_a_byte_of_a_task_model(tmp_path: Path) -> None:
    """Windows of a model that is computed while it is read may begin anywhere in a byte of its masks."""
    recipe = write(tmp_path, *tensors_of(torch.bfloat16, seed=4))
    merge_parts(recipe, tmp_path / "out")
    models = [{"model": f"{tmp_path / 'base'}+{tmp_path / 'out' / f'task{m}'}"} for m in range(2)]
    content = {"merge_method": "cabs", "base_model": str(tmp_path / "base"), "models": models}
    content["parameters"] = {"density": 0.5, "block": 999}
    path = write_recipe(tmp_path / "cabs.yml", content)
    merge(path, tmp_path / "first")
    expected = everything(tmp_path / "first")
    for number, kernels in enumerate((CpuKernels(), TorchKernels("cpu"))):
        with mock.patch("anabranch.engine.run.memory.LARGEST_SLAB", 64 << 10):
            merge(path, tmp_path / str(number), threads=3 - number, kernels=kernels)
        assert everything(tmp_path / str(number)) == expected


def test_what_is_made_again_has_the_same_bytes(tmp_path: Path) -> None:
    """Any file of any part of an unfinished output may be missing, but for its plan."""
    recipe = write(tmp_path, *tensors_of(torch.bfloat16, seed=5))
    out = tmp_path / "out"
    expected = run(recipe, out)
    manifest = "anabranch.manifest.json"
    files = [file for file in expected if not file.endswith((".anabranch/plan.json", manifest))]
    for seed in range(4):
        again = tmp_path / str(seed)
        shutil.copytree(out, again)
        finished = f"task{seed}" if seed < MODELS else "unified"
        chosen = random.Random(seed)
        for part in sorted(again.iterdir()):
            if part.name != finished:
                (part / manifest).unlink()
        for file in chosen.sample(files, len(files) // 2):
            if not file.startswith(finished):
                (again / file).unlink()
        assert run(recipe, again, **list(EXECUTIONS.values())[seed % 4]) == expected


@pytest.mark.parametrize("count", [1, 2, 5])
def test_masks_and_values_of_random_vectors(tmp_path: Path, count: int) -> None:
    """Tiny and huge magnitudes, whose products are beyond fp32."""
    rng = np.random.default_rng(count)
    base = {"w": torch.zeros(5000)}
    sizes = np.array([0, 1e-45, 1e-30, 1.0, 1e30], np.float32)
    models = [{"w": torch.from_numpy(rng.choice(sizes, 5000) * rng.choice([-1, 1], 5000).astype(np.float32))}]
    models += [{"w": m["w"][torch.from_numpy(rng.permutation(5000))]} for m in models * (count - 1)]
    merge_parts(write(tmp_path, base, models), tmp_path / "out")
    expected = emr(base, models, {})
    assert_same_bytes(load_output(tmp_path / "out" / "unified"), expected.unified)
    for m in range(count):
        assert_same_bytes(load_output(tmp_path / "out" / f"task{m}"), expected.masks[m])
        assert scale_of(tmp_path / "out" / f"task{m}") == expected.scales[m]
