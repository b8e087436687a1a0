"""Digests of stretches of input files: of a block by itself, and of the blocks of a stretch in order.

Blocks are counted from the first byte of a tensor, so a digest does not depend on how the tensor was read. XXH3 tells
accidents apart; whoever wants to make two files with one digest can.
"""

from __future__ import annotations

import sys
from array import array

import xxhash

BLOCK_BYTES = 256 << 10
"""Small enough to be in the processor's cache still when it is hashed after it was read, and to be kept while only a
part of it is there; 128 Ki elements of bf16, of which windows are multiples."""


def block_digest(data: memoryview | bytearray | bytes) -> int:
    """Of one block: XXH3, 64 bits. Other threads run meanwhile."""
    return xxhash.xxh3_64_intdigest(data)


BlockDigest = xxhash.xxh3_64
"""The same of a block that comes in pieces."""


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
