"""One object that several processes upload, each a range of it, as parts of one multipart upload.

S3 puts parts together in the order of their numbers, whatever their sizes. So a part is numbered by where it begins in
the file: whoever sends a range knows its numbers, and sends the same parts when it sends them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import IntegrityError, TemporaryError
from .bucket_files import IDENTITY_ATTRIBUTE, part_size_bytes
from .bucket_ranges import RangeWriter
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


class _NumberedParts:
    """Parts of an object of `size` bytes, sent by where they begin; see `RangeParts`."""

    def __init__(self, sender: PartSender, size: int) -> None:
        self._sender = sender
        self._size = size

    def send(self, offset: int, data: memoryview) -> None:
        self._sender.send(part_number(offset, self._size), data)

    def settle(self) -> None:
        self._sender.settle()

    def cancel(self) -> None:
        self._sender.cancel()


def range_writer(
    client: S3Client, where: str, upload: Mapping[str, Any], begin: int, end: int, size: int
) -> RangeWriter:
    """See `PartedStore.range_writer`; `upload` is bucket, key and upload id."""
    part_bytes = part_size_bytes(size, client.limits.part_bytes, GRAIN_BYTES, MAX_PARTS)
    least_bytes = range_rules(size).least_bytes
    assert end - begin >= least_bytes or end == size, "ranges keep the rules"
    parts = _NumberedParts(PartSender(client, where, upload), size)
    return RangeWriter(where, parts, begin, end, part_bytes=part_bytes, least_bytes=least_bytes)


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
