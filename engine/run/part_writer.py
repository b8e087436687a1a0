"""A part of a shard on its way into the file, and what it leaves beside its bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..fold import Share
from ..plan import TensorRow
from ..storage import PartedStore, RunningDigest, digests_move, moving_digest
from .meter import Meter
from .places import Place
from .taken import TakenBytes


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a shard's file; the first one has the header, too."""

    shard: int
    begin: Place
    end: Place
    token: str
    """Of the unfinished file, see `PartedStore`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What was found in a stretch of a tensor that lies in several parts."""

    share: Share
    taken: Sequence[TakenBytes]
    """By source that is read."""


@dataclass(frozen=True, slots=True)
class PartRecord:
    """What a part leaves beside its bytes; a few kilobytes."""

    part: Part
    rows: Mapping[int, TensorRow]
    """Of tensors that lie in it whole, by position in the shard's tasks."""
    pieces: Mapping[int, Piece]
    """Of the others."""
    state: bytes | None
    """Of the digest of the file up to the part's end; None where what comes before it was not known."""
    head: bytes
    """Before the first border of ranges, where the part ahead was not known: nobody has written it."""
    tail: bytes
    """Behind the last border: nobody has written it."""


class PartWriter:
    """Takes a part's bytes in order: most go to the file, those at its borders are kept.

    Args:
        begin: of the part in the file.
        end: of the part in the file.
        size: of the file.
        before: the record of the part ahead, where it is known.
    """

    def __init__(
        self, store: PartedStore, name: str, token: str, begin: int, end: int, size: int, before: PartRecord | None
    ) -> None:
        self._place = begin
        border = store.range_rules(size).border_bytes
        carried = before.tail if before is not None else b""
        first = begin - len(carried) if begin == 0 or before is not None else -(-begin // border) * border
        last = end if end == size else end // border * border
        assert first <= last, "a part is larger than what it leaves to others"
        self._first, self._last, self._end = first, last, end
        self.head, self.tail = bytearray(), bytearray()
        known = before is not None and before.state is not None
        moves = digests_move() and (begin == 0 or known)
        self._digest = moving_digest(before.state if before is not None else None) if moves else None
        self._writer = store.range_writer(name, token, first, last, size)
        if carried:
            self._writer.write(carried)

    def write(self, data: NDArray[np.uint8], meter: Meter) -> None:
        if self._digest is not None:
            with meter.measure("hash", len(data)):
                self._digest.update(data.data)
        with meter.measure("write", len(data)):
            to_head = min(max(self._first - self._place, 0), len(data))
            to_file = min(max(self._last - self._place, 0), len(data))
            self.head += data[:to_head].data
            if to_head < to_file:
                self._writer.write(data[to_head:to_file].data)
            self.tail += data[max(to_head, to_file) :].data
        self._place += len(data)

    def commit(self) -> bytes | None:
        """Make the range durable; the state of the digest."""
        assert self._place == self._end, "every window of the part was written"
        self._writer.commit()
        return self._digest.state if isinstance(self._digest, RunningDigest) else None

    def discard(self) -> None:
        self._writer.discard()
