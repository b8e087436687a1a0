"""Digests of stretches of input files: of a block by itself, and of the blocks of a stretch in order.

Blocks are counted from the first byte of a tensor, so a digest does not depend on how the tensor was read. XXH3 tells
accidents apart; whoever wants to make two files with one digest can.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable

import xxhash

from .protocol import Store

BLOCK_BYTES = 256 << 10
"""Small enough to be in the processor's cache still when it is hashed after it was read, and to be kept while only a
part of it is there; 128 Ki elements of bf16, of which windows are multiples."""

CHUNK_BYTES = 8 << 20
"""Read at a time where a stretch is read again."""


def block_digest(data: memoryview | bytearray | bytes) -> int:
    """Of one block: XXH3, 64 bits. Other threads run meanwhile."""
    return xxhash.xxh3_64_intdigest(data)


def stretch_digest(blocks: array[int]) -> int:
    """Of blocks that follow each other, from their digests: that of a single one, else XXH3 over all of them.

    Each is spelled with 8 bytes, the least significant one first.
    """
    if len(blocks) == 1:
        return blocks[0]
    if sys.byteorder == "big":
        blocks = array("Q", blocks)
        blocks.byteswap()
    return xxhash.xxh3_64_intdigest(blocks.tobytes())


def read_digest(
    store: Store,
    name: str,
    version: str,
    stretch: tuple[int, int, int],
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """The digest that a stretch of a file has, read in pieces of a few MiB.

    Args:
        store: where the file lies.
        name: the file.
        version: it must have; see `FileInfo`.
        stretch: first byte, end, and length of its blocks.
        progress: called with the number of bytes that were just read.

    Raises:
        InputError, FileNotFoundError: the file ends too early, is another one, or gone.
    """
    begin, end, unit = stretch
    step = max(1, CHUNK_BYTES // unit) * unit
    chunk = memoryview(bytearray(min(step, CHUNK_BYTES, end - begin)))
    blocks = array("Q")
    for start in range(begin, end, step):
        stop, long_block = min(start + step, end), xxhash.xxh3_64()
        for place in range(start, stop, len(chunk)):
            piece = chunk[: stop - place]
            store.read_into(name, place, piece, version)
            progress(len(piece))
            if unit > CHUNK_BYTES:
                long_block.update(piece)
            else:
                blocks.extend(block_digest(piece[at : at + unit]) for at in range(0, len(piece), unit))
        if unit > CHUNK_BYTES:
            blocks.append(long_block.intdigest())
    return stretch_digest(blocks)
