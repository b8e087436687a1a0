"""What was read of input files for one tensor of the output: digests of blocks, compared whenever one is read again."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

from ..errors import InputError
from ..models import TensorInfo
from ..plan import InputRange, Plan
from ..storage import BLOCK_BYTES, block_digest, stretch_digest


class Stretch(NamedTuple):
    """Bytes of a file that were read, and their digest."""

    url: str
    begin: int
    """In the file."""
    end: int
    unit: int
    """Length of its blocks; the last one may be shorter."""
    digest: int
    """See `stretch_digest`."""


_LOCK = threading.Lock()
"""Held while digests are compared and parts of blocks are copied, never while anything is hashed; one for all, as many
tensors are tiny."""
_Place = tuple[str, int, int, int]
"""A stored tensor: URL, offset, size, length of its blocks."""


def input_ranges(plan: Plan, read: Iterable[Stretch]) -> set[InputRange]:
    """What was read, each once, as the plan counts its files."""
    places = plan.input_places
    return {InputRange(places[url], *rest) for url, *rest in read}


class TakenBytes:
    """Notes what is read of some stored tensors; windows, their order, and readings that overlap do not matter.

    A block that is read whole is hashed at once. Parts of one are kept until they are the whole block, or all that was
    ever read of it. Reads come from several threads.
    """

    def __init__(self) -> None:
        self._tensors: dict[_Place, int | _Blocks] = {}
        """What is known of each; of one that is a single block and was read at once, its digest."""

    def note(self, url: str, info: TensorInfo, begin: int, data: memoryview, by_rows: bool = False) -> None:
        """Bytes of a tensor, from its byte `begin` on, as they were read.

        Args:
            url: of the file.
            info: the tensor in it.
            begin: where in the tensor they start.
            data: the bytes.
            by_rows: blocks are the tensor's rows, which then may come in any order without being kept.

        Raises:
            InputError: a block was read before, and had other bytes.
        """
        size = info.nbytes
        unit = max(1, size // info.shape[0]) if by_rows and info.shape else BLOCK_BYTES
        place = (url, info.offset, size, unit)
        if len(data) == size <= unit:
            digest = block_digest(data)
            if self._tensors.setdefault(place, digest) == digest:
                return
        with _LOCK:
            blocks = self._tensors.get(place)
            if not isinstance(blocks, _Blocks):
                blocks = self._tensors[place] = _Blocks(size, unit, blocks)
        changed = blocks.note(begin, data)
        if changed is not None:
            first, last = changed * unit, min((changed + 1) * unit, size)
            raise InputError(
                f"{url}: bytes {info.offset + first} to {info.offset + last} changed while they were read: a second "
                f"reading, for {info.name!r}, differs from the first",
                "Something writes there, or memory, disk or network change bytes. When that has stopped, run the same "
                "command again.",
            )

    def stretches(self) -> list[Stretch]:
        """Everything that was read, by file and place; called when reading is over."""
        found = []
        for (url, offset, size, unit), known in self._tensors.items():
            if isinstance(known, int):
                found.append(Stretch(url, offset, offset + size, unit, known))
            else:
                found += [Stretch(url, offset + a, offset + b, unit, digest) for a, b, digest in known.stretches()]
        return sorted(found) if len(found) > 1 else found

    def take(self, other: TakenBytes) -> None:
        """Add what somebody else noted of other blocks of the same tensors."""
        for (url, offset, size, unit), known in other._tensors.items():
            own = self._tensors.setdefault((url, offset, size, unit), known)
            if own is not known:
                assert isinstance(own, _Blocks), "a tensor that is cut has many blocks"
                assert isinstance(known, _Blocks), "of which some were read there"
                own.take(known)


class _Blocks:
    """The blocks of one tensor."""

    __slots__ = ("_digests", "_known", "_parts", "_size", "_unit")

    def __init__(self, size: int, unit: int, first: int | None = None) -> None:
        """`first` is the digest of its only block, where that is known already."""
        count = -(-size // unit)
        self._size = size
        self._unit = unit
        self._digests = array("Q", bytes(8 * count))
        self._known = bytearray(count)
        self._parts: dict[int, _Part] = {}
        if first is not None:
            self._known[0], self._digests[0] = 1, first

    def note(self, begin: int, data: memoryview) -> int | None:
        """Take bytes in; the number of a block that differs from an earlier reading, or None."""
        end, unit = begin + len(data), self._unit
        number, place = begin // unit, begin
        while place < end:
            start, stop = number * unit, min((number + 1) * unit, self._size)
            piece = data[place - begin : min(stop, end) - begin]
            block: memoryview | bytearray | None = piece
            if len(piece) < stop - start:
                with _LOCK:
                    block = self._keep(number, place - start, piece, stop - start)
            if block is not None and not self._settle(number, block_digest(block)):
                return number
            number, place = number + 1, stop
        return None

    def _settle(self, number: int, digest: int) -> bool:
        """Whether a whole block has the digest that it had before, if it was read before."""
        with _LOCK:
            self._parts.pop(number, None)
            if self._known[number]:
                return self._digests[number] == digest
            self._known[number] = 1
            self._digests[number] = digest
            return True

    def _keep(self, number: int, begin: int, piece: memoryview, size: int) -> bytearray | None:
        """Keep a part of a block until the whole is there, which is returned."""
        part = self._parts.get(number)
        if part is None:
            part = self._parts[number] = _Part(size)
        part.add(begin, piece)
        return self._parts.pop(number).data if part.whole else None

    def __reduce__(self) -> tuple[Any, ...]:
        """What travels from one process to another: the stretch that is known, of a tensor that may be much larger."""
        first, last = max(self._known.find(1), 0), self._known.rfind(1) + 1
        known, digests = bytes(self._known[first:last]), self._digests[first:last].tobytes()
        return _Blocks.known, (self._size, self._unit, first, known, digests, self._parts)

    @classmethod
    def known(cls, size: int, unit: int, first: int, known: bytes, digests: bytes, parts: dict[int, _Part]) -> _Blocks:
        """Blocks of which those from number `first` on are known where `known` is 1."""
        blocks = cls(size, unit)
        blocks._known[first : first + len(known)] = known
        blocks._digests[first : first + len(known)] = array("Q", digests)
        blocks._parts = parts
        return blocks

    def take(self, other: _Blocks) -> None:
        for number, known in enumerate(other._known):
            if known:
                self._settle(number, other._digests[number])

    def stretches(self) -> Iterator[tuple[int, int, int]]:
        """(begin, end, digest) of whole blocks that follow each other, and of parts of blocks."""
        for known, run in groupby(range(len(self._known)), self._known.__getitem__):
            numbers = list(run) if known else []
            if numbers:
                first, last = numbers[0], numbers[-1] + 1
                end = min(last * self._unit, self._size)
                yield first * self._unit, end, stretch_digest(self._digests[first:last])
        for number, part in self._parts.items():
            start = number * self._unit
            for begin, end in part.spans if not self._known[number] else ():
                data = memoryview(part.data)[begin:end]
                yield start + begin, start + end, block_digest(data)


class _Part:
    """A block of which some bytes are there."""

    __slots__ = ("data", "spans")

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.spans: list[tuple[int, int]] = []

    def add(self, begin: int, piece: memoryview) -> None:
        end = begin + len(piece)
        self.data[begin:end] = piece
        joined = []
        for span in self.spans:
            if span[1] < begin or end < span[0]:
                joined.append(span)
            else:
                begin, end = min(begin, span[0]), max(end, span[1])
        self.spans = sorted([*joined, (begin, end)])

    @property
    def whole(self) -> bool:
        return self.spans == [(0, len(self.data))]
