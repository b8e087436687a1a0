"""One object on its way to S3: parts leave while later bytes are still being computed; it appears when complete."""

from __future__ import annotations

import re
import secrets
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from ..errors import AnabranchError, IntegrityError, TemporaryError
from .bucket_files import IDENTITY_ATTRIBUTE, part_size_bytes
from .s3_client import RefusedError, S3Client

MAX_PARTS = 10_000
"""S3's own limit of parts in one upload."""
GRAIN_BYTES = 1 << 20
"""Parts that are larger than usual are whole MiB."""

_GONE = {"NoSuchUpload", "404"}
_CHECKSUMS = ("ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME", "ChecksumSHA1", "ChecksumSHA256")


def to_metadata(attributes: Mapping[str, str]) -> dict[str, str]:
    """Attributes as object metadata, which travels in HTTP headers: underscores get lost there, dashes do not."""
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in attributes), f"bad attribute names {attributes}"
    return {name.replace("_", "-"): value for name, value in attributes.items()}


def from_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The reverse of `to_metadata`."""
    return {name.lower().replace("-", "_"): value for name, value in metadata.items()}


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
        self._pending: deque[Future[dict[str, Any]]] = deque()
        self._parts: list[dict[str, Any]] = []
        self._upload: dict[str, Any] | None = None
        self._open = True
        if size > self._part_bytes:
            answer = client.request(
                "create_multipart_upload", where, **self._object, Metadata=self._metadata,
                ContentType="application/octet-stream",
            )  # fmt: skip
            self._upload = {**self._object, "UploadId": answer["UploadId"]}

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
            if self._filled == self._part_bytes and self._upload is not None:
                self._send_part()

    def commit(self) -> None:
        """See `Writer.commit`; completing is one request, all or nothing."""
        assert self._open, "commit after commit or discard"
        if self._written != self._size:
            raise IntegrityError(f"{self._where}: {self._written} bytes were written, expected {self._size}")
        if self._upload is None:
            self._client.request(
                "put_object", self._where, **self._object, Metadata=self._metadata, body=bytes(self._buffer),
                ContentType="application/octet-stream",
            )  # fmt: skip
        else:
            if self._filled:
                self._send_part()
            while self._pending:
                self._collect_part()
            self._client.run(self._client.repeat(self._complete))
        self._open = False
        self._check_published()

    def discard(self) -> None:
        """See `Writer.discard`; what cannot be aborted now is left for `gc`."""
        if not self._open:
            return
        self._open = False
        for future in self._pending:
            future.cancel()
        self._pending.clear()
        if self._upload is not None:
            try:
                self._client.request("abort_multipart_upload", self._where, expect=_GONE, **self._upload)
            except (RefusedError, AnabranchError, FileNotFoundError):
                return

    def _send_part(self) -> None:
        """Start sending what the buffer holds as the next part."""
        while len(self._pending) >= self._client.limits.parts_in_flight:
            self._collect_part()
        arguments = {**(self._upload or {}), "PartNumber": len(self._parts) + len(self._pending) + 1}
        body = bytes(memoryview(self._buffer)[: self._filled])

        async def attempt() -> dict[str, Any]:
            return await self._client.call("upload_part", self._where, body=body, **arguments)

        self._pending.append(self._client.start(self._client.repeat(attempt)))
        self._filled = 0

    def _collect_part(self) -> None:
        """Wait for the oldest part on its way."""
        answer = self._pending[0].result()
        self._pending.popleft()
        part = {"PartNumber": len(self._parts) + 1, "ETag": answer["ETag"]}
        self._parts.append(part | {name: answer[name] for name in _CHECKSUMS if name in answer})

    async def _complete(self) -> None:
        """Complete the upload; after a lost answer, see whether it was completed."""
        assert self._upload is not None
        try:
            await self._client.call(
                "complete_multipart_upload", self._where, expect=_GONE, **self._upload,
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
        try:
            answer = await self._client.call("head_object", self._where, **self._object)
        except FileNotFoundError:
            return False
        found = from_metadata(answer.get("Metadata", {}))
        ours = found.pop(IDENTITY_ATTRIBUTE, None) == self._identity
        twin = bool(self._attributes) and found == self._attributes
        return bool(answer["ContentLength"] == self._size and (ours or twin))

    def _check_published(self) -> None:
        answer = self._client.request("head_object", self._where, **self._object)
        if answer["ContentLength"] != self._size:
            raise IntegrityError(
                f"{self._where}: the server holds {answer['ContentLength']} bytes, {self._size} were sent",
                "The store did not keep what it confirmed; do not use this output.",
            )
