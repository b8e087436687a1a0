"""One object that several processes upload, each a range of it, where the cloud takes its parts in any order."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from ..errors import IntegrityError
from .object_bucket import Bucket, part_size_bytes
from .protocol import RangeRules
from .requests import InFlight


def range_rules(bucket: Bucket, size: int) -> RangeRules:
    """Ranges begin anywhere; less than a part is not worth one."""
    return RangeRules(1, part_size_bytes(bucket, size))


class RangeWriter:
    """Uploads the bytes from `begin` to `end` of an object; see `PartedStore.range_writer`.

    The same range is always sent in the same parts.

    Args:
        bucket: where it goes.
        key: of the object.
        where: our URL of the object, for messages.
        mark: of the upload.
        begin: of the range in the object.
        end: of the range in the object.
        size: bytes of the object.
    """

    def __init__(self, bucket: Bucket, key: str, where: str, mark: str, begin: int, end: int, size: int) -> None:
        self._bucket = bucket
        self._client = bucket.client
        self._key, self._where, self._mark, self._size = key, where, mark, size
        self._part_bytes = part_size_bytes(bucket, size)
        self._least_bytes = bucket.least_part_bytes(size)
        """What would be left for a shorter last part belongs to the one before it."""
        assert end - begin >= self._least_bytes or end == size, "ranges keep the rules"
        self._begin, self._end = begin, end
        self._place = begin
        """Of what the buffer holds, in the object."""
        self._buffer = bytearray(min(end - begin, self._part_bytes + self._least_bytes))
        self._filled = 0
        self._parts = InFlight(self._client, self._client.limits.parts_in_flight)
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
                self._parts.start(self._next_part)

    def _part_length(self) -> int:
        """Of the part that is being filled."""
        rest = self._end - self._place
        return rest if rest < self._part_bytes + self._least_bytes else self._part_bytes

    def _next_part(self) -> Coroutine[Any, Any, None]:
        offset, body = self._place, bytes(memoryview(self._buffer)[: self._filled])
        self._place, self._filled = offset + len(body), 0
        return self._client.repeat(
            self._where, lambda: self._bucket.send(self._key, self._mark, offset, body, self._size), len(body)
        )

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
