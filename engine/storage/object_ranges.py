"""One object that several processes upload, each a range of it, where the cloud takes its parts in any order."""

from __future__ import annotations

from .bucket_files import part_size_bytes
from .bucket_ranges import RangeWriter
from .object_bucket import RangedBucket
from .protocol import RangeRules
from .requests import InFlight


def range_rules(bucket: RangedBucket, size: int) -> RangeRules:
    """Ranges begin anywhere; less than a part is not worth one."""
    return RangeRules(1, _part_bytes(bucket, size))


def range_writer(bucket: RangedBucket, key: str, where: str, mark: str, begin: int, end: int, size: int) -> RangeWriter:
    """See `PartedStore.range_writer`."""
    parts, least_bytes = _Parts(bucket, key, where, mark, size), bucket.least_part_bytes(size)
    assert end - begin >= least_bytes or end == size, "ranges keep the rules"
    return RangeWriter(where, parts, begin, end, part_bytes=_part_bytes(bucket, size), least_bytes=least_bytes)


def _part_bytes(bucket: RangedBucket, size: int) -> int:
    return part_size_bytes(size, bucket.client.limits.part_bytes, bucket.granularity_bytes, bucket.most_parts)


class _Parts:
    """See `RangeParts`."""

    def __init__(self, bucket: RangedBucket, key: str, where: str, mark: str, size: int) -> None:
        self._bucket = bucket
        self._client = bucket.client
        self._key, self._where, self._mark, self._size = key, where, mark, size
        self._parts: InFlight[None] = InFlight(bucket.client, bucket.client.limits.parts_in_flight)

    def send(self, offset: int, data: memoryview) -> None:
        self._parts.start(lambda: self._send(offset, bytes(data)))

    def settle(self) -> None:
        self._parts.settle()

    def cancel(self) -> None:
        self._parts.cancel()

    async def _send(self, offset: int, body: bytes) -> None:
        await self._client.repeat(
            self._where, lambda: self._bucket.send(self._key, self._mark, offset, body, self._size), len(body)
        )
