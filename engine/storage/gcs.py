"""Google Cloud Storage through gcsfs's credentials and session: conditions by generation, resumable uploads.

Its JSON interface: https://cloud.google.com/storage/docs/json_api/v1/objects and, for uploads,
https://cloud.google.com/storage/docs/performing-resumable-uploads.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import gcsfs.core
import google.auth.exceptions
from yarl import URL

from ..errors import ResourceError, TemporaryError
from .object_bucket import ObjectInfo, Unfinished, check_limit, check_range, too_short
from .object_client import ConditionError, GoneError, NoBucketError, ObjectClient, ObjectLimits
from .requests import AGAIN
from .retry import Retry

CHUNK_BYTES = 256 << 10
"""Google takes parts but the last in multiples of this."""
_MOST_PARTS = 1 << 30
"""There is no limit but the object's size, 5 TiB."""
_OCTETS = "application/octet-stream"
_PERSISTED = re.compile(r"bytes=0-(\d+)")
_BUSY = {408, 429, 500, 502, 503, 504}
_BUSY_REASONS = ("rateLimitExceeded", "userRateLimitExceeded")
_CREDENTIALS = (
    "Run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS to a key file, or give the "
    "machine's service account storage.objects.get, list, create and delete; recipes hold no credentials."
)


class AnswerError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.reason, self.message = _explanation(body)


def _explanation(body: bytes) -> tuple[str, str]:
    """Reason and message of an error in JSON; empty strings where it is none."""
    try:
        error = json.loads(body)["error"]
        return str((error.get("errors") or [{}])[0].get("reason", "")), str(error.get("message", ""))[:300]
    except (ValueError, LookupError, TypeError, AttributeError):
        return "", ""


class GcsBucket:
    """A bucket; see `Bucket`."""

    granularity_bytes = CHUNK_BYTES
    most_parts = _MOST_PARTS

    def __init__(self, name: str, connection: GcsConnection) -> None:
        self.client = connection.client
        self.url = f"gs://{name}"
        self._connection = connection
        self._name = name

    async def head(self, key: str) -> ObjectInfo:
        """See `Bucket.head`; the version is the generation."""
        found = await self._json("GET", self._path(key), {"fields": "size,generation,metadata"})
        return ObjectInfo(int(found["size"]), str(found["generation"]), found.get("metadata") or {})

    async def keys(self, prefix: str) -> list[str]:
        """See `Bucket.keys`."""
        query = {"prefix": prefix, "delimiter": "/", "fields": "items(name),nextPageToken"}
        keys: list[str] = []
        while True:
            try:
                page = await self._json("GET", f"storage/v1/b/{quote(self._name, safe='')}/o", query)
            except FileNotFoundError as error:
                raise NoBucketError from error
            keys += [item["name"] for item in page.get("items", [])]
            if not page.get("nextPageToken"):
                return keys
            query["pageToken"] = page["nextPageToken"]

    async def get(self, key: str, offset: int, into: memoryview, version: str | None) -> None:
        """See `Bucket.get`: condition, generation, range and length are all checked."""
        where, end = f"{self.url}/{key}", offset + len(into)
        query = {"alt": "media"} | ({} if version is None else {"ifGenerationMatch": version})
        headers = {"Range": f"bytes={offset}-{end - 1}", "Accept-Encoding": "identity"}
        async with self._connection.request("GET", self._path(key), query, headers) as answer:
            if answer.status == 416:
                raise too_short(where, (await self.head(key)).size, end)
            await _succeed(answer)
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
        async with self._connection.request("GET", self._path(key), {"alt": "media"}, headers) as answer:
            await _succeed(answer)
            check_limit(f"{self.url}/{key}", answer.content_length or 0, limit_bytes)
            return await answer.read()

    async def put(self, key: str, data: bytes, attributes: Mapping[str, str], *, exclusive: bool) -> None:
        """See `Bucket.put`: one request, on the condition that there is no generation where it is exclusive."""
        boundary = secrets.token_hex(16)
        described = json.dumps({"name": key, "metadata": dict(attributes)})
        body = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{described}\r\n"
            f"--{boundary}\r\nContent-Type: {_OCTETS}\r\n\r\n"
        ).encode() + data
        body += f"\r\n--{boundary}--\r\n".encode()
        query = {"uploadType": "multipart"} | ({"ifGenerationMatch": "0"} if exclusive else {})
        try:
            headers = {"Content-Type": f"multipart/related; boundary={boundary}"}
            await self._json("POST", self._upload_path(), query, headers, body)
        except FileNotFoundError as error:
            raise NoBucketError from error

    async def delete(self, key: str) -> None:
        """See `Bucket.delete`."""
        await self._json("DELETE", self._path(key), {})

    async def begin(self, key: str, size: int, attributes: Mapping[str, str]) -> GcsUpload:
        """See `Bucket.begin`: a session of a resumable upload."""
        described = json.dumps({"name": key, "metadata": dict(attributes)}).encode()
        headers = {
            "Content-Type": "application/json; charset=UTF-8", "X-Upload-Content-Type": _OCTETS,
            "X-Upload-Content-Length": str(size),
        }  # fmt: skip
        query = {"uploadType": "resumable", "name": key}
        try:
            async with self._connection.request("POST", self._upload_path(), query, headers, described) as answer:
                await _succeed(answer)
                return GcsUpload(self._connection, answer.headers["Location"], size)
        except FileNotFoundError as error:
            raise NoBucketError from error

    async def unfinished(self, prefix: str) -> list[Unfinished]:
        """None: Google lists no sessions of resumable uploads, and forgets them after a week."""
        del prefix
        return []

    async def remove_unfinished(self, key: str, token: str) -> None:
        """See `Bucket.remove_unfinished`; there are none."""
        del key, token

    async def _json(
        self, method: str, path: str, query: dict[str, str], headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Any:
        async with self._connection.request(method, path, query, headers, body) as answer:
            await _succeed(answer)
            text = await answer.read()
            return json.loads(text) if text else {}

    def _path(self, key: str) -> str:
        return f"storage/v1/b/{quote(self._name, safe='')}/o/{quote(key, safe='')}"

    def _upload_path(self) -> str:
        return f"upload/storage/v1/b/{quote(self._name, safe='')}/o"


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
                await _succeed(answer)
                persisted = self._size
        self._in_doubt = False
        return persisted


class GcsConnection:
    """Requests with the credentials, project and endpoint that gcsfs finds in the environment and its configuration."""

    def __init__(
        self, limits: ObjectLimits | None = None, retry: Retry | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        try:
            self._fs: Any = gcsfs.core.GCSFileSystem(skip_instance_cache=True, **(options or {}))
        except (google.auth.exceptions.GoogleAuthError, ValueError, OSError) as error:
            raise ResourceError(f"gs://…: no usable credentials ({type(error).__name__})", _CREDENTIALS) from error
        self.client = ObjectClient(translate, limits or ObjectLimits(), retry or Retry())

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, query: dict[str, str], headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request; redirects are answers, as 308 means that an upload is incomplete.

        Args:
            method: of HTTP.
            path: below the endpoint, quoted; or the whole address of an upload.
            query: what follows the question mark.
            headers: besides the credentials.
            body: what is sent.
        """
        limits = self.client.limits
        session = await self._fs._set_session()
        address = path if "://" in path else f"{self._fs._location}/{path}"
        query = self._fs._get_params(query) if "://" not in path else {}
        url = URL(f"{address}?{urlencode(query)}" if query else address, encoded=True)
        signed = await asyncio.to_thread(self._fs._get_headers, dict(headers or {}))  # may ask for a fresh token
        wait = aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_seconds, sock_read=limits.idle_seconds)
        async with session.request(
            method, url, headers=signed, data=io.BytesIO(body) if body else None, timeout=wait, allow_redirects=False
        ) as answer:
            yield answer


@functools.cache
def shared_connection() -> GcsConnection:
    """The connection of this process."""
    return GcsConnection()


async def _succeed(answer: aiohttp.ClientResponse) -> None:
    """Raise what an answer means that is not success."""
    if answer.status < 300:
        return
    error = AnswerError(answer.status, await answer.read())
    if error.status == 412:
        raise ConditionError from error
    if error.status in (404, 410):
        if "bucket does not exist" in error.message:
            raise NoBucketError from error
        raise FileNotFoundError("no such object") from error
    raise error


def translate(error: Exception, where: str) -> Exception:
    """The exception that a user should see for a failed request."""
    if isinstance(error, AnswerError):
        return _translate_answer(error, where)
    if isinstance(error, google.auth.exceptions.TransportError):
        return TemporaryError(f"{where}: no token could be asked for ({type(error).__name__})", AGAIN)
    if isinstance(
        error, google.auth.exceptions.GoogleAuthError | gcsfs.retry.NonRetryableError | gcsfs.retry.HttpError
    ):
        return ResourceError(f"{where}: no usable credentials ({type(error).__name__})", _CREDENTIALS)
    if isinstance(error, aiohttp.ClientError | OSError):
        return TemporaryError(f"{where}: the connection failed ({type(error).__name__})", AGAIN)
    return error


def _translate_answer(error: AnswerError, where: str) -> Exception:
    text = f"{where}: the server answered {error.status}" + (f": {error.message}" if error.message else "")
    if error.status in _BUSY or error.reason in _BUSY_REASONS:
        return TemporaryError(text, AGAIN)
    if error.status in (401, 403):
        return ResourceError(f"{text} (credentials or their rights)", _CREDENTIALS)
    if error.status in (413, 507):
        return ResourceError(text, f"The bucket or its quota is full; make room. {AGAIN}")
    return ResourceError(text, "The server refuses this request; check the URL and the bucket's settings.")
