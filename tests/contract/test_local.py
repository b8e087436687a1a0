from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from anabranch.engine.errors import InputError, ResourceError, TemporaryError
from anabranch.engine.storage import local, local_open_files, local_writer
from anabranch.engine.storage.local import LocalStore
from anabranch.engine.storage.opening import open_store

from .store_contract import RUN_ID, StoreContract


class TestLocalStoreWithoutHardLinks(StoreContract):
    keeps_attributes = False

    @pytest.fixture
    def store(self, tmp_path, monkeypatch):
        def refuse(*arguments, **keywords):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(os, "link", refuse)
        return open_store(str(tmp_path / "folder"))

    @pytest.mark.skip(reason="exclusive creation needs hard links")
    def test_one_of_many_creators_wins(self, store):
        """See the contract."""


class TestLocalStore(StoreContract):
    keeps_attributes = False

    @pytest.fixture
    def store(self, tmp_path):
        return open_store(str(tmp_path / "folder"))

    def test_reads_are_cut_to_what_one_call_moves(self, store, monkeypatch):
        monkeypatch.setattr(local, "MAX_CALL_BYTES", 7)
        data = bytes(range(100))
        self.write(store, "x", data)
        assert store.read_bytes("x") == data
        assert self.read(store, "x", 3, 90, store.info("x").version) == data[3:93]

    def test_in_place_changes_are_seen_through_open_files(self, store):
        store.replace("x", b"aaaa")
        version = store.info("x").version
        assert self.read(store, "x", 0, 4, version) == b"aaaa"
        with open(store.path("x"), "r+b") as file:
            file.write(b"bb")
        os.utime(store.path("x"), ns=(1, 1))
        with pytest.raises(InputError, match=r"x: changed while in use"):
            self.read(store, "x", 0, 4, version)

    def test_a_file_replaced_under_an_open_descriptor_still_reads_as_it_was(self, store):
        store.replace("x", b"aaaa")
        version = store.info("x").version
        assert self.read(store, "x", 0, 2, version) == b"aa"
        store.replace("x", b"bbbb")
        assert self.read(store, "x", 2, 2, version) == b"aa"
        assert store.read_bytes("x") == b"bbbb"

    def test_the_disk_is_asked_once_for_what_comes_later_in_a_file(self, store, monkeypatch):
        """Whoever reads a file in order, with whatever descriptors, has every byte but the first few announced."""
        asked = []
        monkeypatch.setattr(os, "posix_fadvise", lambda _, offset, size, advice: asked.append((offset, size, advice)))
        monkeypatch.setattr(local, "READ_AHEAD_BYTES", 300)
        monkeypatch.setattr(local, "LEAST_STREAMED_BYTES", 100)
        store.replace("file", bytes(1000))
        version = store.info("file").version
        for offset in range(0, 1000, 100):
            store.read_into("file", offset, memoryview(bytearray(100)), version=version)
        store.read_into("file", 0, memoryview(bytearray(100)))  # of no version: nothing is said about what comes next
        store.read_into("file", 0, memoryview(bytearray(99)), version=version)  # such as a header
        assert asked == [(offset + 300, 100, os.POSIX_FADV_WILLNEED) for offset in range(0, 1000, 100)]

    def test_open_files_are_bounded(self, store, monkeypatch):
        monkeypatch.setattr(local_open_files, "MAX_IDLE_FILES", 3)
        for number in range(10):
            store.replace(f"f{number}", b"1")
        before = len(os.listdir("/proc/self/fd"))
        versions = {name: store.info(name).version for name in store.list()}
        for _ in range(2):
            for name, version in versions.items():
                assert self.read(store, name, 0, 1, version) == b"1"
        assert len(os.listdir("/proc/self/fd")) <= before + 3
        del store

    def test_temporaries_lie_beside_the_file_and_are_not_listed(self, store):
        writer = store.writer("sub/model.safetensors", 3, {}, RUN_ID)
        (name,) = os.listdir(store.path("sub"))
        assert name.startswith(f".anabranch-model.safetensors-{RUN_ID}.")
        assert name.endswith(".tmp")
        assert store.list("sub") == []
        writer.discard()
        assert os.listdir(store.path("sub")) == []

    def test_only_temporaries_of_the_asked_names_are_left_over(self, store, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        ours = folder / ".anabranch-model.safetensors-x9.0123abcd.tmp"
        for path in (ours, folder / ".anabranch-notes.tmp", folder / ".anabranch-other-x.0123abcd.tmp"):
            path.write_bytes(b"12")
        os.utime(ours, (0, 0))
        (leftover,) = store.leftovers(["model.safetensors"], older_than_seconds=86400)
        assert leftover.size == 2
        store.delete_leftover(leftover)
        assert not ours.exists()
        assert len(list(folder.iterdir())) == 2

    def test_new_files_follow_the_umask(self, store):
        previous = os.umask(0o027)
        try:
            self.write(store, "a", b"1")
            store.create("b", b"1")
            store.replace("c", b"1")
        finally:
            os.umask(previous)
        assert [os.stat(store.path(name)).st_mode & 0o777 for name in "abc"] == [0o640] * 3

    def test_links_are_followed_for_reading(self, store, tmp_path):
        (tmp_path / "blob").write_bytes(b"data")
        store.replace("x", b"")
        os.symlink(tmp_path / "blob", store.path("link"))
        os.symlink(tmp_path / "gone", store.path("broken"))
        assert store.list() == ["broken", "link", "x"]
        assert store.read_bytes("link") == b"data"
        with pytest.raises(FileNotFoundError):
            store.info("broken")

    def test_pipes_and_folders_are_not_files(self, store):
        store.replace("sub/x", b"")
        os.mkfifo(store.path("pipe"))
        for name in ("pipe", "sub"):
            with pytest.raises(InputError, match="regular file"):
                store.info(name)
            with pytest.raises(InputError, match="regular file"):
                store.read_bytes(name)

    def test_a_failed_small_write_leaves_nothing(self, store, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "fsync", _fail_with_enospc)
        with pytest.raises(ResourceError, match="No space left"):
            store.replace("x", b"1")
        with pytest.raises(ResourceError):
            store.create("x", b"1")
        monkeypatch.undo()
        assert os.listdir(tmp_path / "folder") == []


def _fail_with_enospc(descriptor):
    raise OSError(28, "No space left on device")


def test_urls_of_local_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_store("a/../b/").url == str(tmp_path / "b")
    assert open_store(f"file://{tmp_path}/b").url == str(tmp_path / "b")
    with pytest.raises(InputError):
        open_store("")


def test_opening_for_output_makes_the_folder(tmp_path):
    store = open_store(str(tmp_path / "a" / "b"), create=True)
    assert os.listdir(tmp_path / "a" / "b") == []
    assert store.list() == []


def test_a_folder_that_cannot_be_made_is_a_resource_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="in the way"):
        open_store(str(tmp_path / "file" / "out"), create=True)


def test_free_space_is_asked_of_the_nearest_existing_folder(tmp_path):
    assert open_store(str(tmp_path / "not" / "yet")).free_bytes() > 0


def run_as_nobody(code: str) -> str:
    """Run code as an ordinary user (root ignores permissions), who may be unable to import anything."""
    script = f"""
import os, sys
from anabranch.engine.storage import open_store
import anabranch.engine.storage.local
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
try:
    {code}
except OSError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def test_missing_permission_is_a_resource_error():
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        folder = Path(name) / "closed"
        folder.mkdir()
        (folder / "x").write_bytes(b"1")
        folder.chmod(0o555)
        (folder / "x").chmod(0o200)
        for code in (
            f"open_store({str(folder)!r}, create=True)",
            f"open_store({str(folder)!r}).read_bytes('x')",
            f"open_store({str(folder)!r}).writer('y', 1, {{}}, 'run')",
            f"open_store({str(folder / 'sub')!r}, create=True)",
        ):
            assert run_as_nobody(code).startswith("ResourceError"), code
        folder.chmod(0o755)


def test_publishing_order_is_write_sync_rename_sync(tmp_path, monkeypatch):
    calls = []
    for verb in ("fsync", "replace", "link"):
        original = getattr(os, verb)
        monkeypatch.setattr(
            os,
            verb,
            lambda *arguments, original=original, verb=verb, **keywords: (
                calls.append(verb),
                original(*arguments, **keywords),
            )[1],
        )
    store = LocalStore(str(tmp_path))
    writer = store.writer("x", 1, {}, RUN_ID)
    writer.write(b"1")
    writer.commit()
    assert calls == ["fsync", "replace", "fsync"]
    calls.clear()
    store.create("y", b"1")
    assert calls == ["fsync", "link", "fsync"]
    calls.clear()
    store.replace("y", b"1")
    assert calls == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize(
    ("number", "kind"), [(28, ResourceError), (122, ResourceError), (30, ResourceError), (5, TemporaryError)]
)
def test_system_errors_become_ours(number, kind):
    error = local.translate(OSError(number, os.strerror(number)), "/out/x")
    assert type(error) is kind
    assert "/out/x" in str(error)
    assert os.strerror(number) in str(error)


def test_concurrent_first_writes_share_a_new_folder(tmp_path):
    store = LocalStore(str(tmp_path / "a" / "b"))
    failures = []

    def work(number: int) -> None:
        try:
            store.replace(f"deep/er/{number}", b"1")
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(store.list("deep/er")) == 8


@pytest.mark.parametrize("moment", ["set_direct", "_aligned"])
def test_an_interrupt_while_a_file_is_begun_leaves_nothing(tmp_path, monkeypatch, moment):
    """It comes at any moment, also before anybody else knows of the file."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    store = open_store(str(tmp_path), own=True)
    monkeypatch.setattr(local_writer, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.writer("a/b", 10, {}, RUN_ID)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_probe_that_a_kill_left_is_found_with_what_a_merge_left(tmp_path: Path) -> None:
    killed = tmp_path / ".anabranch-probe-probe.0123abcd.tmp"
    killed.touch()
    store = LocalStore(str(tmp_path), create=True)
    (leftover,) = store.leftovers(["model.safetensors"])
    store.delete_leftover(leftover)
    assert not list(tmp_path.iterdir())
