"""Requests to Google Cloud Storage with the credentials and session of gcsfs, and what their answers mean."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import gcsfs.core
import google.auth.exceptions
from yarl import URL

from ..errors import ResourceError, TemporaryError
from .object_client import ConditionError, NoBucketError, ObjectClient, ObjectLimits
from .requests import AGAIN
from .retry import Retry

OCTETS = "application/octet-stream"
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

    @property
    def is_garbled(self) -> bool:
        """Whether the server got other bytes than the checksum that came with them is of."""
        return self.status == 400 and "CRC32C" in self.message


def _explanation(body: bytes) -> tuple[str, str]:
    """Reason and message of an error in JSON; empty strings where it is none."""
    try:
        error = json.loads(body)["error"]
        return str((error.get("errors") or [{}])[0].get("reason", "")), str(error.get("message", ""))[:300]
    except (ValueError, LookupError, TypeError, AttributeError):
        return "", ""


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

    async def json(
        self, method: str, path: str, query: dict[str, str], headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Any:
        """What a request that succeeded was answered; arguments as those of `request`."""
        async with self.request(method, path, query, headers, body) as answer:
            await succeed(answer)
            text = await answer.read()
            return json.loads(text) if text else {}


class GcsObjects:
    """What is asked about the objects of one bucket in several places.

    Args:
        connection: sends the requests.
        bucket: its name.
    """

    def __init__(self, connection: GcsConnection, bucket: str) -> None:
        self._connection = connection
        self._objects = f"storage/v1/b/{quote(bucket, safe='')}/o"

    def path(self, key: str) -> str:
        """Of an object."""
        return f"{self._objects}/{quote(key, safe='')}"

    @property
    def upload_path(self) -> str:
        """Of new objects."""
        return f"upload/{self._objects}"

    async def items(self, prefix: str, fields: str, **query: str) -> list[dict[str, Any]]:
        """What the server says of all objects whose keys begin so, by key.

        Args:
            prefix: of keys.
            fields: what it shall say, separated by commas.
            query: more that is asked.
        """
        query |= {"prefix": prefix, "fields": f"items({fields}),nextPageToken"}
        found: list[dict[str, Any]] = []
        while True:
            try:
                page = await self._connection.json("GET", self._objects, query)
            except FileNotFoundError as error:
                raise NoBucketError from error
            found += page.get("items", [])
            if not page.get("nextPageToken"):
                return found
            query["pageToken"] = page["nextPageToken"]

    async def delete(self, key: str) -> None:
        """Remove an object; FileNotFoundError where there is none."""
        await self._connection.json("DELETE", self.path(key), {})


@functools.cache
def shared_connection() -> GcsConnection:
    """The connection of this process."""
    return GcsConnection()


async def succeed(answer: aiohttp.ClientResponse) -> None:
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
    if error.status in _BUSY or error.reason in _BUSY_REASONS or error.is_garbled:
        return TemporaryError(text, AGAIN)
    if error.status in (401, 403):
        return ResourceError(f"{text} (credentials or their rights)", _CREDENTIALS)
    if error.status in (413, 507):
        return ResourceError(text, f"The bucket or its quota is full; make room. {AGAIN}")
    return ResourceError(text, "The server refuses this request; check the URL and the bucket's settings.")
