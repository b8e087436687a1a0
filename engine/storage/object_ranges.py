"""One object that several processes upload, each a range of it, where the cloud takes its parts in any order."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future

from .bucket_files import part_size_bytes
from .bucket_ranges import RangeWriter
from .object_bucket import RangedBucket
from .protocol import RangeRules


def range_rules(bucket: RangedBucket, size: int) -> RangeRules:
    """Ranges begin anywhere; less than a part is not worth one."""
    return RangeRules(1, _part_bytes(bucket, size))


def range_writer(bucket: RangedBucket, key: str, where: str, mark: str, begin: int, end: int, size: int) -> RangeWriter:
    """See `PartedStore.range_writer`."""
    parts = _Parts(bucket, key, where, mark)
    return RangeWriter(where, parts, begin, end, part_bytes=_part_bytes(bucket, size), least_bytes=1)


def _part_bytes(bucket: RangedBucket, size: int) -> int:
    """Half of the parts that a server takes are left to the ends of ranges."""
    limits = bucket.client.limits
    return part_size_bytes(size, limits.part_bytes, bucket.granularity_bytes, bucket.most_parts // 2)


class _Parts:
    """See `RangeParts`."""

    def __init__(self, bucket: RangedBucket, key: str, where: str, mark: str) -> None:
        self._bucket = bucket
        self._client = bucket.client
        self._key, self._where, self._mark = key, where, mark
        self._pending: deque[Future[None]] = deque()

    def send(self, offset: int, body: bytes) -> None:
        while len(self._pending) >= self._client.limits.parts_in_flight:
            self._collect()
        sending = self._client.repeat(
            self._where, lambda: self._bucket.send(self._key, self._mark, offset, body), len(body)
        )
        self._pending.append(self._client.start(sending))

    def settle(self) -> None:
        while self._pending:
            self._collect()

    def cancel(self) -> None:
        for future in self._pending:
            future.cancel()
        self._pending.clear()

    def _collect(self) -> None:
        """Wait for the oldest part on its way."""
        self._pending[0].result()
        self._pending.popleft()
