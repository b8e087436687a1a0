"""Inputs that are replaced by others of the same name, size and time never end up half and half in an output."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anabranch.engine.errors import InputError, TemporaryError
from anabranch.engine.json_text import sealed_json, unsealed
from anabranch.engine.output.manifest import INPUTS_NAME, MANIFEST_NAME
from anabranch.engine.storage.local import LocalStore
from anabranch.engine.storage.retry import Fault, FaultStore

from ...merging import merge, write_merge


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Three shards of one tensor each; `other` is a model of the same shapes."""
    parameters = {"density": {"tadrop": {"mean": 0.3}}, "block": 16}
    keys = {"merge_method": "cabs", "parameters": parameters, "output": {"shard_size": 1600}, "others": ("other",)}
    return write_merge(tmp_path, {f"w{i}": (20, 20) for i in range(3)}, 0, **keys)


def by_rename(old: Path, new: Path) -> None:
    times = old.stat()
    os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(new, old)


def in_place(old: Path, new: Path) -> None:
    times = old.stat()
    old.write_bytes(new.read_bytes())
    os.utime(old, ns=(times.st_atime_ns, times.st_mtime_ns))


WAYS = [by_rename, in_place]


def swap(folder: Path, way: Callable[[Path, Path], None]) -> None:
    """The other model at the place of the first, with its name, size and time."""
    old, new = (folder / name / "model.safetensors" for name in ("model", "other"))
    before = old.stat()
    way(old, new)
    after = old.stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)


def kill(recipe: Path, out: Path) -> None:
    """A run that has its survey and two of three shards."""
    fault = Fault("writer", number=3, pattern="*.safetensors", error=TemporaryError("gone"))
    with pytest.raises(TemporaryError):
        merge(recipe, FaultStore(LocalStore(str(out), create=True), fault))
    assert len(list(out.glob("*.safetensors"))) == 2


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.safetensors")}


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_is_replaced_between_two_runs_is_merged_whole(
    recipe: Path, tmp_path: Path, way: Callable[[Path, Path], None]
) -> None:
    kill(recipe, tmp_path / "out")
    swap(tmp_path, way)
    outcome = merge(recipe, tmp_path / "out")
    assert outcome.merged_shards == (0, 1, 2)
    merge(recipe, tmp_path / "fresh")
    assert shards(tmp_path / "out") == shards(tmp_path / "fresh")


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_is_replaced_while_it_is_merged_gives_no_manifest(
    recipe: Path, tmp_path: Path, way: Callable[[Path, Path], None]
) -> None:
    fault = Fault("writer", number=2, pattern="*.safetensors", action=lambda: swap(tmp_path, way))
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"model\.safetensors: changed while"):
        merge(recipe, FaultStore(LocalStore(str(out), create=True), fault))
    assert not (out / MANIFEST_NAME).exists()
    merge(recipe, out)
    merge(recipe, tmp_path / "fresh")
    assert shards(out) == shards(tmp_path / "fresh")


def test_what_another_host_read_is_gone_on_with(recipe: Path, tmp_path: Path) -> None:
    kill(recipe, tmp_path / "out")
    path = tmp_path / "out" / INPUTS_NAME
    record = unsealed(path.read_bytes())
    path.write_bytes(sealed_json({**record, "host": "another", "files": {}}))
    assert merge(recipe, tmp_path / "out").merged_shards == (2,)


@pytest.mark.parametrize("record", [{"host": "another", "files": {}}, None])
def test_a_model_that_is_replaced_before_another_host_goes_on_is_merged_whole(
    recipe: Path, tmp_path: Path, record: dict[str, Any] | None
) -> None:
    """Nor where nothing was noted; size, time and header are the same."""
    kill(recipe, tmp_path / "out")
    path = tmp_path / "out" / INPUTS_NAME
    if record is None:
        path.unlink()
    else:
        path.write_bytes(sealed_json({**unsealed(path.read_bytes()), **record}))
    swap(tmp_path, by_rename)
    assert merge(recipe, tmp_path / "out").merged_shards == (0, 1, 2)
    merge(recipe, tmp_path / "fresh")
    assert shards(tmp_path / "out") == shards(tmp_path / "fresh")


def test_where_nobody_knows_what_was_read_everything_is_made_again(recipe: Path, tmp_path: Path) -> None:
    kill(recipe, tmp_path / "out")
    (tmp_path / "out" / INPUTS_NAME).write_bytes(b"{}")
    assert merge(recipe, tmp_path / "out").merged_shards == (0, 1, 2)
