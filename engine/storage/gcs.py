"""Google Cloud Storage: conditions by generation, resumable uploads, and parts that are composed.

Its JSON interface: https://cloud.google.com/storage/docs/json_api/v1/objects and, for uploads,
https://cloud.google.com/storage/docs/performing-resumable-uploads.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Mapping

import google_crc32c

from ..errors import TemporaryError
from .gcs_client import OCTETS, GcsConnection, GcsObjects, succeed
from .gcs_ranges import GcsRanges, part_key
from .object_bucket import IDENTITY_ATTRIBUTE, ObjectInfo, Unfinished, check_limit, check_range, too_short
from .object_client import ConditionError, GoneError, NoBucketError
from .requests import AGAIN

CHUNK_BYTES = 256 << 10
"""Google takes parts but the last in multiples of this."""
_MOST_PARTS = 1 << 30
"""There is no limit but the object's size, 5 TiB."""
_PERSISTED = re.compile(r"bytes=0-(\d+)")


def checksum(data: bytes) -> str:
    """CRC32C of some bytes as Google spells it."""
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


class GcsBucket:
    """A bucket; see `Bucket`."""

    granularity_bytes = CHUNK_BYTES
    most_parts = _MOST_PARTS
    takes_ranges = True

    def __init__(self, name: str, connection: GcsConnection) -> None:
        self.client = connection.client
        self.url = f"gs://{name}"
        self._connection = connection
        self._objects = GcsObjects(connection, name)
        self._ranges = GcsRanges(connection, self._objects)

    async def head(self, key: str) -> ObjectInfo:
        """See `Bucket.head`; the version is the generation."""
        found = await self._connection.json("GET", self._objects.path(key), {"fields": "size,generation,metadata"})
        return ObjectInfo(int(found["size"]), str(found["generation"]), found.get("metadata") or {})

    async def keys(self, prefix: str) -> list[str]:
        """See `Bucket.keys`."""
        return [item["name"] for item in await self._objects.items(prefix, "name", delimiter="/")]

    async def get(self, key: str, offset: int, into: memoryview, version: str | None) -> None:
        """See `Bucket.get`: condition, generation, range and length are all checked."""
        where, end = f"{self.url}/{key}", offset + len(into)
        query = {"alt": "media"} | ({} if version is None else {"ifGenerationMatch": version})
        headers = {"Range": f"bytes={offset}-{end - 1}", "Accept-Encoding": "identity"}
        async with self._connection.request("GET", self._objects.path(key), query, headers) as answer:
            if answer.status == 416:
                raise too_short(where, (await self.head(key)).size, end)
            await succeed(answer)
            if version is not None:
                found = answer.headers.get("X-Goog-Generation") or (await self.head(key)).version
                if found != version:
                    raise ConditionError
            content_range = answer.headers.get("Content-Range", "")
            check_range(content_range, answer.content_length, offset, end, where)
            done = 0
            async for chunk in answer.content.iter_any():
                count = min(len(chunk), len(into) - done)
                into[done : done + count] = chunk[:count]
                done += count
            if done < len(into):
                raise TemporaryError(f"{where}: the answer ended after {done} of {len(into)} bytes", AGAIN)

    async def read(self, key: str, limit_bytes: int) -> bytes:
        """See `Bucket.read`."""
        headers = {"Accept-Encoding": "identity"}
        async with self._connection.request("GET", self._objects.path(key), {"alt": "media"}, headers) as answer:
            await succeed(answer)
            check_limit(f"{self.url}/{key}", answer.content_length or 0, limit_bytes)
            return await answer.read()

    async def put(self, key: str, data: bytes, attributes: Mapping[str, str], *, exclusive: bool) -> None:
        """See `Bucket.put`: on the condition that there is no generation where it is exclusive."""
        await self._insert(key, data, attributes, checksum(data), exclusive=exclusive)

    async def _insert(
        self, key: str, data: bytes, attributes: Mapping[str, str], crc32c: str, *, exclusive: bool
    ) -> None:
        """One request; the server refuses bytes that are not those of the checksum."""
        boundary = secrets.token_hex(16)
        described = json.dumps({"name": key, "metadata": dict(attributes), "crc32c": crc32c})
        head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{described}\r\n"
            f"--{boundary}\r\nContent-Type: {OCTETS}\r\n\r\n"
        )
        body = b"".join((head.encode(), data, f"\r\n--{boundary}--\r\n".encode()))
        query = {"uploadType": "multipart"} | ({"ifGenerationMatch": "0"} if exclusive else {})
        try:
            headers = {"Content-Type": f"multipart/related; boundary={boundary}"}
            await self._connection.json("POST", self._objects.upload_path, query, headers, body)
        except FileNotFoundError as error:
            raise NoBucketError from error

    async def delete(self, key: str) -> None:
        """See `Bucket.delete`."""
        await self._objects.delete(key)

    async def begin(self, key: str, size: int, attributes: Mapping[str, str]) -> GcsUpload:
        """See `Bucket.begin`: a session of a resumable upload."""
        described = json.dumps({"name": key, "metadata": dict(attributes)}).encode()
        headers = {
            "Content-Type": "application/json; charset=UTF-8", "X-Upload-Content-Type": OCTETS,
            "X-Upload-Content-Length": str(size),
        }  # fmt: skip
        query = {"uploadType": "resumable", "name": key}
        try:
            async with self._connection.request("POST", self._objects.upload_path, query, headers, described) as answer:
                await succeed(answer)
                return GcsUpload(self._connection, answer.headers["Location"], size)
        except FileNotFoundError as error:
            raise NoBucketError from error

    def least_part_bytes(self, size: int) -> int:
        """See `Bucket.least_part_bytes`: objects are composed of any number of others."""
        del size
        return 1

    async def mark(self, key: str, attributes: Mapping[str, str]) -> str:
        """See `Bucket.mark`: there is nothing to ask."""
        del key, attributes
        return secrets.token_hex(4)

    async def send(self, key: str, mark: str, offset: int, body: bytes, size: int) -> None:
        """See `Bucket.send`: an object of its own. Of twins the first stays; its name says that it is equal."""
        del size
        crc32c = checksum(body)
        try:
            await self._insert(part_key(key, mark, offset, crc32c), body, {}, crc32c, exclusive=True)
        except ConditionError:
            return

    async def join(self, key: str, mark: str, size: int, attributes: Mapping[str, str]) -> None:
        """See `Bucket.join`: the object keeps the mark, so that a lost answer can be cleared up."""
        described = {**attributes, IDENTITY_ATTRIBUTE: mark}
        try:
            found = await self.head(key)
        except FileNotFoundError:
            found = None
        if found is None or (found.size, found.attributes) != (size, described):
            await self._ranges.compose(key, mark, size, described, found.version if found is not None else "0")

    async def clear(self, key: str, mark: str) -> None:
        """See `Bucket.clear`."""
        await self._ranges.remove(key, mark)

    async def give_up(self, key: str, mark: str) -> None:
        """See `Bucket.give_up`: a twin has a mark of its own."""
        await self._ranges.remove(key, mark)

    async def unfinished(self, prefix: str) -> list[Unfinished]:
        """See `Bucket.unfinished`: parts; sessions of resumable uploads Google lists not, and forgets after a week."""
        return await self._ranges.unfinished(prefix)

    async def remove_unfinished(self, key: str, token: str) -> None:
        """See `Bucket.remove_unfinished`: the parts of all its uploads."""
        del token
        await self._ranges.remove(key)


class GcsUpload:
    """A session of a resumable upload; see `PartedUpload`. Its address is a secret and stays in memory."""

    most_parts_at_once = 1

    def __init__(self, connection: GcsConnection, address: str, size: int) -> None:
        self._connection = connection
        self._address = address
        self._size = size
        self._in_doubt = False
        """Whether a request was lost, so that the server has to say what it has."""

    async def part(self, offset: int, body: bytes) -> None:
        """See `PartedUpload.part`."""
        begin = await self._begin_at(offset, offset + len(body))
        while begin < offset + len(body):
            begin = await self._send(begin, body[begin - offset :])

    async def finish(self, offset: int, body: bytes) -> None:
        """See `PartedUpload.finish`: the last byte shows the object."""
        await self.part(offset, body)

    async def abort(self) -> None:
        """See `PartedUpload.abort`: the session ends."""
        async with self._connection.request("DELETE", self._address, {}):
            return  # 499 means that it was taken back; anything else, that there is nothing more to do

    async def _begin_at(self, offset: int, end: int) -> int:
        """Where to go on: after a lost answer the server may have all, some or none of this part."""
        if not self._in_doubt:
            return offset
        persisted = await self._send(None, b"")
        if not offset <= persisted <= end:
            raise GoneError
        return persisted

    async def _send(self, begin: int | None, body: bytes) -> int:
        """Send bytes from `begin` on, or ask only; returns how many bytes of the object the server has now."""
        span = "*" if begin is None else f"{begin}-{begin + len(body) - 1}"
        self._in_doubt = True
        headers = {"Content-Range": f"bytes {span}/{self._size}"}
        async with self._connection.request("PUT", self._address, {}, headers, body) as answer:
            if answer.status == 308:
                await answer.read()
                match = _PERSISTED.fullmatch(answer.headers.get("Range", ""))
                persisted = (int(match[1]) + 1) // CHUNK_BYTES * CHUNK_BYTES if match else 0
            else:
                if answer.status in (404, 410) or (answer.status == 400 and begin is None):
                    raise GoneError
                if answer.status == 400:  # it has these bytes already, perhaps: the next attempt asks
                    raise TemporaryError("the server did not expect these bytes", AGAIN)
                await succeed(answer)
                persisted = self._size
        self._in_doubt = False
        return persisted
