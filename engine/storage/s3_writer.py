"""One object on its way to S3: parts leave while later bytes are still being computed; it appears when complete."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any

from ..errors import AnabranchError, IntegrityError, TemporaryError
from .bucket_files import IDENTITY_ATTRIBUTE, part_size_bytes
from .requests import InFlight
from .s3_client import RefusedError, S3Client

MAX_PARTS = 10_000
"""S3's own limit of parts in one upload."""
GRAIN_BYTES = 1 << 20
"""Parts that are larger than usual are whole MiB."""

GONE = {"NoSuchUpload", "404"}
"""Codes of answers about an upload that is no more."""
_CHECKSUMS = ("ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME", "ChecksumSHA1", "ChecksumSHA256")


def to_metadata(attributes: Mapping[str, str]) -> dict[str, str]:
    """Attributes as object metadata, which travels in HTTP headers: underscores get lost there, dashes do not."""
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in attributes), f"bad attribute names {attributes}"
    return {name.replace("_", "-"): value for name, value in attributes.items()}


def from_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The reverse of `to_metadata`."""
    return {name.lower().replace("-", "_"): value for name, value in metadata.items()}


class PartSender:
    """Sends parts of one upload, a few at once; each may be sent again.

    Args:
        where: our URL of the object, for messages.
        upload: bucket, key and upload id.
    """

    def __init__(self, client: S3Client, where: str, upload: Mapping[str, Any]) -> None:
        self._client = client
        self._where = where
        self._upload = upload
        self._parts: InFlight[dict[str, Any]] = InFlight(client, client.limits.parts_in_flight)

    def send(self, number: int, data: memoryview) -> None:
        """Start sending a part; waits while enough are on their way, and raises what one of these met."""
        self._parts.start(lambda: self._send(number, bytes(data)))

    def settle(self) -> list[dict[str, Any]]:
        """Wait for all of them; what completing the upload takes, in the order in which they were sent."""
        return self._parts.settle()

    def cancel(self) -> None:
        """Send nothing more."""
        self._parts.cancel()

    async def _send(self, number: int, body: bytes) -> dict[str, Any]:
        async def attempt() -> dict[str, Any]:
            return await self._client.call("upload_part", self._where, body=body, PartNumber=number, **self._upload)

        return as_completed(number, await self._client.repeat(attempt))


def as_completed(number: int, answer: Mapping[str, Any]) -> dict[str, Any]:
    """What completing an upload takes of a part, from what the server said of it."""
    found = {name: answer[name] for name in _CHECKSUMS if name in answer}
    return {"PartNumber": number, "ETag": answer["ETag"], **found}


async def published(client: S3Client, where: str, where_object: Mapping[str, Any], size: int) -> dict[str, str] | None:
    """The attributes of an object that is there with this size, else None."""
    try:
        answer = await client.call("head_object", where, **where_object)
    except FileNotFoundError:
        return None
    return from_metadata(answer.get("Metadata", {})) if answer["ContentLength"] == size else None


def check_published(client: S3Client, where: str, where_object: Mapping[str, Any], size: int) -> None:
    """IntegrityError where the object is not as large as what was sent."""
    answer = client.request("head_object", where, **where_object)
    if answer["ContentLength"] != size:
        raise IntegrityError(
            f"{where}: the server holds {answer['ContentLength']} bytes, {size} were sent",
            "The store did not keep what it confirmed; do not use this output.",
        )


class S3Writer:
    """Uploads one object; see `Writer`."""

    def __init__(
        self, client: S3Client, bucket: str, key: str, where: str, size: int, attributes: Mapping[str, str]
    ) -> None:
        self._client = client
        self._object: dict[str, Any] = {"Bucket": bucket, "Key": key}
        self._where = where
        self._size = size
        self._attributes = dict(attributes)
        self._identity = secrets.token_hex(8)
        self._metadata = to_metadata({**attributes, IDENTITY_ATTRIBUTE: self._identity})
        self._part_bytes = part_size_bytes(size, client.limits.part_bytes, GRAIN_BYTES, MAX_PARTS)
        self._buffer = bytearray(min(size, self._part_bytes))
        self._filled = 0
        self._written = 0
        self._number = 0
        """Of the last part that was sent."""
        self._parts: list[dict[str, Any]] = []
        self._upload: dict[str, Any] | None = None
        self._sender: PartSender | None = None
        self._open = True
        if size > self._part_bytes:
            answer = client.request(
                "create_multipart_upload", where, **self._object, Metadata=self._metadata,
                ContentType="application/octet-stream",
            )  # fmt: skip
            self._upload = {**self._object, "UploadId": answer["UploadId"]}
            client.run(client.learn_who_compares(self._upload))
            self._sender = PartSender(client, where, self._upload)

    def write(self, data: memoryview | bytes) -> None:
        """See `Writer.write`; waits only when enough parts are on their way. Raises what an earlier part met."""
        assert self._open, "write after commit or discard"
        view = memoryview(data).cast("B")
        self._written += len(view)
        if self._written > self._size:
            raise IntegrityError(f"{self._where}: more than the expected {self._size} bytes were written")
        while view:
            count = min(len(view), self._part_bytes - self._filled)
            self._buffer[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
            if self._filled == self._part_bytes and self._sender is not None:
                self._send_part(self._sender)

    def commit(self) -> None:
        """See `Writer.commit`; completing is one request, all or nothing."""
        assert self._open, "commit after commit or discard"
        if self._written != self._size:
            raise IntegrityError(f"{self._where}: {self._written} bytes were written, expected {self._size}")
        if self._sender is None:
            self._client.request(
                "put_object", self._where, **self._object, Metadata=self._metadata, body=bytes(self._buffer),
                ContentType="application/octet-stream",
            )  # fmt: skip
        else:
            if self._filled:
                self._send_part(self._sender)
            self._parts = self._sender.settle()
            self._client.run(self._client.repeat(self._complete))
        self._open = False
        check_published(self._client, self._where, self._object, self._size)

    def discard(self) -> None:
        """See `Writer.discard`; what cannot be aborted now is left for `gc`."""
        if not self._open:
            return
        self._open = False
        if self._sender is not None:
            self._sender.cancel()
        if self._upload is not None:
            try:
                self._client.request("abort_multipart_upload", self._where, expect=GONE, **self._upload)
            except (RefusedError, AnabranchError, FileNotFoundError):
                return

    def _send_part(self, sender: PartSender) -> None:
        """Start sending what the buffer holds as the next part."""
        sender.send(self._number + 1, memoryview(self._buffer)[: self._filled])
        self._number += 1
        self._filled = 0

    async def _complete(self) -> None:
        """Complete the upload; after a lost answer, see whether it was completed."""
        assert self._upload is not None
        try:
            await self._client.call(
                "complete_multipart_upload", self._where, expect=GONE, **self._upload,
                MultipartUpload={"Parts": self._parts},
            )  # fmt: skip
        except RefusedError as error:
            if not await self._is_published():
                raise FileNotFoundError(f"{self._where}: its unfinished upload was removed") from error
        except TemporaryError:
            if not await self._is_published():
                raise

    async def _is_published(self) -> bool:
        """Whether the object is there: ours, or a twin's of the same plan, which is byte for byte the same."""
        found = await published(self._client, self._where, self._object, self._size)
        if found is None:
            return False
        ours = found.pop(IDENTITY_ATTRIBUTE, None) == self._identity
        return ours or (bool(self._attributes) and found == self._attributes)
