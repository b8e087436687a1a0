"""Digests of what was read do not depend on how it was read, and a second reading that differs is an error."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import xxhash

from anabranch.engine.errors import InputError
from anabranch.engine.models.header import TensorInfo
from anabranch.engine.run.taken import Stretch, TakenBytes
from anabranch.engine.storage.digests import BLOCK_BYTES

SIZE = 2 * BLOCK_BYTES + 1001
DATA = random.Random(0).randbytes(SIZE)
INFO = TensorInfo("w", "U8", (SIZE,), 88)
ROWS, COLUMNS = 50, 30
MATRIX = TensorInfo("m", "U8", (ROWS, COLUMNS), 10)


def note(taken: TakenBytes, begin: int, end: int, data: bytes = DATA) -> None:
    taken.note("f", INFO, begin, memoryview(data)[begin:end])


def note_all(taken: TakenBytes, pieces: list[tuple[int, int]], data: bytes = DATA) -> None:
    for begin, end in pieces:
        note(taken, begin, end, data)


def whole() -> list[Stretch]:
    taken = TakenBytes()
    note(taken, 0, SIZE)
    return taken.stretches()


def cuts(seed: int, size: int = SIZE) -> list[tuple[int, int]]:
    """All bytes, in pieces of any length that overlap a little, in any order."""
    chance = random.Random(seed)
    places = sorted({0, size, *(chance.randrange(size) for _ in range(12))})
    pieces = [(a, min(size, b + chance.choice([0, 0, 3000]))) for a, b in pairwise(places)]
    chance.shuffle(pieces)
    return pieces


def test_one_stretch_names_the_bytes_in_the_file() -> None:
    [found] = whole()
    assert found[:4] == ("f", 88, 88 + SIZE, BLOCK_BYTES)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_order_and_overlaps_do_not_matter(seed: int) -> None:
    taken = TakenBytes()
    for begin, end in cuts(seed):
        note(taken, begin, end)
    assert taken.stretches() == whole()


@pytest.mark.parametrize("seed", range(5))
def test_threads_do_not_matter(seed: int) -> None:
    taken = TakenBytes()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda piece: note(taken, *piece), cuts(seed) * 3))
    assert taken.stretches() == whole()


@pytest.mark.parametrize("place", [0, BLOCK_BYTES - 1, BLOCK_BYTES, SIZE - 1])
@pytest.mark.parametrize("seed", range(3))
def test_any_bit_that_differs_in_a_second_reading_is_found(place: int, seed: int) -> None:
    taken = TakenBytes()
    note(taken, 0, SIZE)
    other = bytearray(DATA)
    other[place] ^= 1 << seed
    with pytest.raises(InputError, match=r"^f: bytes \d+ to \d+ changed while they were read: .* for 'w'"):
        note_all(taken, cuts(seed), bytes(other))


def test_a_second_reading_that_is_the_same_changes_nothing() -> None:
    taken = TakenBytes()
    for seed in range(4):
        for begin, end in cuts(seed):
            note(taken, begin, end)
    assert taken.stretches() == whole()


def test_what_was_never_read_is_in_no_stretch() -> None:
    one, other = TakenBytes(), TakenBytes()
    for begin, end in [(100, 200), (BLOCK_BYTES, 2 * BLOCK_BYTES), (300, 310)]:
        note(one, begin, end)
    for begin, end in [(300, 310), (BLOCK_BYTES, BLOCK_BYTES + 7), (100, 150), (BLOCK_BYTES + 5, 2 * BLOCK_BYTES)]:
        note(other, begin, end)
    note(other, 150, 200)
    assert one.stretches() == other.stretches()
    spans = [(found.begin - 88, found.end - 88) for found in one.stretches()]
    assert spans == [(100, 200), (300, 310), (BLOCK_BYTES, 2 * BLOCK_BYTES)]


def rows_noted(pieces: list[tuple[int, int]]) -> TakenBytes:
    taken = TakenBytes()
    for begin, end in pieces:
        taken.note("f", MATRIX, begin, memoryview(DATA)[begin:end], by_rows=True)
    return taken


@pytest.mark.parametrize("seed", range(5))
def test_rows_come_in_any_order(seed: int) -> None:
    chance = random.Random(seed)
    rows = [row for row in range(ROWS) if row not in (3, 4, 20)]
    pieces = [(row * COLUMNS, (row + 1) * COLUMNS) for row in rows]
    halves = [part for a, b in pieces for part in ((a, a + 7), (a + 7, b))]
    chance.shuffle(halves)
    found = rows_noted(halves).stretches()
    assert found == rows_noted([(0, 90), (150, 600), (630, 1500)]).stretches()
    assert [(each.begin, each.end, each.unit) for each in found] == [(10, 100, 30), (160, 610, 30), (640, 1510, 30)]


def test_whole_rows_are_not_kept() -> None:
    taken = rows_noted([(row * COLUMNS, (row + 1) * COLUMNS) for row in range(0, ROWS, 2)])
    [blocks] = taken._tensors.values()
    assert not blocks._parts


def test_tensors_are_noted_apart() -> None:
    """Two tensors that lie behind each other, and the same bytes seen as another tensor."""
    taken = TakenBytes()
    for name, offset in (("a", 0), ("b", 10)):
        taken.note("f", TensorInfo(name, "U8", (10,), offset), 0, memoryview(DATA)[offset : offset + 10])
    taken.note("f", TensorInfo("both", "U8", (20,), 0), 0, memoryview(DATA)[:20])
    assert [(each.begin, each.end) for each in taken.stretches()] == [(0, 10), (0, 20), (10, 20)]


def test_a_digest_is_that_of_the_published_algorithm() -> None:
    """XXH3 of the little-endian digests of the blocks: what another program needs to check them."""
    blocks = [DATA[at : at + BLOCK_BYTES] for at in range(0, SIZE, BLOCK_BYTES)]
    digests = b"".join(xxhash.xxh3_64_intdigest(block).to_bytes(8, "little") for block in blocks)
    assert whole()[0].digest == xxhash.xxh3_64_intdigest(digests)
    taken = TakenBytes()
    taken.note("f", TensorInfo("w", "U8", (5,), 0), 0, memoryview(b"hello"))
    assert taken.stretches() == [Stretch("f", 0, 5, BLOCK_BYTES, xxhash.xxh3_64_intdigest(b"hello"))]
