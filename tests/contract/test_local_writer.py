"""Large local files: the same bytes however they come, past the page cache or not, and nothing left of a failure."""

from __future__ import annotations

import errno
import fcntl
import os
import random

import pytest

from anabranch.engine.errors import IntegrityError, ResourceError
from anabranch.engine.storage import local_writer
from anabranch.engine.storage.local import LocalStore

RUN_ID = "r1"


@pytest.fixture(autouse=True)
def _small_buffers(monkeypatch):
    monkeypatch.setattr(local_writer, "BUFFER_BYTES", 2 * local_writer.ALIGNMENT)


@pytest.fixture
def store(tmp_path):
    return LocalStore(str(tmp_path))


def write(store, data, seed=0):
    """Write in pieces of random sizes."""
    rng = random.Random(seed)
    writer = store.writer("x", len(data), {}, RUN_ID)
    at = 0
    while at < len(data):
        count = rng.choice([1, 100, 4096, 5000, 20000])
        writer.write(memoryview(data)[at : at + count])
        at += count
    writer.commit()


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 8191, 8192, 8193, 12288, 16384, 16385, 100_000])
def test_every_size_and_cut_gives_the_same_file(store, size):
    data = random.Random(size).randbytes(size)
    for seed in range(3):
        write(store, data, seed)
        assert store.read_bytes("x") == data
        assert store.info("x").size == size


def test_a_file_system_without_direct_writes_gets_the_same_bytes(store, monkeypatch):
    refused = []

    def refuse(descriptor, command, *arguments):
        if command == fcntl.F_SETFL and arguments[0] & os.O_DIRECT:
            refused.append(descriptor)
            raise OSError(errno.EINVAL, "Invalid argument")
        return original(descriptor, command, *arguments)

    original = fcntl.fcntl
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    data = random.Random(1).randbytes(50_001)
    write(store, data)
    assert refused
    assert store.read_bytes("x") == data


def test_a_file_system_that_refuses_while_writing_gets_the_same_bytes(store, monkeypatch):
    refused = []

    def refuse(descriptor, data, offset):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(offset)
            raise OSError(errno.EINVAL, "Invalid argument")
        return original(descriptor, data, offset)

    original = os.pwrite
    monkeypatch.setattr(os, "pwrite", refuse)
    data = random.Random(2).randbytes(50_001)
    write(store, data)
    assert store.read_bytes("x") == data


def test_short_writes_go_on_where_they_ended(store, monkeypatch):
    original = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda descriptor, data, offset: original(descriptor, data[: max(4096, len(data) // 2)], offset)
    )
    data = random.Random(3).randbytes(70_000)
    write(store, data)
    assert store.read_bytes("x") == data


def test_a_full_disk_is_reported_and_nothing_is_left(store, tmp_path, monkeypatch):
    def full(descriptor, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    writer = store.writer("x", 100_000, {}, RUN_ID)
    with pytest.raises(ResourceError, match="No space left"):
        writer.write(bytes(100_000))
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_too_few_and_too_many_bytes_are_refused(store, tmp_path):
    for count in (9_999, 30_000):
        writer = store.writer("x", 10_000, {}, RUN_ID)
        writer.write(bytes(count))
        with pytest.raises(IntegrityError, match=f"{count} bytes were written, expected 10000"):
            writer.commit()
        writer.discard()
    assert list(tmp_path.iterdir()) == []
