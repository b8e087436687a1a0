"""Receipts and manifest say what was read of the inputs, the same on any schedule; readings that differ stop a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from anabranch.engine.errors import InputError, TemporaryError
from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.models.checkpoint import open_checkpoint
from anabranch.engine.output.commit import OutputDirectory
from anabranch.engine.output.finished import open_outputs
from anabranch.engine.output.manifest import INPUT_RANGES_NAME, MANIFEST_NAME
from anabranch.engine.output.verify_inputs import verify_inputs
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run.execution import Execution, worker_memory
from anabranch.engine.run.local import LocalRunner
from anabranch.engine.run.memory import AHEAD
from anabranch.engine.run.meter import Meter
from anabranch.engine.run.protocols import Member, Silent
from anabranch.engine.run.runner import run
from anabranch.engine.storage.local import LocalStore
from anabranch.engine.storage.protocol import Store
from anabranch.engine.storage.retry import Fault, FaultStore, WrappedStore

from ...adapters import write_adapter
from ...merging import MIB, merge, merge_parts, write_checkpoint, write_emr, write_merge, write_recipe

TIES = {"merge_method": "ties", "parameters": {"density": 0.4, "weight": 1.0}}
TADROP = {"merge_method": "cabs", "parameters": {"density": {"tadrop": {"mean": 0.3}}, "block": 16}}
WHOLE = {"merge_method": "ties", "parameters": {"density": 0.4, "weight": 1.0, "scope": "model"}}
SLAB_BYTES = 256 << 10


def state(out: Path) -> dict[str, bytes]:
    """All that a merge promises to write alike; tables that it finished with are held by their rows' digests."""
    names = [MANIFEST_NAME, *(str(p.relative_to(out)) for p in (out / ".anabranch/receipts").iterdir())]
    return {name: (out / name).read_bytes() for name in names}


def ranges(out: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(out / INPUT_RANGES_NAME).to_pylist()


def merge_in_small_windows(recipe: Path, out: Path | Store, inputs_as: Callable[[Store], Store] = lambda s: s) -> None:
    """With buffers of 256 KiB, too few to keep a tensor between its passes."""
    inputs = open_inputs(load_recipe(recipe), recipe.parent)
    inputs = replace(inputs, stores=[inputs_as(store) for store in inputs.stores])
    store = LocalStore(str(out), create=True) if isinstance(out, Path) else out
    member = Member(inputs, OutputDirectory(inputs.plan, store))
    memory = worker_memory([member], Execution(2, 1024 * MIB))
    per_window = inputs.plan.most_models + 2
    memory = replace(memory, slab_bytes=SLAB_BYTES, slabs=(memory.threads + AHEAD) * per_window)
    run([member], LocalRunner([member], memory, CpuKernels(), Meter()), Silent())


class Flipping(WrappedStore):
    """Flips a bit of one byte of a file in the reading of it with that number."""

    def __init__(self, inner: Store, name: str, place: int, number: int) -> None:
        super().__init__(inner)
        self._name = name
        self._place = place
        self._number = number
        self.seen = 0

    def read_into(self, name: str, offset: int, into: memoryview, version: str | None = None) -> None:
        self._inner.read_into(name, offset, into, version)
        if name == self._name and offset <= self._place < offset + len(into):
            self.seen += 1
            if self.seen == self._number:
                into[self._place - offset] ^= 1

    def _around(self, _verb: str, _name: str, operation: Callable[[], Any], /) -> Any:
        return operation()


def test_every_byte_of_every_tensor_is_covered(tmp_path: Path) -> None:
    recipe = write_merge(
        tmp_path, {"a": (300, 500), "b": (7,), "c": (3, 11)}, 0, **TIES, output={"shard_size": 700_000}
    )
    merge(recipe, tmp_path / "out")
    expected = {
        (f"{tmp_path}/{name}/model.safetensors", location.info.offset, location.info.offset + location.info.nbytes)
        for name in ("base", "model")
        for location in open_checkpoint(f"{tmp_path}/{name}").tensors.values()
    }
    assert {(row["url"], row["begin"], row["end"]) for row in ranges(tmp_path / "out")} == expected
    read = json.loads((tmp_path / "out" / MANIFEST_NAME).read_text())["read"]
    assert [entry["bytes"] for entry in read] == [4 * (300 * 500 + 7 + 33)] * 2


@pytest.mark.parametrize("method", ["ties", "cabs"])
def test_buffers_threads_and_passes_do_not_matter(tmp_path: Path, method: str) -> None:
    parameters = (
        {"density": 0.4, "weight": 1.0} if method == "ties" else {"density": {"tadrop": {"mean": 0.3}}, "block": 96}
    )
    recipe = write_merge(tmp_path, {"a": (1000, 700), "b": (9,)}, 0, merge_method=method, parameters=parameters)
    merge(recipe, tmp_path / "one", threads=1)
    merge(recipe, tmp_path / "three", threads=3, limit_mib=2048)
    merge_in_small_windows(recipe, tmp_path / "small")
    assert state(tmp_path / "one") == state(tmp_path / "three") == state(tmp_path / "small")
    assert all(row["block"] == 1 << 18 for row in ranges(tmp_path / "one"))


@pytest.mark.parametrize("number", [1, 2])
def test_a_bit_that_flips_in_one_of_two_readings_stops_the_merge(tmp_path: Path, number: int) -> None:
    recipe = write_merge(tmp_path, {"a": (1000, 700)}, 0, **TIES)
    out, place = tmp_path / "out", 2_000_000

    def flipping(store: Store) -> Store:
        return Flipping(store, "model.safetensors", place, number) if store.url.endswith("/model") else store

    with pytest.raises(
        InputError, match=r"model/model\.safetensors: bytes \d+ to \d+ changed while they were read"
    ) as e:
        merge_in_small_windows(recipe, out, flipping)
    assert e.value.exit_code == 3
    assert not list(out.glob("*.safetensors"))
    merge(recipe, out)
    merge(recipe, tmp_path / "fresh")
    assert state(out) == state(tmp_path / "fresh")


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("keys", [TADROP, WHOLE], ids=["densities", "threshold"])
def test_a_bit_that_flips_between_statistics_and_merge_stops_it(
    tmp_path: Path, number: int, keys: dict[str, Any]
) -> None:
    """Which of the readings was right is not known, so nothing that follows from either is kept."""
    recipe = write_merge(tmp_path, {f"w{i}": (20, 20) for i in range(3)}, 0, **keys, output={"shard_size": 1600})
    out = tmp_path / "out"

    def flipping(store: Store) -> Store:
        return Flipping(store, "model.safetensors", 2000, number) if store.url.endswith("/model") else store

    with pytest.raises(InputError, match="changed between the reading for statistics and the merge"):
        merge_in_small_windows(recipe, out, flipping)
    assert not (out / MANIFEST_NAME).exists()
    assert merge(recipe, out).merged_shards == (0, 1, 2)
    merge(recipe, tmp_path / "fresh")
    assert state(out) == state(tmp_path / "fresh")


def test_shards_made_from_different_bytes_are_made_again(tmp_path: Path) -> None:
    """One tensor goes into two shards; its bytes flip on the way to the second, and the run goes on once more."""
    write_checkpoint(
        tmp_path / "base",
        {f"model.layers.{i}.w": torch.randn(20, 20) for i in range(2)},
        config={"num_hidden_layers": 2, "model_type": "test"},
    )
    cut = {"sources": [{"model": str(tmp_path / "base"), "layer_range": [0, 1]}]}
    recipe = write_recipe(
        tmp_path / "r.yml",
        {"merge_method": "passthrough", "slices": [cut, cut], "output": {"shard_size": 1600}},
    )
    out, first = tmp_path / "out", open_checkpoint(str(tmp_path / "base")).tensors["model.layers.0.w"].info.offset

    def flipping(store: Store) -> Store:
        return Flipping(store, "model.safetensors", first + 5, 2)

    with pytest.raises(InputError, match="were not the same whenever they were read"):
        merge_in_small_windows(recipe, out, flipping)
    assert not (out / MANIFEST_NAME).exists()
    assert merge(recipe, out).merged_shards == (0, 1)
    merge(recipe, tmp_path / "fresh")
    assert state(out) == state(tmp_path / "fresh")


def test_a_resumed_output_says_the_same(tmp_path: Path) -> None:
    recipe = write_merge(tmp_path, {f"w{i}": (20, 20) for i in range(3)}, 0, **TIES, output={"shard_size": 1600})
    fault = Fault("writer", number=3, pattern="*.safetensors", error=TemporaryError("gone"))
    with pytest.raises(TemporaryError):
        merge(recipe, FaultStore(LocalStore(str(tmp_path / "out"), create=True), fault))
    merge(recipe, tmp_path / "out")
    merge(recipe, tmp_path / "fresh")
    assert state(tmp_path / "out") == state(tmp_path / "fresh")


def adapter_recipe(folder: Path) -> Path:
    torch.manual_seed(0)
    write_checkpoint(folder / "base", {"w.weight": torch.randn(300, 200), "v": torch.randn(4)})
    factors = {"w.lora_A.weight": torch.randn(4, 200), "w.lora_B.weight": torch.randn(300, 4)}
    write_adapter(folder / "adapter", factors)
    models = [{"model": str(folder / "base"), "adapter": str(folder / "adapter")}]
    keys = {"merge_method": "task_arithmetic", "base_model": str(folder / "base"), "models": models}
    return write_recipe(folder / "r.yml", keys | {"parameters": {"weight": 0.5}})


def test_factors_of_adapters_are_noted(tmp_path: Path) -> None:
    merge(adapter_recipe(tmp_path), tmp_path / "out")
    found = {(row["url"].removeprefix(f"{tmp_path}/"), row["end"] - row["begin"]) for row in ranges(tmp_path / "out")}
    sizes = {("base/model.safetensors", 240_000), ("base/model.safetensors", 16)}
    assert found == sizes | {("adapter/adapter_model.safetensors", size) for size in (3200, 4800)}


def test_masks_and_unified_vector_are_noted(tmp_path: Path) -> None:
    merge_parts(write_emr(tmp_path, {"w": (40, 50)}), tmp_path / "parts")
    url = f"{tmp_path}/base+{tmp_path}/parts/model"
    recipe = write_recipe(tmp_path / "t.yml", {"merge_method": "passthrough", "models": [{"model": url}]})
    merge(recipe, tmp_path / "out")
    found = {row["url"].removeprefix(f"{tmp_path}/") for row in ranges(tmp_path / "out")}
    assert found == {f"{name}/model.safetensors" for name in ("base", "parts/model", "parts/unified")}
    for name in ("parts", "out"):
        assert not verify_inputs(open_outputs(tmp_path / name)).problems


def test_inputs_of_adapters_are_compared(tmp_path: Path) -> None:
    merge(adapter_recipe(tmp_path), tmp_path / "out")
    assert not verify_inputs(open_outputs(tmp_path / "out")).problems
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    [problem] = verify_inputs(open_outputs(tmp_path / "out")).problems
    assert problem.file == str(file)
    assert "lora_" in problem.text
