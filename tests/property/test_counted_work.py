"""A guard on work that can be counted: bytes read per output byte, kernel calls per tile, buffers made."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from anabranch.cluster.runner import LocalRunner, Member, run
from anabranch.engine.commit import Output
from anabranch.engine.inputs import open_inputs
from anabranch.engine.kernels.cpu import CpuKernels
from anabranch.engine.memory import AHEAD, BufferPool
from anabranch.engine.meter import Meter
from anabranch.engine.recipe import load_recipe
from anabranch.engine.storage import open_store
from anabranch.engine.windows import TILE_ELEMENTS

from ..merging import MIB, Quiet, write_checkpoint, write_recipe

ROWS, COLUMNS = 1024, 1536
TILES = ROWS * COLUMNS // TILE_ELEMENTS


class CountingKernels(CpuKernels):
    """The real kernels; every call is counted by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in ("calls", "name"):
            object.__getattribute__(self, "calls")[name] += 1
        return object.__getattribute__(self, name)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("counted")
    torch.manual_seed(0)
    base = torch.randn(ROWS, COLUMNS).to(torch.bfloat16)
    write_checkpoint(folder / "base", {"w": base})
    for i in range(2):
        write_checkpoint(folder / f"model{i}", {"w": base + 0.01 * torch.randn(ROWS, COLUMNS).to(torch.bfloat16)})
    return folder


def counted(folder: Path, out: Path, recipe: dict[str, Any], limit_mib: int = 1024) -> tuple[Meter, Counter[str]]:
    whole = recipe | {
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / f"model{i}")} for i in range(2)],
    }
    path = write_recipe(out / "recipe.yml", whole)
    inputs = open_inputs(load_recipe(path), path.parent)
    output = Output(inputs.plan, open_store(str(out / "out"), create=True))
    meter, kernels = Meter(), CountingKernels()
    members = [Member(inputs, output)]
    run(members, LocalRunner(members, 2, limit_mib * MIB, kernels, meter), Quiet())
    return meter, kernels.calls


@pytest.mark.parametrize(
    ("recipe", "passes"),
    [
        ({"merge_method": "task_arithmetic"}, 1),
        ({"merge_method": "cabs", "parameters": {"density": 0.25}}, 1),
        ({"merge_method": "cabs", "parameters": {"density": {"tadrop": {}}}}, 2),
        ({"merge_method": "dare_linear", "parameters": {"density": 0.5}}, 1),
        ({"merge_method": "ties", "parameters": {"density": 0.2}}, 3),
    ],
    ids=["task_arithmetic", "cabs", "cabs+tadrop", "dare", "ties"],
)
def test_inputs_that_fit_are_read_once_and_every_tile_is_decoded_once_per_pass(
    checkpoints: Path, tmp_path: Path, recipe: dict[str, Any], passes: int
) -> None:
    meter, calls = counted(checkpoints, tmp_path, recipe)
    tensor_bytes = 2 * ROWS * COLUMNS
    assert meter.usage["read"].bytes == 3 * tensor_bytes
    assert meter.usage["fold"].bytes == passes * 3 * tensor_bytes
    assert meter.usage["write"].bytes == meter.usage["hash"].bytes
    assert meter.usage["write"].bytes - tensor_bytes < 4096
    # A cut between equal values may need one more look to count them.
    assert passes * TILES <= calls["decode"] <= (passes + 1) * TILES
    assert calls["task_vector"] == 2 * calls["decode"]
    assert calls["finish"] == TILES


def test_a_run_makes_no_more_buffers_than_it_plans(checkpoints: Path, tmp_path: Path, monkeypatch: Any) -> None:
    pools: list[BufferPool] = []
    made = BufferPool.__init__

    def remember(pool: BufferPool, slab_bytes: int, slabs: int) -> None:
        made(pool, slab_bytes, slabs)
        pools.append(pool)

    monkeypatch.setattr(BufferPool, "__init__", remember)
    counted(checkpoints, tmp_path, {"merge_method": "cabs", "parameters": {"density": 0.25}})
    [pool] = pools
    assert pool.made <= pool.slabs <= (2 + AHEAD) * 4
    assert pool.made == pool.free  # every buffer came back
