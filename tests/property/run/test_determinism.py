"""Promise P1: nothing about the execution changes an output byte: threads, windows, memory, kernels, resumes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet
import pytest
import torch

from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.kernels.protocol import Kernels
from anabranch.engine.kernels.torch.reference import TorchKernels
from anabranch.engine.methods import METHODS

from ...merging import merge, write_checkpoint, write_recipe

SHAPES = [(300, 401), (70_001,), (3,), (), (0, 4), (257, 256), (1 << 17, 2), (5, 7)]
QUANTILE = {"tadrop": {"statistic": "quantile"}}
BUDGET = {"tadrop": {"mean": 0.3, "spread": 0.2}}
RECIPES: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"merge_method": "task_arithmetic", "parameters": {"lambda": 0.7}},
    "linear": {"merge_method": "linear"},
    "karcher": {"merge_method": "karcher"},
    "model_stock": {"merge_method": "model_stock"},
    "model_stock-rows": {"merge_method": "model_stock", "parameters": {"filter_wise": True}},
    "nuslerp-columns": {
        "merge_method": "nuslerp",
        "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    },
    "arcee_fusion": {"merge_method": "arcee_fusion"},
    "magnitude": {"merge_method": "magnitude", "parameters": {"density": 0.3, "rescale": True, "rescale_norm": "l1"}},
    "sequential": {"merge_method": "magnitude", "parameters": {"density": 0.6, "conflict": "sequential"}},
    "ties": {"merge_method": "ties", "parameters": {"density": QUANTILE}},
    "ties-model": {"merge_method": "ties", "parameters": {"density": 0.2, "scope": "model"}},
    "cabs": {"merge_method": "cabs", "parameters": {"density": BUDGET, "block": 256}},
    "cabs-odd": {
        "merge_method": "cabs",
        "parameters": {"density": 0.5, "block": 999, "rescale": True, "rescale_norm": "l2"},
        "out_dtype": "float16",
    },
    "breadcrumbs": {"merge_method": "breadcrumbs", "parameters": {"density": 0.4, "gamma": 0.1}},
    "della": {"merge_method": "della", "parameters": {"density": {"tadrop": {}}, "epsilon": 0.1}, "seed": 2},
    "sce": {"merge_method": "sce", "parameters": {"select_topk": 0.3}},
    "ramplus_tl": {"merge_method": "ramplus_tl", "parameters": {"epsilon": 0.02, "alpha": 2}},
    "dare_ties": {"merge_method": "dare_ties", "parameters": {"density": {"tadrop": {}}}, "seed": 11},
}


def recipe(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yml"
    if path.exists():
        return path
    schema = METHODS[RECIPES[name]["merge_method"]].schema
    models: list[dict[str, Any]] = [{"model": str(folder / f"model{i}")} for i in range(min(schema.most or 2, 2))]
    if "weight" in schema.parameters:
        models = [model | {"parameters": {"weight": w}} for model, w in zip(models, (1.0, 0.6), strict=True)]
    base = {} if name in ("linear", "karcher") else {"base_model": str(folder / "base")}
    return write_recipe(path, RECIPES[name] | base | {"models": models, "output": {"shard_size": "300KB"}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coarse(tmp_path_factory.mktemp("determinism"), SHAPES, models=2, shards=3, seed=5)


def write_coarse(folder: Path, shapes: Sequence[tuple[int, ...]], models: int, shards: int, seed: int) -> Path:
    """bf16 checkpoints whose changes are few magnitudes, so that every cut goes through ties; several files each."""
    generator = torch.Generator().manual_seed(seed)
    base = {f"layers.{i}.w": torch.randn(shape, generator=generator).bfloat16() for i, shape in enumerate(shapes)}
    base["ids"] = torch.arange(9)
    write_checkpoint(folder / "base", base, shards=2)
    for m in range(models):
        tensors = dict(base)
        for name, tensor in base.items():
            if tensor.is_floating_point():
                change = torch.randint(-3, 4, tensor.shape, generator=generator) / 64
                tensors[name] = (tensor.float() + change).bfloat16()
        write_checkpoint(folder / f"model{m}", tensors, shards)
    return folder


def everything(out: Path) -> dict[str, Any]:
    """Bytes of every file; rows of Parquet tables."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        if path.is_file():
            is_table = path.suffix == ".parquet"
            found[str(path.relative_to(out))] = (
                pyarrow.parquet.read_table(path).to_pylist() if is_table else path.read_bytes()
            )
    return found


@contextmanager
def reading(slab_kib: int, keep_inputs: bool) -> Iterator[None]:
    """Windows of at most so many KiB; inputs that are not kept are read again for every pass."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch("anabranch.engine.run.memory.LARGEST_SLAB", slab_kib << 10))
        if not keep_inputs:
            stack.enter_context(mock.patch("anabranch.engine.run.pipeline.resident_slabs", return_value=1 << 40))
        yield


def run(
    recipe_path: Path,
    out: Path,
    threads: int = 2,
    slab_kib: int = 2048,
    kernels: Callable[[], Kernels] = CpuKernels,
    keep_inputs: bool = True,
    limit_mib: int = 1024,
) -> dict[str, Any]:
    with reading(slab_kib, keep_inputs):
        merge(recipe_path, out, threads=threads, limit_mib=limit_mib, kernels=kernels())
    return everything(out)


def torch_on_cpu() -> Kernels:
    return TorchKernels("cpu")


EXECUTIONS: dict[str, dict[str, Any]] = {
    "one thread": {"threads": 1},
    "three threads, small windows": {"threads": 3, "slab_kib": 64},
    "two threads, inputs read again": {"threads": 2, "slab_kib": 64, "keep_inputs": False},
    "one thread, middling windows, less memory": {"threads": 1, "slab_kib": 200, "limit_mib": 370},
    "torch": {"threads": 2, "slab_kib": 64, "kernels": torch_on_cpu},
    "torch, inputs read again": {"threads": 1, "slab_kib": 512, "kernels": torch_on_cpu, "keep_inputs": False},
}


@pytest.mark.parametrize("name", RECIPES)
def test_no_execution_changes_a_byte(folder: Path, tmp_path: Path, name: str) -> None:
    path = recipe(folder, name)
    expected = run(path, tmp_path / "out")
    assert sum(file.endswith(".safetensors") for file in expected) > 2
    for number, (execution, options) in enumerate(EXECUTIONS.items()):
        found = run(path, tmp_path / str(number), **options)
        assert found.keys() == expected.keys(), execution
        different = [file for file in expected if found[file] != expected[file]]
        assert not different, execution


@pytest.mark.parametrize("name", ["cabs", "ties-model", "dare_ties"])
def test_what_is_made_again_has_the_same_bytes(folder: Path, tmp_path: Path, name: str) -> None:
    """Any part of an unfinished output may be missing: shards, receipts, parts of the survey, tables, side files."""
    path, out = recipe(folder, name), tmp_path / "out"
    expected = run(path, out)
    plan = ".anabranch/plan.json"
    files = [file for file in expected if file not in (plan, "anabranch.manifest.json")]
    for seed in range(6):
        again = tmp_path / str(seed)
        shutil.copytree(out, again)
        (again / "anabranch.manifest.json").unlink()
        for file in random.Random(seed).sample(files, len(files) // 2):
            (again / file).unlink()
        assert run(path, again, **list(EXECUTIONS.values())[seed % 4]) == expected


def test_the_output_does_not_depend_on_where_it_is_or_who_asks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe in another place with relative paths, another working directory, another output path."""
    expected = run(recipe(folder, "cabs"), tmp_path / "out")
    text = recipe(folder, "cabs").read_text().replace(f"{folder}/", "")
    moved = tmp_path / "elsewhere" / "recipe with spaces.yml"
    moved.parent.mkdir()
    moved.write_text(text)
    monkeypatch.chdir(folder)
    assert run(moved, tmp_path / "other" / "deeper") == expected
