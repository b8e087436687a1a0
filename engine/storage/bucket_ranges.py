"""A range of an object that several processes upload, whichever cloud has the bucket."""

from __future__ import annotations

from typing import Protocol

from ..errors import IntegrityError


class RangeParts(Protocol):
    """Parts on their way; each may be sent again."""

    def send(self, offset: int, data: memoryview) -> None:
        """Start sending the bytes from `offset` on; waits while enough are on their way, and raises what they met.

        They are copied: the memory is free for others when this returns.
        """

    def settle(self) -> None:
        """Wait for all of them."""

    def cancel(self) -> None:
        """Send nothing more."""


class RangeWriter:
    """Uploads the bytes from `begin` to `end` of an object; see `PartedStore.range_writer`.

    The same range is always sent in the same parts.

    Args:
        where: our URL of the object, for messages.
        parts: take what is written.
        begin: of the range in the object.
        end: of the range in the object.
        part_bytes: of a part.
        least_bytes: what would be left for a shorter last part belongs to the one before it.
    """

    def __init__(
        self, where: str, parts: RangeParts, begin: int, end: int, *, part_bytes: int, least_bytes: int
    ) -> None:
        self._where = where
        self._parts = parts
        self._part_bytes, self._least_bytes = part_bytes, least_bytes
        self._begin, self._end = begin, end
        self._place = begin
        """Of what the buffer holds, in the object."""
        self._buffer = bytearray(min(end - begin, part_bytes + least_bytes))
        self._filled = 0
        self._open = True

    def write(self, data: memoryview | bytes) -> None:
        """See `Writer.write`; waits only when enough parts are on their way. Raises what an earlier part met."""
        assert self._open, "write after commit or discard"
        view = memoryview(data).cast("B")
        if self._place + self._filled + len(view) > self._end:
            raise IntegrityError(f"{self._where}: more than the expected {self._end - self._begin} bytes were written")
        while view:
            length = self._part_length()
            count = min(len(view), length - self._filled)
            self._buffer[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
            if self._filled == length:
                self._parts.send(self._place, memoryview(self._buffer)[:length])
                self._place, self._filled = self._place + length, 0

    def _part_length(self) -> int:
        """Of the part that is being filled."""
        rest = self._end - self._place
        return rest if rest < self._part_bytes + self._least_bytes else self._part_bytes

    def commit(self) -> None:
        """See `PartedStore.range_writer`: all parts have arrived."""
        assert self._open, "commit after commit or discard"
        if self._place != self._end:
            written = self._place + self._filled - self._begin
            raise IntegrityError(f"{self._where}: {written} bytes were written, expected {self._end - self._begin}")
        self._parts.settle()
        self._open = False

    def discard(self) -> None:
        """The upload is not this range's to abort."""
        self._open = False
        self._parts.cancel()
