"""How a memory limit is shared out, when it is refused, and that a process keeps to it, compiling included."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anabranch.engine.errors import ResourceError
from anabranch.engine.fold import sums
from anabranch.engine.kernels import ROW, row_sums
from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.models import BYTES_PER_TENSOR
from anabranch.engine.plan.emr_outputs import cut_parts
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.plan.plan import Plan
from anabranch.engine.plan.shared_reading import share_reading
from anabranch.engine.plan.windows import (
    cut_windows,
    least_window_elements,
    tile_elements,
    window_elements,
)
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run import commands
from anabranch.engine.run.execution import Execution
from anabranch.engine.run.local import LocalRunner
from anabranch.engine.run.memory import (
    AHEAD,
    FIXED_BYTES,
    LARGEST_REMOTE_SLAB,
    LARGEST_SLAB,
    SMALLEST_SLAB,
    STRETCH_BYTES,
    MemoryPlan,
    Surroundings,
    plan_memory,
    plan_shared_memory,
)
from anabranch.engine.run.meter import Meter
from anabranch.engine.run.prepare import prepare, share_readings
from anabranch.engine.run.protocols import Silent
from anabranch.engine.storage import client_bytes

from ...merging import MIB, merge, write_checkpoint, write_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    for name in ("base", "model0", "model1"):
        write_checkpoint(folder / name, {"a": torch.randn(300, 300).bfloat16(), "b": torch.randn(77).bfloat16()})
    write_checkpoint(folder / "wide", {"a": torch.randn(300, 300).double(), "b": torch.randn(77).double()})
    return folder


def plan_of(folder: Path, base: str = "base", **parameters: Any) -> Plan:
    method, models = parameters.pop("method", "cabs"), parameters.pop("models", 2)
    recipe = {
        "merge_method": method,
        "base_model": str(folder / base),
        "models": [{"model": str(folder / f"model{i}")} for i in range(models)],
        "parameters": parameters,
    }
    path = write_recipe(folder / "recipe.yml", recipe)
    return open_inputs(load_recipe(path), folder).plan


def least(plan: Plan, threads: int = 1) -> int:
    """The smallest limit, in MiB, that is accepted."""
    low, high = 1, 1 << 16
    while low < high:
        middle = (low + high) // 2
        try:
            plan_memory(plan, middle * MIB, threads)
            high = middle
        except ResourceError:
            low = middle + 1
    return low


def test_a_plan_never_promises_more_than_the_limit(folder: Path) -> None:
    for parameters in ({"density": 0.5}, {"density": {"tadrop": {}}}, {"density": 0.5, "block": 999}):
        plan = plan_of(folder, **parameters)
        for limit in range(least(plan), 2048, 37):
            for threads in (1, 2, 8):
                memory = plan_memory(plan, limit * MIB, threads)
                assert memory.peak_bytes <= limit * MIB
                assert 1 <= memory.threads <= threads
                assert memory.slabs >= (memory.threads + AHEAD) * 4  # base, two models and the output


def test_512_mib_are_enough_for_one_thread_of_any_recipe(folder: Path) -> None:
    for base in ("base", "wide"):
        for parameters in (
            {"density": 0.5, "block": 65535},
            {"density": {"tadrop": {"statistic": "quantile", "mean": 0.5}}},
        ):
            assert least(plan_of(folder, base, **parameters)) <= 512


def test_a_limit_that_is_too_small_is_refused_with_the_number_that_would_do(folder: Path) -> None:
    plan = plan_of(folder, density=0.5)
    enough = least(plan)
    with pytest.raises(ResourceError, match=f"the limit is {enough - 1} MiB") as refused:
        plan_memory(plan, (enough - 1) * MIB, 2)
    said = re.search(r"needs (\d+) MiB", str(refused.value))
    assert said is not None
    assert int(said[1]) == enough


def test_little_memory_means_smaller_buffers_then_fewer_threads(folder: Path) -> None:
    plan = plan_of(folder, density=0.5)
    enough = least(plan)
    plenty, tight = plan_memory(plan, 2048 * MIB, 8), plan_memory(plan, enough * MIB, 8)
    assert (plenty.slab_bytes, plenty.threads) == (LARGEST_SLAB, 8)
    assert tight.threads < 8
    assert tight.slab_bytes < LARGEST_SLAB
    assert plan_memory(plan, enough * MIB, 1).slab_bytes >= SMALLEST_SLAB


def test_only_methods_that_look_twice_keep_a_tensor_in_memory(folder: Path) -> None:
    once, twice = plan_of(folder, density=0.5), plan_of(folder, method="ties", density=0.5)
    assert plan_memory(once, 4096 * MIB, 2).peak_bytes < 500 * MIB
    memory, once_memory = (plan_memory(plan, 4096 * MIB, 2) for plan in (twice, once))
    largest = max(task.numel * task.widest_bytes for task in twice.tasks)
    assert (memory.slabs - once_memory.slabs) * memory.slab_bytes >= 3 * largest  # base and two models
    assert memory.peak_bytes < 500 * MIB  # and no more than that
    small = plan_memory(twice, least(twice) * MIB, 2)
    assert small.peak_bytes <= least(twice) * MIB  # less where the limit says so: then inputs are read again


def test_sums_of_rows_are_let_go_before_the_next_are_added_up(folder: Path, tmp_path: Path) -> None:
    """The plan counts those of one pass, for the tensor that is folded and the next one."""
    alive: list[weakref.ref[Any]] = []
    most = 0

    def fold_rows(rows: Any) -> Any:
        nonlocal most
        alive[:] = [ref for ref in alive if ref() is not None] + [weakref.ref(rows)]
        most = max(most, len(alive))
        return row_sums.fold_rows(rows)

    plan_of(folder, method="dare_linear", density=0.5, rescale_norm="l1")
    with mock.patch.object(sums, "fold_rows", fold_rows):
        merge(folder / "recipe.yml", tmp_path / "out", threads=1)
    assert most == 2  # of two models


def test_what_surrounds_a_merge_is_counted(folder: Path) -> None:
    plan = plan_of(folder, density=0.5)

    def fixed(**around: Any) -> int:
        return plan_memory(plan, 8192 * MIB, 1, Surroundings(**around)).fixed_bytes

    assert fixed() >= FIXED_BYTES
    assert fixed(client_bytes=client_bytes(["gs://b/x"])) == fixed() + client_bytes(["gs://b/x"]) > fixed()
    assert fixed(remote_inputs=True, remote_output=True) > fixed(remote_inputs=True)
    assert fixed(place_bytes=64 * MIB) == fixed() + 64 * MIB
    assert fixed(cuda=True) > fixed() + (1 << 30)
    assert plan_memory(plan, 8192 * MIB, 1, Surroundings(remote_inputs=True)).slab_bytes == LARGEST_REMOTE_SLAB


def test_each_cloud_s_client_is_counted_once(folder: Path) -> None:
    assert client_bytes(["/a", "file:///b", "memory://c"]) == 0
    assert client_bytes(["s3://a/x", "s3://b/y", "/c"]) == client_bytes(["s3://a/x"])
    assert client_bytes(["az://a", "gs://b", "s3://c"]) == sum(
        client_bytes([f"{kind}://a"]) for kind in ("az", "gs", "s3")
    )
    assert min(client_bytes([f"{kind}://a/b"]) for kind in ("az", "gs", "s3", "hf")) >= 48 * MIB


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_merge_keeps_to_the_memory_that_its_plan_reports(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device: Literal["cpu", "cuda"]
) -> None:
    monkeypatch.setattr(commands, "make_kernels", lambda _: CpuKernels())  # as if there were a device
    plan_of(folder, density=0.5)
    execution = Execution(workers=2, memory_bytes=4096 * MIB, device=device)
    (reading,) = share_readings(prepare(folder / "recipe.yml", folder / "out", execution), execution)
    members = [job.member for job in reading.jobs]
    with commands.open_runner(members, reading.memory, execution, Meter(), Silent()) as runner:
        assert isinstance(runner, LocalRunner)
        assert runner.memory == reading.memory


def test_surveyed_tensors_are_counted(folder: Path) -> None:
    plain, surveyed = plan_of(folder, density=0.5), plan_of(folder, density={"tadrop": {"mean": 0.5}})
    assert plan_memory(surveyed, 1024 * MIB, 1).fixed_bytes > plan_memory(plain, 1024 * MIB, 1).fixed_bytes


# -- windows -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 65536), st.sampled_from([1, 2, 4, 8]), st.integers(0, 21), st.integers(1, 3_000_000))
def test_every_window_fits_its_buffer_and_every_element_is_owned_once(
    block: int, element_bytes: int, shrink: int, numel: int
) -> None:
    slab = max(LARGEST_SLAB >> shrink, least_window_elements(block) * element_bytes)
    elements = window_elements(slab, element_bytes, block)
    assert elements > 0
    assert elements % ROW == 0
    windows = cut_windows(numel, elements, block)
    owned = 0
    for window in windows:
        assert (window.read_end - window.begin) * element_bytes <= slab
        assert window.own_begin == owned
        assert window.own_begin % block == 0 or window.own_begin == numel
        assert window.begin <= window.own_begin or window.own_begin == window.own_end
        owned = window.own_end
        if tile_elements(block) % ROW == 0:
            assert window.own_begin == window.begin  # tiles of whole rows need no second look
    assert owned == numel


# -- measured ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["base", "wide"])
def test_a_first_run_that_compiles_every_kernel_stays_within_what_is_planned(
    folder: Path, tmp_path: Path, base: str
) -> None:
    """What the process takes without buffers is at most what the plan calls fixed, threads' arrays beside it."""
    parameters = {"density": {"tadrop": {}}, "block": 10, "rescale": True, "rescale_norm": "l1"}
    plan = plan_of(folder, base, **parameters)
    promised: MemoryPlan = plan_memory(plan, 1024 * MIB, 2)
    command = [
        sys.executable,
        "-m",
        "anabranch.cluster.cli",
        "merge",
        str(folder / "recipe.yml"),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        [*command, "--workers", "2", "--json"],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "empty")},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout)["peak_rss_bytes"]
    assert peak < promised.fixed_bytes + promised.workspace_bytes


def empty_tensor(folder: Path, name: str, *shape: int) -> None:
    """A checkpoint of one bf16 tensor whose file takes no space."""
    elements = math.prod(shape)
    header = json.dumps({"long": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 2 * elements]}}).encode()
    header += b" " * (-len(header) % 8)
    (folder / name).mkdir()
    (folder / name / "config.json").write_text("{}")
    with open(folder / name / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * elements)


def assert_refused_for_rows_of(elements: int, plan: Plan) -> None:
    """1 GiB is too little for it, and what the refusal says it needs is enough."""
    with pytest.raises(ResourceError, match="the limit is 1024 MiB") as refused:
        plan_memory(plan, 1024 * MIB, 2)
    assert f"'long' has rows of {elements} elements" in refused.value.hint
    said = re.search(r"needs (\d+) MiB", str(refused.value))
    assert said is not None
    assert plan_memory(plan, int(said[1]) * MIB, 2).threads == 1


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("della", {"density": 0.5}), ("model_stock", {"filter_wise": True}), ("arcee_fusion", {})],
)
def test_rows_that_do_not_fit_are_refused_by_name(tmp_path: Path, method: str, parameters: dict[str, Any]) -> None:
    for name in ("base", "model0", "model1"):
        empty_tensor(tmp_path, name, 40_000_000)
    assert plan_memory(plan_of(tmp_path, density=0.5), 512 * MIB, 1).threads == 1
    plan = plan_of(tmp_path, method=method, models=1 if method == "arcee_fusion" else 2, **parameters)
    assert_refused_for_rows_of(40_000_000, plan)


COLUMNS = {"weight": 1.0, "nuslerp_flatten": False, "nuslerp_row_wise": True}


def test_columns_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("base", "model0", "model1"):
        empty_tensor(tmp_path, name, 4, 10_000_000)
    plan = plan_of(tmp_path, method="nuslerp", models=2, **COLUMNS)
    assert_refused_for_rows_of(10_000_000, plan)


def test_longer_columns_cost_more_memory(tmp_path: Path) -> None:
    """More sums of groups of rows wait for others."""
    plans = []
    for rows in (1, 1 << 10, 1 << 20):
        folder = tmp_path / str(rows)
        folder.mkdir()
        for name in ("base", "model0", "model1"):
            empty_tensor(folder, name, rows, 4096)
        plans.append(plan_memory(plan_of(folder, method="nuslerp", models=2, **COLUMNS), 2048 * MIB, 2))
    assert plans[0].fixed_bytes < plans[1].fixed_bytes < plans[2].fixed_bytes
    assert plans[0].workspace_bytes < plans[1].workspace_bytes < plans[2].workspace_bytes


def test_parts_of_a_recipe_hold_what_they_take_in_common_once(tmp_path: Path) -> None:
    """Sums of rows of a tensor of 40 million elements: two of each model's, for two tensors on the way."""
    for name in ("base", "model0", "model1"):
        empty_tensor(tmp_path, name, 40_000, 1000)
    parts = cut_parts(plan_of(tmp_path, method="emr"))
    assert len(parts) == 3
    fixed = [plan_shared_memory(share_reading(parts[:count]), 1024 * MIB, 1).fixed_bytes for count in (1, 2, 3)]
    rows = 24 * 2 * (40_000_000 // ROW + 1)
    read = 3 * STRETCH_BYTES
    assert fixed[0] - FIXED_BYTES == 4 * rows + 3 * BYTES_PER_TENSOR + read
    assert [b - a for a, b in itertools.pairwise(fixed)] == [2 * BYTES_PER_TENSOR + read] * 2
