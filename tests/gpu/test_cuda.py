"""Merges on a CUDA device write the bytes that the CPU writes. Skipped where torch finds no such device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.kernels.torch.reference import TorchKernels

from ..merging import merge, merge_parts, write_checkpoint, write_recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")

METHODS: dict[str, dict[str, Any]] = {
    "cabs": {"merge_method": "cabs", "parameters": {"density": 0.25}},
    "task_arithmetic": {"merge_method": "task_arithmetic"},
    "ties": {"merge_method": "ties", "parameters": {"density": 0.2}},
    "dare_ties": {"merge_method": "dare_ties", "parameters": {"density": 0.4}},
    "magnitude": {"merge_method": "magnitude", "parameters": {"density": 0.3, "conflict": "sequential"}},
    "linear": {"merge_method": "linear"},
    "ramplus_tl": {"merge_method": "ramplus_tl", "parameters": {"epsilon": 0.005}},
    "nuslerp": {"merge_method": "nuslerp", "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True}},
}


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16, torch.float32], ids=str)
def checkpoints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two models of which one tensor takes several windows."""
    folder = tmp_path_factory.mktemp("cuda")
    torch.manual_seed(3)
    base = {"large": torch.randn(2048, 1501).to(request.param), "small": torch.randn(77).to(request.param)}
    write_checkpoint(folder / "base", base)
    for i in range(2):
        tuned = {name: (t.float() + 0.01 * torch.randn(t.shape)).to(request.param) for name, t in base.items()}
        write_checkpoint(folder / f"model{i}", tuned)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_the_gpu_writes_what_the_cpu_writes(checkpoints: Path, tmp_path: Path, method: str) -> None:
    models = [{"model": str(checkpoints / f"model{i}"), "parameters": {"weight": 0.8 - 0.3 * i}} for i in range(2)]
    if method == "ramplus_tl":
        models = [{"model": model["model"]} for model in models]
    recipe = METHODS[method] | {"models": models}
    if method != "linear":
        recipe["base_model"] = str(checkpoints / "base")
    path = write_recipe(tmp_path / "recipe.yml", recipe)
    merge(path, tmp_path / "cpu", kernels=CpuKernels())
    merge(path, tmp_path / "cuda", kernels=TorchKernels("cuda"))
    for name in ("model.safetensors", "anabranch.manifest.json"):
        assert (tmp_path / "cuda" / name).read_bytes() == (tmp_path / "cpu" / name).read_bytes(), name


def test_parts_of_emr_and_a_task_model(checkpoints: Path, tmp_path: Path) -> None:
    models = [{"model": str(checkpoints / f"model{i}")} for i in range(2)]
    base = str(checkpoints / "base")
    path = write_recipe(tmp_path / "emr.yml", {"merge_method": "emr", "base_model": base, "models": models})
    merge_parts(path, tmp_path / "cpu", kernels=CpuKernels())
    parts = merge_parts(path, tmp_path / "cuda", kernels=TorchKernels("cuda"))
    for part in parts:
        for name in ("model.safetensors", "anabranch.emr.json", "anabranch.manifest.json"):
            assert (tmp_path / "cuda" / part / name).read_bytes() == (tmp_path / "cpu" / part / name).read_bytes(), name
    task = {"merge_method": "passthrough", "models": [{"model": f"{base}+{tmp_path / 'cpu' / 'model1'}"}]}
    path = write_recipe(tmp_path / "task.yml", task)
    merge(path, tmp_path / "by-cpu", kernels=CpuKernels())
    merge(path, tmp_path / "by-cuda", kernels=TorchKernels("cuda"))
    found, expected = (tmp_path / name / "model.safetensors" for name in ("by-cuda", "by-cpu"))
    assert found.read_bytes() == expected.read_bytes()


def test_buffers_are_pinned() -> None:
    buffer = TorchKernels("cuda").buffer(1 << 20)
    assert torch.from_numpy(buffer).is_pinned()
