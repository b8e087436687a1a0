"""A manifest is true when it is written, and an output that is asked for again is looked at again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anabranch.engine.errors import IntegrityError
from anabranch.engine.models import INDEX_NAME
from anabranch.engine.output.manifest import MANIFEST_NAME, TENSORS_NAME
from anabranch.engine.storage.local import LocalStore
from anabranch.engine.storage.memory import MemoryStore
from anabranch.engine.storage.protocol import FileInfo, Store
from anabranch.engine.storage.retry import Fault, FaultStore, WrappedStore

from ...merging import merge, write_merge

SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
PUBLISHED = [SHARDS[0], SHARDS[2], "config.json", TENSORS_NAME, INDEX_NAME]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of two tensors each."""
    folder = tmp_path_factory.mktemp("watch")
    shapes = {f"w{i}": (20, 10) for i in range(6)}
    path = write_merge(folder, shapes, 0, merge_method="task_arithmetic", output={"shard_size": 1600})
    merge(path, folder / "out")
    return path


def remove(store: Store, name: str) -> None:
    store.delete(name)


def shorten(store: Store, name: str) -> None:
    store.replace(name, store.read_bytes(name)[:-1])


def replace_by_zeros(store: Store, name: str) -> None:
    store.replace(name, bytes(store.info(name).size))


def flip_in_place(store: Store, name: str) -> None:
    """The same file, size and modification time; an object store knows no such thing."""
    if not isinstance(store, LocalStore):
        return replace_by_zeros(store, name)
    path = Path(store.path(name))
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\xa5" * 8)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return None


WAYS = [remove, shorten, replace_by_zeros, flip_in_place]


@pytest.mark.parametrize("local", [False, True], ids=["memory", "local"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_no_manifest_stays_over_a_file_that_is_gone(
    recipe: Path, tmp_path: Path, way: Callable[[Store, str], None], local: bool, when: str
) -> None:
    for name in PUBLISHED:
        inner = LocalStore(str(tmp_path / name), create=True) if local else MemoryStore()
        spoil = lambda inner=inner, name=name: way(inner, name)  # noqa: E731
        if when == "after":
            fault = Fault("create", pattern=MANIFEST_NAME, action=spoil)
        elif name == INDEX_NAME:
            continue  # the last file before the manifest
        else:
            fault = Fault("replace", pattern=INDEX_NAME, action=spoil)
        with pytest.raises(IntegrityError, match=f"{name}.* changed while the merge ran"):
            merge(recipe, FaultStore(inner, fault))
        assert MANIFEST_NAME not in inner.list()
        merge(recipe, inner)
        assert_whole(inner, recipe)


def assert_whole(store: Store, recipe: Path) -> None:
    expected = recipe.parent / "out"
    assert store.list() == sorted(path.name for path in expected.iterdir() if path.is_file())
    for name in store.list():
        assert store.read_bytes(name) == (expected / name).read_bytes(), name


def test_a_twin_that_publishes_the_same_file_again_is_welcome(recipe: Path, tmp_path: Path) -> None:
    inner = LocalStore(str(tmp_path / "out"), create=True)
    again = lambda: inner.replace(SHARDS[0], inner.read_bytes(SHARDS[0]))  # noqa: E731
    merge(recipe, FaultStore(inner, Fault("create", pattern=MANIFEST_NAME, action=again)))
    assert_whole(inner, recipe)


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_a_folder_that_vanishes_in_the_middle_gets_no_manifest(recipe: Path, tmp_path: Path, how: str) -> None:
    out = tmp_path / "out"
    inner = LocalStore(str(out), create=True)

    def remove() -> None:
        while out.exists():  # the receipt of the first shard may appear while its folder is emptied
            shutil.rmtree(out, ignore_errors=True)

    action = remove if how == "removed" else (lambda: out.rename(tmp_path / "elsewhere"))
    fault = Fault("writer", number=2, pattern="*.safetensors", action=action)
    with pytest.raises((IntegrityError, FileNotFoundError)):
        merge(recipe, FaultStore(inner, fault))
    for folder in tmp_path.iterdir():
        assert not (folder / MANIFEST_NAME).exists()


@pytest.mark.parametrize("local", [False, True], ids=["memory", "local"])
@pytest.mark.parametrize("way", WAYS)
def test_a_finished_output_that_lost_a_file_is_not_complete(
    recipe: Path, tmp_path: Path, way: Callable[[Store, str], None], local: bool
) -> None:
    store = LocalStore(str(tmp_path / "out"), create=True) if local else MemoryStore()
    merge(recipe, store)
    assert merge(recipe, store).already_complete
    for name in PUBLISHED:
        way(store, name)
        outcome = merge(recipe, store)
        assert not outcome.already_complete
        assert outcome.merged_shards == ((SHARDS.index(name),) if name in SHARDS else ())
        assert_whole(store, recipe)
        assert merge(recipe, store).already_complete


class SetBack(WrappedStore):
    """A file system under whose clock one file changed a day before everything else."""

    def __init__(self, inner: Store, name: str) -> None:
        super().__init__(inner)
        self._name = name

    def _around(self, verb: str, name: str, operation: Callable[[], Any], /) -> Any:
        found = operation()
        if verb == "info" and name == self._name and isinstance(found, FileInfo):
            return found._replace(changed_ns=found.changed_ns - 86_400 * 10**9)
        return found


def test_a_clock_that_was_set_back_hides_no_damage(recipe: Path, tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "out"), create=True)
    merge(recipe, store)
    assert merge(recipe, SetBack(store, SHARDS[1])).already_complete
    flip_in_place(store, SHARDS[1])
    assert merge(recipe, SetBack(store, SHARDS[1])).merged_shards == (1,)
    assert_whole(store, recipe)


def test_a_copy_of_a_finished_output_is_complete(recipe: Path, tmp_path: Path) -> None:
    shutil.copytree(recipe.parent / "out", tmp_path / "copy")
    assert merge(recipe, tmp_path / "copy").already_complete
