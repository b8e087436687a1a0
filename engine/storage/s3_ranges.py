"""One object that several processes upload, each a range of it, as parts of one multipart upload.

S3 puts parts together in the order of their numbers, whatever their sizes. So a part is numbered by where it begins in
the file: whoever sends a range knows its numbers, and sends the same parts when it sends them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import IntegrityError, TemporaryError
from .bucket_files import IDENTITY_ATTRIBUTE, part_size_bytes
from .protocol import RangeRules, UnjoinableError
from .s3_client import RefusedError, S3Client
from .s3_writer import GONE, GRAIN_BYTES, MAX_PARTS, PartSender, as_completed, check_published, published, to_metadata

LEAST_PART_BYTES = 5 << 20
"""S3's own limit of all parts but the last."""
JOIN_TRIES = 3
"""Of completing an upload by what its list of parts says: a twin may send one again in between, and where ETags are no
digests it has another one then."""

_UNFIT = {"InvalidPart", "InvalidPartOrder", "EntityTooSmall"}
_DENIED = {"AccessDenied", "403"}


def range_rules(size: int) -> RangeRules:
    """Ranges begin anywhere; a part has at least the bytes that one number stands for."""
    return RangeRules(1, max(LEAST_PART_BYTES, -(-size // MAX_PARTS)))


def part_number(offset: int, size: int) -> int:
    """Of the part that begins at a byte of a file of `size` bytes; from 1."""
    return offset // range_rules(size).least_bytes + 1


class S3Range:
    """Uploads the bytes from `begin` to `end` of an object of `size` bytes; see `Writer`.

    Args:
        where: our URL of the object, for messages.
        upload: bucket, key and upload id.
    """

    def __init__(
        self, client: S3Client, where: str, upload: Mapping[str, Any], begin: int, end: int, size: int
    ) -> None:
        self._where = where
        self._size = size
        self._least_bytes = range_rules(size).least_bytes
        assert end - begin >= self._least_bytes or end == size, "ranges keep the rules"
        self._part_bytes = part_size_bytes(size, client.limits.part_bytes, GRAIN_BYTES, MAX_PARTS)
        self._sender = PartSender(client, where, upload)
        self._begin, self._end = begin, end
        self._place = begin
        """Of what the buffer holds, in the object."""
        self._buffer = bytearray(min(end - begin, self._part_bytes + self._least_bytes))
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
                self._sender.send(part_number(self._place, self._size), bytes(memoryview(self._buffer)[:length]))
                self._place, self._filled = self._place + length, 0

    def _part_length(self) -> int:
        """Of the part that is being filled: what would be left behind it for too small a part belongs to it."""
        rest = self._end - self._place
        return rest if rest < self._part_bytes + self._least_bytes else self._part_bytes

    def commit(self) -> None:
        """See `PartedStore.range_writer`: all parts have arrived."""
        assert self._open, "commit after commit or discard"
        if self._place != self._end:
            written = self._place + self._filled - self._begin
            raise IntegrityError(f"{self._where}: {written} bytes were written, expected {self._end - self._begin}")
        self._sender.settle()
        self._open = False

    def discard(self) -> None:
        """The upload is not this range's to abort."""
        self._open = False
        self._sender.cancel()


def begin_upload(client: S3Client, where: str, where_object: Mapping[str, Any], attributes: Mapping[str, str]) -> str:
    """The id of a new upload."""
    answer = client.request(
        "create_multipart_upload", where, **where_object, Metadata=to_metadata(attributes),
        ContentType="application/octet-stream",
    )  # fmt: skip
    return str(answer["UploadId"])


def complete_upload(
    client: S3Client, where: str, upload: Mapping[str, Any], size: int, attributes: Mapping[str, str]
) -> None:
    """Make an object of the parts that the server lists; arguments and errors as for `PartedStore.complete`."""
    where_object = {name: upload[name] for name in ("Bucket", "Key")}

    async def is_published() -> bool:
        found = await published(client, where, where_object, size)
        return found is not None and {**found, IDENTITY_ATTRIBUTE: ""} == {**attributes, IDENTITY_ATTRIBUTE: ""}

    async def attempt(parts: list[dict[str, Any]]) -> None:
        try:
            await client.call(
                "complete_multipart_upload", where, expect=GONE | _UNFIT, **upload, MultipartUpload={"Parts": parts}
            )
        except RefusedError as error:
            if error.code in _UNFIT:
                raise
            if not await is_published():
                raise FileNotFoundError(f"{where}: its unfinished upload was removed") from error
        except TemporaryError:
            if not await is_published():
                raise

    assert attributes, "by these a twin's object is known"
    for _ in range(JOIN_TRIES):
        try:
            parts = _listed_parts(client, where, upload, size)
            client.run(client.repeat(lambda: attempt(parts)))  # noqa: B023 - it is over before the next
        except FileNotFoundError:
            if not client.run(client.repeat(is_published)):
                raise
        except RefusedError as error:
            refusal = error
            continue
        check_published(client, where, where_object, size)
        return
    raise UnjoinableError(f"{where}: the server does not put its parts together ({refusal.code})") from refusal


def _listed_parts(client: S3Client, where: str, upload: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
    """What completing takes of all parts that the server has.

    Raises:
        IntegrityError: they are not the whole file.
        RefusedError: they cannot be listed.
    """
    parts: list[dict[str, Any]] = []
    place, arguments = 0, dict(upload)
    while True:
        answer = client.request("list_parts", where, expect=_DENIED, **arguments)
        for part in answer.get("Parts", []):
            if part["PartNumber"] != part_number(place, size):
                raise IntegrityError(f"{where}: nothing was uploaded at byte {place}")
            parts.append(as_completed(part["PartNumber"], part))
            place += part["Size"]
        if not answer.get("IsTruncated"):
            break
        arguments["PartNumberMarker"] = answer["NextPartNumberMarker"]
    if place != size:
        raise IntegrityError(f"{where}: {place} bytes were written, expected {size}")
    return parts
