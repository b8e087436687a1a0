"""S3 through s3fs's credentials: conditions by ETag, multipart uploads that are known by their ids.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

from ..errors import IntegrityError, TemporaryError
from .object_bucket import ObjectInfo, Unfinished, check_limit, check_range, part_size_bytes, too_short
from .object_client import ConditionError, GoneError
from .protocol import UnjoinableError
from .s3_client import RefusedError, S3Client

MAX_PARTS = 10_000
"""S3's own limit of parts in one upload."""
LEAST_PART_BYTES = 5 << 20
"""S3's own limit of all parts but the last."""
GRAIN_BYTES = 1 << 20
"""Parts that are larger than usual are whole MiB."""
JOIN_TRIES = 3
"""Of completing an upload by what its list of parts says: a twin may send one again in between, and where ETags are no
digests it has another one then."""

_CHANGED = {"PreconditionFailed", "412"}
_BEYOND_END = {"InvalidRange", "416"}
_NO_CONDITIONS = {"NotImplemented", "501"}
_GONE = {"NoSuchUpload", "404"}
_UNFIT = {"InvalidPart", "InvalidPartOrder", "EntityTooSmall"}
_DENIED = {"AccessDenied", "403"}
_CHECKSUMS = ("ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME", "ChecksumSHA1", "ChecksumSHA256")


class S3Bucket:
    """A bucket; see `Bucket`."""

    granularity_bytes = GRAIN_BYTES
    most_parts = MAX_PARTS

    def __init__(self, name: str, client: S3Client) -> None:
        self.client = client
        self._name = name
        self.url = f"s3://{name}"

    async def head(self, key: str) -> ObjectInfo:
        """See `Bucket.head`; the version is the ETag."""
        found = await self.client.call("head_object", **self._object(key))
        return ObjectInfo(found["ContentLength"], _version(found), _from_metadata(found.get("Metadata", {})))

    async def keys(self, prefix: str) -> list[str]:
        """See `Bucket.keys`."""
        pages = self._pages("list_objects_v2", Bucket=self._name, Prefix=prefix, Delimiter="/")
        return [entry["Key"] async for page in pages for entry in page.get("Contents", [])]

    async def get(self, key: str, offset: int, into: memoryview, version: str | None) -> None:
        """See `Bucket.get`: condition, version, range and length are all checked."""
        where, end = f"{self.url}/{key}", offset + len(into)
        condition: dict[str, Any] = {} if version is None else {"IfMatch": f'"{version}"'}
        try:
            answer = await self.client.call(
                "get_object", expect=_CHANGED | _BEYOND_END, **self._object(key), **condition,
                Range=f"bytes={offset}-{end - 1}",
            )  # fmt: skip
        except RefusedError as error:
            if error.code in _CHANGED:
                raise ConditionError from error
            raise too_short(where, (await self.head(key)).size, end) from error
        with contextlib.closing(answer["Body"]):
            if version is not None and _version(answer) != version:
                raise ConditionError
            content_range = answer.get("ContentRange", "")
            check_range(content_range, answer["ContentLength"], offset, end, where)
            _check_length(await answer["Body"].raw_stream.receive(into), len(into), where)

    async def read(self, key: str, limit_bytes: int) -> bytes:
        """See `Bucket.read`; at its end a body is compared with the store's checksum, if it has one."""
        where = f"{self.url}/{key}"
        answer = await self.client.call("get_object", **self._object(key))
        with contextlib.closing(answer["Body"]):
            check_limit(where, answer["ContentLength"], limit_bytes)
            data: bytes = await answer["Body"].read()
            _check_length(len(data), answer["ContentLength"], where)
            return data

    async def put(self, key: str, data: bytes, attributes: Mapping[str, str], *, exclusive: bool) -> None:
        """See `Bucket.put`: If-None-Match where it is exclusive, if the server knows that."""
        arguments = {**self._new(key, attributes), "body": data}
        if exclusive:
            try:
                await self.client.call("put_object", expect=_CHANGED | _NO_CONDITIONS, **arguments, IfNoneMatch="*")
                return
            except RefusedError as error:
                if error.code in _CHANGED:
                    raise ConditionError from error
        await self.client.call("put_object", **arguments)

    async def delete(self, key: str) -> None:
        """See `Bucket.delete`; S3 does not tell whether there was one."""
        await self.client.call("delete_object", **self._object(key))

    async def begin(self, key: str, size: int, attributes: Mapping[str, str]) -> S3Upload:
        """See `Bucket.begin`."""
        upload = self._upload(key, await self.mark(key, attributes))
        await self.client.learn_who_compares(upload)
        return S3Upload(self.client, upload, part_size_bytes(self, size))

    async def unfinished(self, prefix: str) -> list[Unfinished]:
        """See `Bucket.unfinished`: uploads that were neither completed nor aborted."""
        now = time.time()
        pages = self._pages("list_multipart_uploads", Bucket=self._name, Prefix=prefix)
        return [
            Unfinished(each["Key"], max(0.0, now - each["Initiated"].timestamp()), 0, each["UploadId"])
            async for page in pages
            for each in page.get("Uploads", [])
        ]

    async def remove_unfinished(self, key: str, token: str) -> None:
        """See `Bucket.remove_unfinished`."""
        await self.client.call("abort_multipart_upload", **self._upload(key, token))

    # -- ranges ------------------------------------------------------------------------------------------------------

    @property
    def takes_ranges(self) -> bool:
        """See `Bucket.takes_ranges`: some servers want all parts of an upload equally long."""
        return self.client.takes_uneven_parts

    def least_part_bytes(self, size: int) -> int:
        """See `Bucket.least_part_bytes`."""
        return max(LEAST_PART_BYTES, -(-size // MAX_PARTS))

    async def mark(self, key: str, attributes: Mapping[str, str]) -> str:
        """See `Bucket.mark`: the id of a multipart upload."""
        return str((await self.client.call("create_multipart_upload", **self._new(key, attributes)))["UploadId"])

    async def send(self, key: str, mark: str, offset: int, body: bytes, size: int) -> None:
        """See `Bucket.send`.

        S3 puts parts together in the order of their numbers, whatever their sizes. So a part is numbered by where it
        begins in the object: whoever sends a range knows its numbers, and sends the same when it sends it again.
        """
        await self.client.call(
            "upload_part", body=body, PartNumber=self._number(offset, size), **self._upload(key, mark)
        )

    async def join(self, key: str, mark: str, size: int, attributes: Mapping[str, str]) -> None:
        """See `Bucket.join`: one request lists the parts that were sent, one completes the upload."""
        del attributes  # they came with the upload's beginning
        upload = self._upload(key, mark)
        for _ in range(JOIN_TRIES):
            try:
                await _complete(self.client, upload, await self._sent(upload, size), expect=_UNFIT)
            except RefusedError as error:
                refusal = error
            else:
                return
        raise UnjoinableError(
            f"{self.url}/{key}: the server does not put its parts together ({refusal.code})"
        ) from refusal

    async def clear(self, key: str, mark: str) -> None:
        """See `Bucket.clear`: nothing, as a completed upload is no more."""

    async def give_up(self, key: str, mark: str) -> None:
        """See `Bucket.give_up`: a twin has an upload of its own."""
        await self.remove_unfinished(key, mark)

    async def _sent(self, upload: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
        """What completing takes of all parts that the server has; RefusedError where they cannot be listed."""
        where, place, parts = f"{self.url}/{upload['Key']}", 0, []
        async for page in self._pages("list_parts", expect=_DENIED, **upload):
            for part in page.get("Parts", []):
                if part["PartNumber"] != self._number(place, size):
                    raise IntegrityError(f"{where}: nothing was uploaded at byte {place}")
                parts.append(_as_completed(part["PartNumber"], part))
                place += part["Size"]
        if place != size:
            raise IntegrityError(f"{where}: {place} bytes were written, expected {size}")
        return parts

    def _number(self, offset: int, size: int) -> int:
        """Of the part that begins at a byte of an object of `size` bytes; from 1."""
        return offset // self.least_part_bytes(size) + 1

    # -- requests ----------------------------------------------------------------------------------------------------

    def _object(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._name, "Key": key}

    def _upload(self, key: str, token: str) -> dict[str, Any]:
        return {**self._object(key), "UploadId": token}

    def _new(self, key: str, attributes: Mapping[str, str]) -> dict[str, Any]:
        return {
            **self._object(key), "Metadata": _to_metadata(attributes), "ContentType": "application/octet-stream",
        }  # fmt: skip

    async def _pages(
        self, method: str, expect: Collection[str] = (), **arguments: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """All answers to a question for a list; each says with which marker the next one is asked for."""
        while True:
            page = await self.client.call(method, expect=expect, **arguments)
            yield page
            if not page.get("IsTruncated"):
                return
            arguments |= {name.removeprefix("Next"): page[name] for name in page if name.startswith("Next")}


class S3Upload:
    """A multipart upload; see `PartedUpload`.

    Args:
        upload: bucket, key and upload id.
        part_bytes: of all parts but the last.
    """

    most_parts_at_once = MAX_PARTS

    def __init__(self, client: S3Client, upload: Mapping[str, Any], part_bytes: int) -> None:
        self._client = client
        self._upload = upload
        self._part_bytes = part_bytes
        self._parts: dict[int, dict[str, Any]] = {}

    async def part(self, offset: int, body: bytes) -> None:
        """See `PartedUpload.part`."""
        number = offset // self._part_bytes + 1
        answer = await self._client.call("upload_part", body=body, PartNumber=number, **self._upload)
        self._parts[number] = _as_completed(number, answer)

    async def finish(self, offset: int, body: bytes) -> None:
        """See `PartedUpload.finish`: completing is one request, all or nothing."""
        if body:
            await self.part(offset, body)
        await _complete(self._client, self._upload, [self._parts[number] for number in sorted(self._parts)])

    async def abort(self) -> None:
        """See `PartedUpload.abort`."""
        await self._client.call("abort_multipart_upload", **self._upload)


async def _complete(
    client: S3Client, upload: Mapping[str, Any], parts: list[dict[str, Any]], expect: Collection[str] = ()
) -> None:
    """Make an object of parts; GoneError where the upload is no more."""
    try:
        await client.call(
            "complete_multipart_upload", expect=_GONE | {*expect}, **upload, MultipartUpload={"Parts": parts}
        )
    except RefusedError as error:
        if error.code in _GONE:
            raise GoneError from error
        raise


def _as_completed(number: int, answer: Mapping[str, Any]) -> dict[str, Any]:
    """What completing an upload takes of a part, from what the server said of it."""
    found = {name: answer[name] for name in _CHECKSUMS if name in answer}
    return {"PartNumber": number, "ETag": answer["ETag"], **found}


def _to_metadata(attributes: Mapping[str, str]) -> dict[str, str]:
    """Attributes as object metadata, which travels in HTTP headers: underscores get lost there, dashes do not."""
    return {name.replace("_", "-"): value for name, value in attributes.items()}


def _from_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The reverse of `_to_metadata`."""
    return {name.lower().replace("-", "_"): value for name, value in metadata.items()}


def _version(answer: Mapping[str, Any]) -> str:
    return str(answer["ETag"]).strip('"')


def _check_length(got: int, expected: int, where: str) -> None:
    if got != expected:
        raise TemporaryError(f"{where}: the answer ended after {got} of {expected} bytes")
