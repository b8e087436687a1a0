"""Damaged, lying and unfit inputs: a clear error with its exit code, and nothing in the output that looks finished."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anabranch.engine.errors import InputError
from anabranch.engine.output.commit import OutputDirectory
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run import tiny
from anabranch.engine.run.protocols import Member, Silent
from anabranch.engine.run.runner import run
from anabranch.engine.storage.local import LocalStore
from anabranch.engine.storage.retry import Fault, FaultStore

from ..merging import load_output, local_runner, merge, write_checkpoint, write_recipe
from .conftest import Command

SHAPES = {"embed.weight": (12, 4), "layers.0.w": (10, 8), "layers.1.w": (10, 8), "norm": (8,)}


class Place:
    """A base and two models, written when a test has spoilt what it wants to spoil, and a recipe with two shards."""

    def __init__(self, folder: Path, anabranch: Command) -> None:
        self.folder = folder
        self._anabranch = anabranch
        generator = torch.Generator().manual_seed(4)
        self.base = {n: torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}
        self.base["ids"] = torch.arange(6)
        self.models = [
            {n: t + 0.1 * torch.randn(t.shape, generator=generator) if n in SHAPES else t for n, t in self.base.items()}
            for _ in range(2)
        ]
        self.recipe: dict[str, Any] = {
            "merge_method": "task_arithmetic",
            "base_model": str(folder / "base"),
            "models": [{"model": str(folder / f"model{i}")} for i in range(2)],
            "output": {"shard_size": 400},
        }

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def write(self, shards: int = 1) -> None:
        for name in ("base", "model0", "model1"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        write_checkpoint(self.folder / "base", self.base, shards)
        for i, tensors in enumerate(self.models):
            write_checkpoint(self.folder / f"model{i}", tensors, shards)

    def recipe_path(self, **changes: Any) -> Path:
        return write_recipe(self.folder / "recipe.yml", self.recipe | changes)

    def refused(self, *said: str, code: int = 3, **changes: Any) -> None:
        """The merge ends with this exit code and these words, without traceback, index or manifest."""
        result = self._anabranch("merge", self.recipe_path(**changes), self.out)
        assert result.exit_code == code, result.output
        for words in said:
            assert words in result.stderr
        assert "Traceback" not in result.output
        assert "bug" not in result.stderr
        left = {path.name for path in self.out.rglob("*")} if self.out.exists() else set()
        assert not left & {"anabranch.manifest.json", "model.safetensors.index.json", "config.json"}
        assert not any(name.endswith(".tmp") for name in left)

    def accepted(self, **changes: Any) -> dict[str, torch.Tensor]:
        result = self._anabranch("merge", self.recipe_path(**changes), self.out)
        assert result.exit_code == 0, result.output
        return load_output(self.out)


@pytest.fixture
def place(tmp_path: Path, anabranch: Command) -> Place:
    return Place(tmp_path, anabranch)


# -- files: found from headers, before there is any output -------------------------------------------------------------


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a file's header and leave its tensor bytes as they are."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def grow(header: dict[str, Any]) -> None:
    header["norm"]["shape"] = [9]


def overlap(header: dict[str, Any]) -> None:
    begin, end = header["norm"]["data_offsets"]
    header["norm"]["data_offsets"] = [begin - 4, end - 4]


def beyond(header: dict[str, Any]) -> None:
    last = max((entry for name, entry in header.items() if name != "__metadata__"), key=lambda e: e["data_offsets"][1])
    last["data_offsets"][1] += 10**12


def negative(header: dict[str, Any]) -> None:
    header["norm"]["shape"] = [-8]


def unknown(header: dict[str, Any]) -> None:
    header["norm"]["dtype"] = "F17"


@pytest.mark.parametrize("change", [grow, overlap, beyond, negative, unknown])
def test_a_header_that_lies(place: Place, change: Callable[[dict[str, Any]], None]) -> None:
    place.write()
    rewrite_header(place.folder / "model1" / "model.safetensors", change)
    place.refused("model1/model.safetensors")
    assert not place.out.exists()


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_a_file_that_was_cut_off(place: Place, kept: int) -> None:
    place.write()
    file = place.folder / "model0" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    place.refused("model0/model.safetensors")
    assert not place.out.exists()


def test_a_header_length_that_cannot_be(place: Place) -> None:
    place.write()
    file = place.folder / "base" / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 1 << 62) + file.read_bytes()[8:])
    place.refused("base/model.safetensors")
    assert not place.out.exists()


def test_a_file_that_is_longer_than_its_header_says(place: Place) -> None:
    place.write()
    with open(place.folder / "base" / "model.safetensors", "ab") as file:
        file.write(b"more")
    place.refused("base/model.safetensors")


@pytest.mark.parametrize(
    "name", ["../base/model.safetensors", "/etc/passwd", "..", "a/b.safetensors", "x\0y.safetensors"]
)
def test_an_index_that_points_elsewhere(place: Place, name: str) -> None:
    place.write(shards=2)
    index = place.folder / "model0" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["norm"] = name
    index.write_text(json.dumps(content))
    place.refused("model.safetensors.index.json")
    assert not place.out.exists()


def test_a_shard_that_is_missing(place: Place) -> None:
    place.write(shards=3)
    (place.folder / "model1" / "model-00002-of-00003.safetensors").unlink()
    place.refused("1 of 3 shards are missing: model-00002-of-00003.safetensors")


def test_an_index_that_belongs_to_other_files(place: Place) -> None:
    place.write(shards=2)
    index = place.folder / "model0" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["another"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    place.refused("another", "model.safetensors.index.json")


def test_pickles_are_never_loaded(place: Place) -> None:
    place.write()
    (place.folder / "model0" / "model.safetensors").unlink()
    trap = place.folder / "trap"
    (place.folder / "model0" / "pytorch_model.bin").write_bytes(f"cposix\nsystem\n(S'touch {trap}'\ntR.".encode())
    place.refused("pickled weights only", "pytorch_model.bin")
    assert not trap.exists()


def test_a_folder_that_does_not_exist_or_is_empty(place: Place) -> None:
    place.write()
    (place.folder / "empty").mkdir()
    place.refused("empty", models=[{"model": str(place.folder / "empty")}])
    place.refused("does not exist", code=2, models=[{"model": str(place.folder / "nowhere")}])


def test_a_config_that_is_no_json_is_found_before_anything_is_written(place: Place) -> None:
    place.write()
    (place.folder / "base" / "config.json").write_text("{")
    place.refused("base/config.json is not a JSON object", out_dtype="bfloat16")
    assert not list(place.out.glob("*.safetensors"))


# -- tensors that do not fit -------------------------------------------------------------------------------------------


def test_a_shape_that_differs(place: Place) -> None:
    place.models[1]["layers.1.w"] = torch.zeros(8, 10)
    place.write()
    place.refused("model1: 'layers.1.w' has shape [8, 10], the reference has [10, 8]")
    assert not place.out.exists()


def test_extra_tensors(place: Place) -> None:
    place.models[0]["lora"] = torch.zeros(3)
    place.write()
    place.refused("model0 has 1 tensors that", "lora", "extra_tensors: ignore")
    assert "lora" not in place.accepted(extra_tensors="ignore")


def test_integers_that_differ_are_not_dropped_in_silence(place: Place) -> None:
    place.models[1]["ids"] = torch.arange(1, 7)
    place.write()
    place.refused("model1", "'ids' differs from the base in 6 bytes", "exclude")
    shutil.rmtree(place.out)
    assert torch.equal(place.accepted(exclude=["ids"])["ids"], place.base["ids"])


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "cabs", "linear"])
@pytest.mark.parametrize("source", ["base", "model1"])
def test_values_that_are_no_numbers(place: Place, method: str, source: str) -> None:
    spoilt = place.base if source == "base" else place.models[1]
    for position, value in ((3, "nan"), (17, "inf"), (44, "-inf")):
        spoilt["layers.1.w"].view(-1)[position] = float(value)
    place.write()
    changes: dict[str, Any] = {"merge_method": method}
    if method in ("ties", "cabs"):
        changes["parameters"] = {"density": 0.5}
    if method == "linear":
        models = [{"model": str(place.folder / name)} for name in ("base", "model0", "model1")]
        changes["models"] = models
    place.refused(f"{source}: tensor 'layers.1.w' holds 3 NaN or Inf values", **changes)


def test_keeping_the_base_where_a_value_is_no_number(place: Place) -> None:
    place.models[1]["layers.1.w"].view(-1)[3] = float("nan")
    place.base["layers.0.w"].view(-1)[7] = float("inf")
    place.write()
    out = place.accepted(nonfinite="keep-base")
    base, (one, two) = place.base, place.models
    expected = base["layers.1.w"] + (
        (one["layers.1.w"] - base["layers.1.w"]) + (two["layers.1.w"] - base["layers.1.w"])
    )
    expected.view(-1)[3] = (base["layers.1.w"] + (one["layers.1.w"] - base["layers.1.w"])).view(-1)[3]
    assert torch.equal(out["layers.1.w"], expected)
    assert out["layers.0.w"].view(-1)[7] == float("inf")
    assert out["layers.0.w"].isfinite().sum() == 79
    rows = json.loads((place.out / "anabranch.manifest.json").read_text())
    assert rows["merged_tensors"] == 4


def test_an_average_of_what_is_no_number_is_refused_whatever_the_recipe_says(place: Place) -> None:
    """linear has no base to keep."""
    place.models[1]["norm"][0] = float("nan")
    place.write()
    models = [{"model": str(place.folder / f"model{i}")} for i in range(2)]
    for overflow in ("error", "saturate"):
        path = place.recipe_path(merge_method="linear", models=models, nonfinite="keep-base", overflow=overflow)
        content = path.read_text().replace(f"base_model: {place.folder}/base\n", "")
        path.write_text(content)
        result = place._anabranch("merge", path, place.out)
        assert result.exit_code in (2, 3), result.output
        assert "NaN" in result.stderr or "nonfinite" in result.stderr
        assert not (place.out / "anabranch.manifest.json").exists()
        shutil.rmtree(place.out, ignore_errors=True)


def test_results_beyond_the_output_dtype(place: Place) -> None:
    place.models[0]["layers.0.w"].view(-1)[[2, 30]] = torch.tensor([1e5, -1e5])
    place.write()
    place.refused(
        "tensor 'layers.0.w': 2 values are beyond the range of F16", "overflow: saturate", out_dtype="float16"
    )
    shutil.rmtree(place.out)
    out = place.accepted(out_dtype="float16", overflow="saturate")["layers.0.w"]
    assert out.view(-1)[[2, 30]].tolist() == [65504, -65504]


def test_infinities_that_cancel_are_never_saturated_away(place: Place) -> None:
    """The sum of two task vectors at both ends of fp32, weighted, is Inf - Inf."""
    place.models[0]["norm"][3], place.models[1]["norm"][3] = 3e38, -3e38
    place.write()
    models = [{"model": str(place.folder / f"model{i}"), "parameters": {"weight": 2.0}} for i in range(2)]
    place.refused("tensor 'norm': 1 results are NaN", models=models, overflow="saturate")
    shutil.rmtree(place.out)
    place.refused("tensor 'norm': 1 values are beyond the range of F32", code=3, models=models)


@pytest.mark.parametrize("excluded", [True, False])
def test_copied_values_beyond_the_output_dtype(place: Place, excluded: bool) -> None:
    place.base["norm"][1] = 1e30
    for model in place.models:
        del model["norm"]
    place.write()
    place.refused("tensor 'norm': 1 values", out_dtype="float16", exclude=["norm"] if excluded else [])


def test_values_near_the_end_of_fp64_have_no_statistics(place: Place) -> None:
    """Their squares are infinite: no reason to fail where nothing depends on them, an error where a density would."""
    place.base["norm"] = place.base["norm"].double()
    for model in place.models:
        model["norm"] = torch.full((8,), 1e200, dtype=torch.float64)
    place.write()
    assert torch.isfinite(place.accepted()["norm"]).all()
    shutil.rmtree(place.out)
    for tadrop in ({}, {"mean": 0.5}):
        parameters = {"density": [{"filter": "norm", "value": {"tadrop": tadrop}}, {"value": 0.5}]}
        place.refused("model0: tensor 'norm' has changes so large", merge_method="cabs", parameters=parameters)
        shutil.rmtree(place.out)


# -- inputs and outputs that change under our hands --------------------------------------------------------------------


def test_an_output_of_another_plan(place: Place) -> None:
    place.write()
    place.accepted()
    manifest = place.out / "anabranch.manifest.json"
    before = manifest.read_bytes()
    result = place._anabranch("merge", place.recipe_path(parameters={"lambda": 0.5}), place.out)
    assert result.exit_code == 5
    assert "another plan" in result.stderr
    assert manifest.read_bytes() == before


def test_an_input_that_was_written_again_makes_another_plan(place: Place) -> None:
    place.write()
    place.accepted()
    (place.out / "anabranch.manifest.json").unlink()
    place.write()
    result = place._anabranch("merge", place.recipe_path(), place.out)
    assert result.exit_code == 5


def written_over(path: Path) -> None:
    tensors = load_file(path)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, path.with_name("new"))
    path.write_bytes(path.with_name("new").read_bytes())


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize("happens", [written_over, cut_off, Path.unlink])
@pytest.mark.parametrize("at_read", [1, 3])
def test_an_input_that_changes_while_it_is_read(
    place: Place, happens: Callable[[Path], None], at_read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "TINY_BYTES", 0)  # each tensor is read by itself, as large ones are
    place.write()
    inputs = open_inputs(load_recipe(place.recipe_path()), place.folder)
    folder = place.folder / "model1"
    # A fresh store: an open file could still be read after its name is gone, and rightly so.
    fault = Fault("read", at_read, times=100, action=lambda: spoil_once(folder / "model.safetensors", happens))
    source = FaultStore(Forgetful(str(folder)), fault)
    spoilt = replace(inputs, stores=[*inputs.stores[:2], source])
    output = OutputDirectory(inputs.plan, LocalStore(str(place.out), create=True))
    members = [Member(spoilt, output)]
    with pytest.raises(InputError, match=r"model1/model\.safetensors"):
        run(members, local_runner(members), Silent())
    assert not (place.out / "anabranch.manifest.json").exists()


class Forgetful(LocalStore):
    """Opens the file for every read."""

    def read_into(self, name: str, offset: int, into: memoryview, version: str | None = None) -> None:
        LocalStore(self.url).read_into(name, offset, into, version)


def spoil_once(path: Path, happens: Callable[[Path], None]) -> None:
    mark = path.with_name("spoilt")
    if not mark.exists():
        mark.touch()
        happens(path)


@pytest.mark.parametrize("happens", [Path.unlink, lambda path: path.write_text("[1]")], ids=["gone", "another"])
def test_a_side_file_that_vanishes_stops_the_run_before_its_work(
    place: Place, happens: Callable[[Path], object]
) -> None:
    place.write()
    file = place.folder / "base" / "tokenizer.json"
    file.write_text("{}")
    inputs = open_inputs(load_recipe(place.recipe_path()), place.folder)
    happens(file)
    members = [Member(inputs, OutputDirectory(inputs.plan, LocalStore(str(place.out), create=True)))]
    with pytest.raises(InputError, match=r"base/tokenizer\.json changed"):
        run(members, local_runner(members), Silent())
    assert not list(place.out.iterdir())


def test_a_config_that_is_too_large_to_be_changed_stops_the_plan(place: Place) -> None:
    place.write()
    with open(place.folder / "base" / "config.json", "wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(InputError, match=r"base/config\.json: 67108865 bytes"):
        open_inputs(load_recipe(place.recipe_path()), place.folder)


def test_an_output_folder_inside_an_input_is_no_input(place: Place) -> None:
    place.write()
    merge(place.recipe_path(), place.folder / "base" / "merged")
    assert load_output(place.folder / "base" / "merged").keys() == place.base.keys()
    result = place._anabranch("merge", place.recipe_path(), place.folder / "base")
    assert result.exit_code == 5


# -- as a user sees it -------------------------------------------------------------------------------------------------


def test_the_command_says_it_without_a_traceback(place: Place) -> None:
    place.write(shards=2)
    file = place.folder / "model0" / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    command = [sys.executable, "-m", "anabranch.cluster.cli", "merge", str(place.recipe_path()), str(place.out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3
    assert done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first.startswith(f"error: {file}")
    assert len(rest) <= 2
