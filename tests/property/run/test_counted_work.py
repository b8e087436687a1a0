"""A guard on work that can be counted: bytes read per output byte, kernel calls per window, buffers and scratch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
import torch

from anabranch.engine.fold import brackets
from anabranch.engine.kernels.cpu import window
from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.kernels.rank_search import NO_BRACKET
from anabranch.engine.kernels.window_calls import (
    LookCounts,
    NearCounts,
    WindowCounts,
    WindowFold,
    WindowInputs,
    WindowLook,
    WindowNear,
)
from anabranch.engine.models.opening import Opened
from anabranch.engine.output.commit import OutputDirectory
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.plan.shared_reading import share_reading
from anabranch.engine.plan.windows import TILE_ELEMENTS
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run.buffers import BufferPool
from anabranch.engine.run.folded_bytes import shared_fold_bytes
from anabranch.engine.run.memory import AHEAD, LARGEST_SLAB
from anabranch.engine.run.meter import Meter
from anabranch.engine.run.protocols import Member, Silent
from anabranch.engine.run.runner import run
from anabranch.engine.run.shard import Shard
from anabranch.engine.storage.opening import open_store

from ...adapters import write_adapter
from ...merging import local_runner, write_checkpoint, write_recipe

ROWS, COLUMNS = 1024, 1536
TILES = ROWS * COLUMNS // TILE_ELEMENTS
WINDOW_TILES = LARGEST_SLAB // 2 // TILE_ELEMENTS


Outs = Sequence[npt.NDArray[np.uint8]]


class CountingKernels(CpuKernels):
    """The real kernels; every call is counted by name.

    Args:
        whole: whether windows may be folded in one call.
    """

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self._whole = whole
        self.calls: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in ("calls", "name"):
            object.__getattribute__(self, "calls")[name] += 1
        return object.__getattribute__(self, name)

    def fold_window(self, fold: WindowFold, inputs: WindowInputs, outs: Outs) -> WindowCounts | None:
        return super().fold_window(fold, inputs, outs) if self._whole else None

    def observe_window(self, look: WindowLook, inputs: WindowInputs) -> LookCounts | None:
        return super().observe_window(look, inputs) if self._whole else None

    def near_window(self, near: WindowNear, inputs: WindowInputs) -> NearCounts | None:
        return super().near_window(near, inputs) if self._whole else None


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("counted")
    torch.manual_seed(0)
    base = torch.randn(ROWS, COLUMNS).to(torch.bfloat16)
    write_checkpoint(folder / "base", {"w": base})
    for i in range(2):
        write_checkpoint(folder / f"model{i}", {"w": base + 0.01 * torch.randn(ROWS, COLUMNS).to(torch.bfloat16)})
    return folder


def counted(
    folder: Path, out: Path, recipe: dict[str, Any], limit_mib: int = 1024, whole: bool = True
) -> tuple[Meter, Counter[str]]:
    """Merge; returns what was measured, and how often each kernel was called."""
    complete = recipe | {
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / f"model{i}")} for i in range(2)],
    }
    path = write_recipe(out / "recipe.yml", complete)
    inputs = open_inputs(load_recipe(path), path.parent)
    output = OutputDirectory(inputs.plan, open_store(str(out / "out"), create=True))
    meter, kernels = Meter(), CountingKernels(whole)
    members = [Member(inputs, output)]
    run(members, local_runner(members, 2, limit_mib, kernels, meter), Silent())
    return meter, kernels.calls


IN_ONE_CALL: list[tuple[dict[str, Any], int]] = [
    ({"merge_method": "task_arithmetic"}, 1),
    ({"merge_method": "cabs", "parameters": {"density": 0.25}}, 1),
    ({"merge_method": "cabs", "parameters": {"density": {"tadrop": {}}}}, 2),
    ({"merge_method": "dare_linear", "parameters": {"density": 0.5}}, 1),
    ({"merge_method": "ties", "parameters": {"density": 0.2}}, 3),
    ({"merge_method": "breadcrumbs", "parameters": {"density": 0.2}}, 3),
    ({"merge_method": "sce", "parameters": {"select_topk": 0.2}}, 4),
]
"""Recipes, and how often each looks at its inputs."""
SEARCHING = {"ties", "breadcrumbs", "sce"}
"""Of these looks, one is at a sample: one small tile for each window."""
WINDOWS = -(-TILES // WINDOW_TILES)


def named(recipe: Any) -> str | None:
    if not isinstance(recipe, dict):
        return None
    adaptive = isinstance(recipe.get("parameters", {}).get("density"), dict)
    return recipe["merge_method"] + ("+tadrop" if adaptive else "")


def assert_bytes(meter: Meter, passes: int) -> None:
    """Every input byte is read once however often it is looked at, every output byte is hashed and written once."""
    tensor_bytes = 2 * ROWS * COLUMNS
    assert meter.usage["read"].bytes == 3 * tensor_bytes
    assert meter.usage["fold"].bytes == passes * 3 * tensor_bytes
    assert meter.usage["write"].bytes == meter.usage["hash"].bytes
    assert meter.usage["write"].bytes - tensor_bytes < 4096


@pytest.mark.parametrize(("recipe", "passes"), IN_ONE_CALL, ids=named)
def test_a_window_is_folded_in_one_call(
    checkpoints: Path, tmp_path: Path, recipe: dict[str, Any], passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        window, "fold_scratch", lambda *sizes, make=window.fold_scratch: (made.append(sizes), make(*sizes))[1]
    )
    meter, calls = counted(checkpoints, tmp_path, recipe)
    assert_bytes(meter, passes)
    sums = recipe["merge_method"] == "sce"  # of what masks keep, before the merge
    assert calls["fold_window"] == (1 + sums) * WINDOWS
    assert calls["finish"] == calls["accumulate"] == calls["mask_blocks"] == calls["mask_random"] == 0
    searches = recipe["merge_method"] in SEARCHING
    assert calls["near_window"] == searches * WINDOWS
    assert calls["observe_window"] == calls["histogram"] == calls["count_equal"] == 0
    moments = passes - 1 - sums - 2 * searches  # these still go tile by tile
    assert calls["decode"] == moments * TILES + searches * WINDOWS
    assert 1 <= len(made) <= 2  # once for each fold thread


@pytest.mark.parametrize(("recipe", "passes"), IN_ONE_CALL, ids=named)
def test_tile_by_tile_every_pass_decodes_once(
    checkpoints: Path, tmp_path: Path, recipe: dict[str, Any], passes: int
) -> None:
    meter, calls = counted(checkpoints, tmp_path, recipe, whole=False)
    assert_bytes(meter, passes)
    searches = recipe["merge_method"] in SEARCHING
    assert calls["decode"] == (passes - searches) * TILES + searches * WINDOWS
    assert calls["histogram"] == calls["count_equal"] == 0
    assert calls["task_vector"] == 2 * calls["decode"]
    assert calls["finish"] == TILES


@pytest.mark.parametrize("together", [False, True])
def test_progress_counts_what_is_computed_while_it_is_read_as_it_is_then(tmp_path: Path, together: bool) -> None:
    """A total of stored bytes would be reached too early, or never."""
    weight = torch.randn(64, 64).to(torch.bfloat16)
    write_checkpoint(tmp_path / "base", {"l.weight": weight})
    write_adapter(tmp_path / "adapter", {"l.lora_A.weight": torch.randn(4, 64), "l.lora_B.weight": torch.randn(64, 4)})
    members, opened = [], Opened()
    for weighted in range(1 + together):
        entry = {"model": f"{tmp_path / 'base'}+{tmp_path / 'adapter'}", "parameters": {"weight": 1 + weighted}}
        recipe = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"), "models": [entry]}
        inputs = open_inputs(load_recipe(write_recipe(tmp_path / "recipe.yml", recipe)), tmp_path, opened)
        store = open_store(str(tmp_path / f"out{weighted}"), create=True)
        members.append(Member(inputs, OutputDirectory(inputs.plan, store)))
    meter = Meter()
    run(members, local_runner(members, meter=meter), Silent())
    group = share_reading([member.plan for member in members])
    counted = shared_fold_bytes(group, [Shard(0, tuple(range(len(members))))])
    assert meter.usage["fold"].bytes == counted == (2 + 4) * weight.numel()


@pytest.mark.parametrize("missed", [False, True])
def test_what_a_sample_spares_is_not_read_either(checkpoints: Path, tmp_path: Path, missed: bool) -> None:
    """Where inputs are read for every look: a sample, a count, the merge; histograms only where the sample misled."""
    recipe = {"merge_method": "ties", "parameters": {"density": 0.2}}
    sampled = brackets.SamplePass._bracket
    with (
        mock.patch("anabranch.engine.run.pipeline.resident_slabs", return_value=1 << 40),
        mock.patch.object(brackets.SamplePass, "_bracket", lambda *_: NO_BRACKET if missed else sampled(*_)),
    ):
        meter, _ = counted(checkpoints, tmp_path, recipe)
    looks = 5 if missed else 3
    assert meter.usage["read"].bytes == meter.usage["fold"].bytes == looks * 3 * 2 * ROWS * COLUMNS


def test_both_edges_of_a_band_begin_with_one_histogram(checkpoints: Path, tmp_path: Path) -> None:
    recipe = {"merge_method": "breadcrumbs", "parameters": {"density": 0.2}}
    with mock.patch.object(brackets.SamplePass, "_bracket", return_value=NO_BRACKET):
        _, calls = counted(checkpoints, tmp_path, recipe, whole=False)
    assert calls["histogram"] == 2 * TILES * (1 + 2)  # two models; then each edge looks into a bin of its own


def test_a_run_makes_no_more_buffers_than_it_plans(checkpoints: Path, tmp_path: Path, monkeypatch: Any) -> None:
    pools: list[BufferPool] = []
    made = BufferPool.__init__

    def remember(pool: BufferPool, *arguments: Any) -> None:
        made(pool, *arguments)
        pools.append(pool)

    monkeypatch.setattr(BufferPool, "__init__", remember)
    counted(checkpoints, tmp_path, {"merge_method": "cabs", "parameters": {"density": 0.25}})
    [pool] = pools
    assert pool.made <= pool.slabs <= (2 + AHEAD) * 4
    assert pool.made == pool.free  # every buffer came back
