"""Which plans share a reading, what it reads, and what it needs in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anabranch.engine.kernels import ROW
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.plan.plan import Plan
from anabranch.engine.plan.shared_reading import share_reading, why_apart
from anabranch.engine.plan.windows import cut_windows, joint_window_elements, least_joint_elements
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run.memory import AHEAD, LARGEST_SLAB, PARTS_BYTES, Surroundings, plan_memory, plan_shared_memory

from ...merging import MIB, write_checkpoint, write_recipe

MODELS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("group")
    tensors = {"layers.0.a": torch.randn(300, 300).bfloat16(), "layers.1.b": torch.randn(77).bfloat16()}
    for name in ("base", *(f"model{i}" for i in range(MODELS))):
        write_checkpoint(folder / name, tensors)
    write_checkpoint(folder / "other", tensors | {"layers.2.c": torch.randn(5).bfloat16()})
    return folder


def plan_of(folder: Path, models: tuple[int, ...] = (0, 1), base: str = "base", **changes: Any) -> Plan:
    recipe = {
        "merge_method": "cabs",
        "base_model": str(folder / base),
        "models": [{"model": str(folder / f"model{i}")} for i in models],
        "parameters": {"density": 0.5},
    }
    path = write_recipe(folder / "recipe.yml", recipe | changes)
    return open_inputs(load_recipe(path), folder).plan


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"parameters": {"density": 0.2, "block": 999, "lambda": 2.0}}, ""),
        ({"merge_method": "ties", "parameters": {}}, ""),
        ({"merge_method": "linear", "base_model": None, "parameters": {}}, ""),
        ({"models": (2, 1, 0)}, ""),
        ({"models": (2,)}, ""),
        ({"exclude": ["*.a"]}, ""),
        ({"out_dtype": "float16"}, ""),
        ({"seed": 3, "overflow": "saturate", "nonfinite": "keep-base"}, ""),
        ({"output": {"shard_size": 1000}}, "cut into other files"),
        ({"base": "other", "strict": False}, "its output has other tensors"),
    ],
    ids=str,
)
def test_layout_decides_who_shares_a_reading(folder: Path, changes: dict[str, Any], reason: str) -> None:
    found = why_apart([plan_of(folder)], plan_of(folder, **changes))
    assert reason in found
    assert bool(reason) == bool(found)


def test_an_output_dtype_of_another_width_may_cut_other_files(folder: Path) -> None:
    small = {"output": {"shard_size": 200_000}}
    assert why_apart([plan_of(folder, **small)], plan_of(folder, **small, out_dtype="float16")) == ""
    assert "out_dtype" in why_apart([plan_of(folder, **small)], plan_of(folder, **small, out_dtype="float32"))


def test_strangers_do_not_share(folder: Path, tmp_path: Path) -> None:
    stranger = tmp_path
    for name in ("base", "model0", "model1"):
        write_checkpoint(
            stranger / name,
            {"layers.0.a": torch.randn(300, 300).bfloat16(), "layers.1.b": torch.randn(77).bfloat16()},
        )
    assert "no input in common" in why_apart([plan_of(folder)], plan_of(stranger))


def test_every_input_is_read_once(folder: Path) -> None:
    plans = [plan_of(folder, (0, 1)), plan_of(folder, (1, 2)), plan_of(folder, (2, 0), exclude=["*.a"])]
    group = share_reading(plans)
    assert [source.url.rsplit("/", 1)[-1] for source in group.sources] == ["base", "model0", "model1", "model2"]
    assert group.places == ((0, 1, 2), (0, 2, 3), (0, 3, 1))
    assert group.most_reads == 4
    for position, task in enumerate(plans[0].tasks):
        one = task.base.info.nbytes
        assert group.read_bytes(position, (0,)) == group.read_bytes(position, (0, 0)) == 3 * one
        assert group.read_bytes(position, (0, 1, 2)) == 4 * one
        assert group.read_bytes(position, (2,)) == (one if plans[2].tasks[position].method is None else 3 * one)


def test_a_model_that_a_recipe_names_twice_is_read_twice_as_alone(folder: Path) -> None:
    group = share_reading([plan_of(folder, (0, 0)), plan_of(folder, (0, 1))])
    assert group.places == ((0, 1, 2), (0, 1, 3))


def test_the_memory_of_a_group_holds_a_buffer_for_every_input_and_output(folder: Path) -> None:
    plans = [
        plan_of(folder, (0, 1)),
        plan_of(folder, (1, 2), parameters={"density": 0.5, "block": 65_521}),
        plan_of(folder, (2, 0), parameters={"density": 0.5, "block": 999}, out_dtype="float32"),
    ]
    group = share_reading(plans)
    for limit in (420, 512, 1024):
        for threads in (1, 2, 8):
            memory = plan_shared_memory(group, limit * MIB, threads)
            assert memory.peak_bytes <= limit * MIB
            assert memory.slabs >= (memory.threads + AHEAD) * (group.most_reads + len(plans))
    alone = max(plan_memory(plan, 1024 * MIB, 2).fixed_bytes for plan in plans)
    assert plan_shared_memory(group, 1024 * MIB, 2).fixed_bytes > alone
    remote = Surroundings(remote_output=True)
    uploads = plan_shared_memory(group, 1024 * MIB, 2, remote).fixed_bytes
    uploads -= plan_shared_memory(group, 1024 * MIB, 2).fixed_bytes
    assert uploads >= len(plans) * PARTS_BYTES


@given(
    st.lists(st.integers(1, 65536), min_size=1, max_size=4),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 21),
    st.integers(1, 3_000_000),
)
def test_windows_that_recipes_share_fit_a_buffer_and_keep_the_blocks_of_each_whole(
    blocks: list[int], element_bytes: int, shrink: int, numel: int
) -> None:
    slab = max(LARGEST_SLAB >> shrink, least_joint_elements(blocks) * element_bytes)
    elements = joint_window_elements(slab, element_bytes, blocks)
    assert elements > 0
    assert elements % ROW == 0
    spans = set()
    for block in blocks:
        windows = cut_windows(numel, elements, block)
        spans.add(tuple((window.begin, window.end) for window in windows))
        assert [window.own_begin for window in windows] == [0, *(window.own_end for window in windows[:-1])]
        assert windows[-1].own_end == numel
        for window in windows:
            assert (window.read_end - window.begin) * element_bytes <= slab
            assert window.own_begin % block == 0 or window.own_begin == numel
    assert len(spans) == 1
