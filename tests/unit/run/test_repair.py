"""Damaged outputs made right again: the bytes of an undisturbed merge, and nothing that is not ours touched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from anabranch.engine.errors import OutputConflictError
from anabranch.engine.run import repair

from ...merging import merge, write_merge

SHARD = "model-00002-of-00003.safetensors"
MANIFEST = "anabranch.manifest.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and its finished output of three shards, `out`."""
    folder = tmp_path_factory.mktemp("repair")
    keys = {"merge_method": "cabs", "parameters": {"density": 0.25, "block": 32}, "output": {"shard_size": "11KB"}}
    merge(write_merge(folder, {f"t{i}": (40, 32) for i in range(5)}, 3, **keys), folder / "out")
    return folder


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole / "out", tmp_path / "out"))


def files(folder: Path) -> dict[str, bytes]:
    """What an output is, without the record of this host's input files."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if not name.endswith("inputs.json")}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def tell_another_plan(path: Path) -> None:
    path.write_text(path.read_text().replace('"density":0.25', '"density":0.26'))


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a flipped bit": (SHARD, flip),
    "half a shard": (SHARD, lambda path: path.write_bytes(path.read_bytes()[:700])),
    "no shard": (SHARD, Path.unlink),
    "no configuration": ("config.json", Path.unlink),
    "another index": ("model.safetensors.index.json", lambda path: path.write_text("{}")),
    "a damaged table": ("anabranch.tensors.parquet", flip),
    "an unreadable manifest": (MANIFEST, lambda path: path.write_text("{")),
    "a manifest of another recipe": (MANIFEST, tell_another_plan),
    "a damaged receipt": (f".anabranch/receipts/{SHARD}.json", lambda path: path.write_text("{}")),
    "no plan": (".anabranch/plan.json", lambda path: path.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_again(whole: Path, out: Path, damage: str) -> None:
    name, apply = DAMAGES[damage]
    apply(out / name)
    done = repair(whole / "recipe.yml", out)
    assert [problem.file for problem in done.damaged] == [name]
    assert not done.result.problems
    assert files(out) == files(whole / "out")


def test_a_whole_output_is_left_as_it_is(whole: Path, out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    done = repair(whole / "recipe.yml", out)
    assert not done.damaged and not done.result.problems
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_recipe_changes_nothing(whole: Path, out: Path, tmp_path: Path) -> None:
    flip(out / SHARD)
    before = files(out)
    other = tmp_path / "other.yml"
    other.write_text((whole / "recipe.yml").read_text().replace("0.25", "0.5"))
    with pytest.raises(OutputConflictError):
        repair(other, out)
    assert files(out) == before


def test_a_mistyped_place_is_no_merge(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputConflictError, match="holds no output"):
        repair(whole / "recipe.yml", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
