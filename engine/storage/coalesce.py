"""Neighbouring small reads of a remote file become one: many tensors are tiny, and a request costs milliseconds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeAlias

SMALL_READ_BYTES = 256 << 10
"""Reads up to this size take longer to ask for than to send."""

GAP_BYTES = 64 << 10
"""A small read that starts at most this far behind the one before it continues it."""

BLOCK_BYTES = 1 << 20
"""What is fetched for a read that continues another."""

MAX_BLOCKS = 4
"""Blocks kept for each store: 4 MiB for each model."""

MAX_FOLLOWED = 1024
"""Files whose size and last small read are remembered."""

Fetch: TypeAlias = Callable[[str, int, memoryview, str | None], None]


@dataclass
class _File:
    size: int
    last_end: int | None = None


@dataclass
class _Block:
    begin: int
    size: int
    data: Future[bytearray] = field(default_factory=Future)


class Coalescer:
    """Fetches ahead when small reads of one version of a file follow each other.

    The first read of a file is passed on as it is: reading a header does not fetch a megabyte. Files whose size
    was not noted are never read ahead.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[str, str], _File] = OrderedDict()
        self._blocks: list[tuple[tuple[str, str], _Block]] = []

    def note_size(self, name: str, version: str, size: int) -> None:
        """Remember a file's size, so that nothing is fetched beyond its end."""
        with self._lock:
            self._files.setdefault((name, version), _File(size))
            if len(self._files) > MAX_FOLLOWED:
                self._files.popitem(last=False)

    def read_into(self, name: str, offset: int, into: memoryview, version: str | None) -> None:
        """Fill `into` from byte `offset` on, from a block where there is one or should be one."""
        if version is None or len(into) > SMALL_READ_BYTES:
            self._fetch(name, offset, into, version)
            return
        with self._lock:
            block, is_new = self._find_or_claim((name, version), offset, offset + len(into))
        if is_new and block is not None:
            self._fill(block, name, version)
        if block is not None:
            try:
                data = block.data.result()
            except Exception:  # noqa: BLE001 - the thread that fetched the block reports why; this read asks for itself
                block = None
            else:
                into[:] = memoryview(data)[offset - block.begin : offset - block.begin + len(into)]
        if block is None:
            self._fetch(name, offset, into, version)

    def _find_or_claim(self, key: tuple[str, str], offset: int, end: int) -> tuple[_Block | None, bool]:
        """The block that holds these bytes; or a new one, to be filled by the caller; or none."""
        file = self._files.get(key)
        if file is None:
            return None, False
        continues = file.last_end is not None and 0 <= offset - file.last_end <= GAP_BYTES
        file.last_end = end
        for owner, block in self._blocks:
            if owner == key and block.begin <= offset and end <= block.begin + block.size:
                return block, False
        size = min(BLOCK_BYTES, file.size - offset)
        if not continues or end - offset > size:
            return None, False
        block = _Block(offset, size)
        self._blocks.append((key, block))
        del self._blocks[:-MAX_BLOCKS]
        return block, True

    def _fill(self, block: _Block, name: str, version: str) -> None:
        data = bytearray(block.size)
        try:
            self._fetch(name, block.begin, memoryview(data), version)
        except BaseException:
            with self._lock:
                self._blocks = [entry for entry in self._blocks if entry[1] is not block]
            block.data.cancel()
            raise
        block.data.set_result(data)
