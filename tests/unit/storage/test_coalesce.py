from __future__ import annotations

import threading

import pytest

from anabranch.engine.errors import TemporaryError
from anabranch.engine.storage.coalesce import BLOCK_BYTES, GAP_BYTES, MAX_BLOCKS, SMALL_READ_BYTES, Coalescer

SIZE = 3 * BLOCK_BYTES
DATA = bytes(range(251)) * (SIZE // 251 + 1)


class Source:
    """Counts fetches; fails when told to."""

    def __init__(self):
        self.fetches = []
        self.failures = 0
        self.gate = threading.Event()
        self.gate.set()

    def fetch(self, name, offset, into, version):
        self.fetches.append((offset, len(into)))
        self.gate.wait(10)
        if self.failures:
            self.failures -= 1
            raise TemporaryError("cut")
        assert offset + len(into) <= SIZE
        into[:] = DATA[offset : offset + len(into)]


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def coalescer(source):
    coalescer = Coalescer(source.fetch)
    coalescer.note_size("x", "v", SIZE)
    return coalescer


def read(coalescer, offset, count, version="v"):
    buffer = bytearray(count)
    coalescer.read_into("x", offset, memoryview(buffer), version)
    assert bytes(buffer) == DATA[offset : offset + count]


def test_the_first_small_read_fetches_what_was_asked(coalescer, source):
    read(coalescer, 100, 50)
    assert source.fetches == [(100, 50)]


def test_reads_that_follow_each_other_share_a_block(coalescer, source):
    for offset in range(0, 100_000, 1000):
        read(coalescer, offset, 900)
    assert source.fetches == [(0, 900), (1000, BLOCK_BYTES)]


def test_a_block_ends_with_the_file(coalescer, source):
    read(coalescer, SIZE - 3000, 1000)
    read(coalescer, SIZE - 2000, 1000)
    read(coalescer, SIZE - 1000, 1000)
    assert source.fetches == [(SIZE - 3000, 1000), (SIZE - 2000, 2000)]


def test_distant_large_and_unversioned_reads_are_passed_on(coalescer, source):
    read(coalescer, 0, 10)
    read(coalescer, 10 + GAP_BYTES + 1, 10)
    read(coalescer, 5, 10)
    read(coalescer, 100, SMALL_READ_BYTES + 1)
    read(coalescer, 15, 10, version=None)
    assert [count for _, count in source.fetches] == [10, 10, 10, SMALL_READ_BYTES + 1, 10]


def test_other_versions_and_files_of_unknown_size_are_not_read_ahead(coalescer, source):
    for version in ("v2", "v3"):
        read(coalescer, 0, 10, version)
        read(coalescer, 10, 10, version)
    assert [count for _, count in source.fetches] == [10] * 4


def test_few_blocks_are_kept(coalescer, source):
    for number in range(MAX_BLOCKS + 2):
        coalescer.note_size("x", str(number), SIZE)
        read(coalescer, 0, 10, str(number))
        read(coalescer, 10, 10, str(number))
    assert len(coalescer._blocks) == MAX_BLOCKS


def test_a_failed_block_is_forgotten(coalescer, source):
    read(coalescer, 0, 10)
    source.failures = 1
    with pytest.raises(TemporaryError):
        read(coalescer, 10, 10)
    read(coalescer, 20, 10)
    assert source.fetches[-1] == (20, BLOCK_BYTES)


def test_readers_of_one_block_wait_for_one_fetch(coalescer, source):
    read(coalescer, 0, 10)
    source.gate.clear()
    threads = [threading.Thread(target=read, args=(coalescer, offset, 10)) for offset in (10, 20, 30)]
    for thread in threads:
        thread.start()
        while not source.fetches[1:]:
            pass
    source.gate.set()
    for thread in threads:
        thread.join()
    assert source.fetches == [(0, 10), (10, BLOCK_BYTES)]


def test_those_who_waited_for_a_failed_block_ask_for_themselves(coalescer, source):
    read(coalescer, 0, 10)
    source.gate.clear()
    errors = []

    def leader():
        try:
            read(coalescer, 10, 10)
        except TemporaryError as error:
            errors.append(error)

    threads = [threading.Thread(target=leader), threading.Thread(target=read, args=(coalescer, 20, 10))]
    threads[0].start()
    while not source.fetches[1:]:
        pass
    threads[1].start()
    source.failures = 1
    source.gate.set()
    for thread in threads:
        thread.join()
    assert len(errors) == 1
    assert source.fetches[1] == (10, BLOCK_BYTES)
    assert len(source.fetches) == 3
