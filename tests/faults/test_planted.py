"""What somebody planted in an output's folder leads no write and no removal out of it, with and without assertions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from anabranch.engine.errors import InputError, ResourceError
from anabranch.engine.storage import Leftover, Store, open_store

from .conftest import Disturbed

TEMPORARY = ".anabranch-x.safetensors-abc.01234567.tmp"
OLD = 10 * 24 * 3600


def test_gc_follows_no_planted_plan_even_without_assertions(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".anabranch").mkdir(parents=True)
    (out / ".anabranch" / "plan.json").write_text(json.dumps({"layout": [{"name": "../x.safetensors"}]}))
    outside = tmp_path / TEMPORARY
    outside.write_text("somebody else's")
    os.utime(outside, (0, 0))
    done = subprocess.run(
        [sys.executable, "-O", "-m", "anabranch.cluster.cli", "gc", str(out), "--yes"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "has a path separator" in done.stderr
    assert outside.exists()


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "", "a//b", "./x", "x\0"])
def test_no_store_takes_a_name_that_leads_out(tmp_path: Path, name: str) -> None:
    store = open_store(str(tmp_path / "out"), create=True)
    actions = [
        lambda: store.create(name, b""),
        lambda: store.replace(name, b""),
        lambda: store.delete(name),
        lambda: store.read_bytes(name),
        lambda: store.leftovers([name]),
        lambda: store.delete_leftover(Leftover("x", f"{name}/{TEMPORARY}", 0.0, 0)),
    ]
    for action in actions:
        with pytest.raises(InputError):
            action()


@pytest.mark.parametrize("planted", [".anabranch", ".anabranch/receipts", ".anabranch/survey"])
def test_a_planted_link_to_a_folder_is_refused(disturbed: Disturbed, tmp_path: Path, planted: str) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (out / planted).parent.mkdir(parents=True)
    (out / planted).symlink_to(elsewhere)
    done = disturbed.run(out)
    assert done.returncode == 6, done.stderr
    assert "is a symbolic link" in done.stderr
    assert not list(elsewhere.iterdir())


def test_a_planted_link_to_a_file_is_replaced_and_not_followed(disturbed: Disturbed, tmp_path: Path) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    assert disturbed.run(out).returncode == 0
    victim.write_text("somebody else's")
    (out / "anabranch.manifest.json").unlink()  # as after a kill just before the commit
    for name in ("config.json", "model.safetensors.index.json", "anabranch.tensors.parquet"):
        (out / name).unlink()
        (out / name).symlink_to(victim)
    assert disturbed.run(out).returncode == 0
    assert victim.read_text() == "somebody else's"
    assert not any(path.is_symlink() for path in out.iterdir())
    disturbed.assert_done(out)


def test_leftovers_behind_a_link_are_not_removed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / TEMPORARY).write_text("x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "folder").symlink_to(elsewhere)
    store = open_store(str(tmp_path / "out"))
    with pytest.raises(ResourceError, match="is a symbolic link"):
        store.delete_leftover(Leftover("folder/x.safetensors", f"folder/{TEMPORARY}", 0.0, 1))
    assert (elsewhere / TEMPORARY).exists()


@pytest.mark.parametrize(
    "planted",
    [
        ".anabranch/plan.json",
        "anabranch.manifest.json",
        *(pytest.param(f".anabranch/{name}", marks=pytest.mark.slow) for name in ("tasks.parquet", "inputs.json")),
    ],
)
def test_a_planted_link_to_a_file_of_ours_is_not_read(disturbed: Disturbed, tmp_path: Path, planted: str) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    assert disturbed.run(out).returncode == 0
    if not planted.endswith("manifest.json"):
        (out / "anabranch.manifest.json").unlink()  # as after a kill just before the commit
    (out / planted).rename(elsewhere)
    (out / planted).symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    done = disturbed.run(out)
    assert done.returncode == 6, done.stderr
    assert f"{planted} is a symbolic link" in done.stderr
    assert elsewhere.read_bytes() == before


def test_the_output_itself_may_be_a_link(disturbed: Disturbed, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert disturbed.run(tmp_path / "out").returncode == 0
    assert (tmp_path / "out").is_symlink()
    disturbed.assert_done(tmp_path / "disk")


ACTIONS = {
    "create": lambda store: store.create("sub/x", b"ours"),
    "replace": lambda store: store.replace("sub/x", b"ours"),
    "writer": lambda store: _write(store, "sub/x"),
    "delete": lambda store: store.delete("sub/victim"),
    "read": lambda store: store.read_bytes("sub/victim"),
    "info": lambda store: store.info("sub/victim"),
    "leftovers": lambda store: [store.delete_leftover(each) for each in store.leftovers(["sub/x.safetensors"])],
}


def _write(store: Store, name: str) -> None:
    writer = store.writer(name, 4, {}, "abc")
    try:
        writer.write(b"ours")
        writer.commit()
    finally:
        writer.discard()


@pytest.mark.parametrize("action", ACTIONS)
def test_a_link_put_there_at_the_worst_moment_leads_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Whatever call of the system comes next, a link takes the folder's place just before it."""
    sub, elsewhere = tmp_path / "out" / "sub", tmp_path / "elsewhere"
    for moment in range(6):
        store = open_store(str(tmp_path / "out"), create=True, own=True)
        for folder, text in ((sub, "ours"), (elsewhere, "somebody else's")):
            folder.mkdir(exist_ok=True)
            (folder / "victim").write_text(text)
            (folder / TEMPORARY).write_text(text)
        with _swapped_before_call(monkeypatch, moment, sub, elsewhere), suppress(ResourceError, FileNotFoundError):
            found = ACTIONS[action](store)
            assert action != "read" or found == b"ours"
            assert action != "info" or found.size == len("ours")
        assert sorted(os.listdir(elsewhere)) == [TEMPORARY, "victim"]
        assert (elsewhere / "victim").read_text() == "somebody else's"
        if sub.is_symlink():
            sub.unlink()
            sub.with_name("moved").rename(sub)
        (sub / "x").unlink(missing_ok=True)


@contextmanager
def _swapped_before_call(monkeypatch: pytest.MonkeyPatch, moment: int, folder: Path, target: Path) -> Iterator[None]:
    """The call of that number among those with paths finds a link in place of the folder, which was moved away."""
    calls = []

    def swap() -> None:
        calls.append(None)
        if len(calls) == moment + 1:
            moved(folder, folder.with_name("moved"))
            folder.symlink_to(target)

    moved = os.rename
    with monkeypatch.context() as patch:
        for name in ("open", "link", "replace", "unlink", "stat", "scandir"):
            patch.setattr(os, name, _after(swap, getattr(os, name)))
        yield


def _after(before, call):  # type: ignore[no-untyped-def]
    def both(*arguments, **keywords):  # type: ignore[no-untyped-def]
        before()
        return call(*arguments, **keywords)

    return both
