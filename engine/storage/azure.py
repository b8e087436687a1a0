"""Azure Blob Storage through adlfs's credentials and Azure's own client: conditions by ETag, blocks that become a blob.

https://learn.microsoft.com/rest/api/storageservices/put-block-list
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import io
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import adlfs
from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.storage.blob import BlobBlock, ContentSettings

from ..errors import ResourceError, TemporaryError
from .object_bucket import ObjectInfo, Unfinished, check_limit, too_short
from .object_client import ConditionError, GoneError, NoBucketError, ObjectClient, ObjectLimits
from .requests import AGAIN
from .retry import Retry

_MEBIBYTE = 1 << 20
_MOST_BLOCKS = 50_000
"""Azure's own limit of blocks in one blob."""
_OCTETS = ContentSettings(content_type="application/octet-stream")
_BUSY = {408, 429, 500, 502, 503, 504}
_BUSY_CODES = {"ServerBusy", "OperationTimedOut", "InternalError"}
_NO_CONTAINER = {"ContainerNotFound", "ContainerBeingDeleted", "ResourceNotFoundOnAccount"}
_CONDITIONS = {"ConditionNotMet", "BlobAlreadyExists", "UnauthorizedBlobOverwrite", "TargetConditionNotMet"}
_IF_MISSING: dict[str, Any] = {"match_condition": MatchConditions.IfMissing}
_LOST_BLOCKS = {"InvalidBlockList", "InvalidBlockId"}
_CREDENTIALS = (
    "Set AZURE_STORAGE_ACCOUNT_NAME, and either AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, a service "
    "principal (AZURE_STORAGE_CLIENT_ID and so on) or nothing more where `az login` or a managed identity has the role "
    "Storage Blob Data Contributor; or AZURE_STORAGE_CONNECTION_STRING alone. Recipes hold no credentials."
)


class AzureBucket:
    """A container; see `Bucket`."""

    granularity_bytes = _MEBIBYTE
    most_parts = _MOST_BLOCKS
    takes_ranges = True

    def __init__(self, name: str, connection: AzureConnection) -> None:
        self.client = connection.client
        self.url = connection.url(name)
        self._container = connection.container(name)
        self._once = connection.once

    async def head(self, key: str) -> ObjectInfo:
        """See `Bucket.head`; the version is the ETag."""
        with _answers():
            found = await self._container.get_blob_client(key).get_blob_properties(**self._once)
            return ObjectInfo(found.size, _version(found.etag), found.metadata or {})

    async def keys(self, prefix: str) -> list[str]:
        """See `Bucket.keys`; folders of accounts that have real ones are left out."""
        with _answers():
            pages = self._container.walk_blobs(prefix, delimiter="/", include=["metadata"], **self._once)
            return [
                found.name
                async for found in pages
                if hasattr(found, "etag") and (found.metadata or {}).get("hdi_isfolder") != "true"
            ]

    async def get(self, key: str, offset: int, into: memoryview, version: str | None) -> None:
        """See `Bucket.get`."""
        where, end = f"{self.url}/{key}", offset + len(into)
        condition = {} if version is None else _if_match(version)
        try:
            with _answers():
                answer = await self._container.get_blob_client(key).download_blob(
                    offset, len(into), **condition, **self._once
                )
                if version is not None and _version(answer.properties.etag) != version:
                    raise ConditionError
                data = await answer.readall()
        except HttpResponseError as error:
            if error.status_code != 416:
                raise
            raise too_short(where, (await self.head(key)).size, end) from error
        if len(data) < len(into):
            size = (await self.head(key)).size
            if size < end:
                raise too_short(where, size, end)
        if len(data) != len(into):
            raise TemporaryError(f"{where}: got {len(data)} bytes, asked for {len(into)}", AGAIN)
        into[:] = data

    async def read(self, key: str, limit_bytes: int) -> bytes:
        """See `Bucket.read`."""
        with _answers():
            answer = await self._container.get_blob_client(key).download_blob(**self._once)
            check_limit(f"{self.url}/{key}", answer.size, limit_bytes)
            return bytes(await answer.readall())

    async def put(self, key: str, data: bytes, attributes: Mapping[str, str], *, exclusive: bool) -> None:
        """See `Bucket.put`: one request, with If-None-Match: * where it is exclusive.

        Azure's client copies what it sends so, and holds up the event loop meanwhile: large data goes as a block.
        """
        blob = self._container.get_blob_client(key)
        if len(data) > _MEBIBYTE:
            await AzureUpload(blob, attributes, self._once, exclusive=exclusive).finish(0, data)
            return
        with _answers():
            await blob.upload_blob(
                data, overwrite=not exclusive, metadata=dict(attributes), content_settings=_OCTETS, **self._once
            )

    async def delete(self, key: str) -> None:
        """See `Bucket.delete`."""
        with _answers():
            await self._container.get_blob_client(key).delete_blob(**self._once)

    async def begin(self, key: str, size: int, attributes: Mapping[str, str]) -> AzureUpload:
        """See `Bucket.begin`: there is nothing to ask."""
        del size
        return AzureUpload(self._container.get_blob_client(key), attributes, self._once)

    def least_part_bytes(self, size: int) -> int:
        """See `Bucket.least_part_bytes`."""
        return -(-size // _MOST_BLOCKS)

    async def mark(self, key: str, attributes: Mapping[str, str]) -> str:
        """See `Bucket.mark`: there is nothing to ask."""
        del key, attributes
        return f"r{secrets.token_hex(4)[1:]}"  # no digest begins so

    async def send(self, key: str, mark: str, offset: int, body: bytes, size: int) -> None:
        """See `Bucket.send`."""
        del size
        digest = await asyncio.to_thread(hashlib.sha256, body)
        await self._upload(key).stage(f"{offset:016x}{mark}{digest.hexdigest()[:16]}", body)

    async def join(self, key: str, mark: str, size: int, attributes: Mapping[str, str]) -> None:
        """See `Bucket.join`: one request lists the blocks that were sent, one commits those of this upload."""
        upload = self._upload(key, attributes)
        blocks = sorted((name, count) for name, count in await upload.staged() if name[16:].startswith(mark))
        place = 0
        for name, count in blocks:
            if int(name[:16], 16) != place:
                break
            place += count
        if place != size:
            raise GoneError("its unfinished upload is not whole")
        await upload.join([name for name, _ in blocks])

    async def clear(self, key: str, mark: str) -> None:
        """See `Bucket.clear`: nothing, as blocks go by commits alone, and then those of all uploads."""

    async def give_up(self, key: str, mark: str) -> None:
        """See `Bucket.give_up`: nothing, as in `AzureUpload.abort`."""

    def _upload(self, key: str, attributes: Mapping[str, str] | None = None) -> AzureUpload:
        return AzureUpload(self._container.get_blob_client(key), attributes or {}, self._once)

    async def unfinished(self, prefix: str) -> list[Unfinished]:
        """See `Bucket.unfinished`: names that have blocks and no blob."""
        found = []
        with _answers():
            blobs = {each.name async for each in self._container.list_blobs(prefix, **self._once)}
            both = self._container.list_blobs(prefix, include=["uncommittedblobs"], **self._once)
            async for each in both:
                if each.name not in blobs:
                    age = time.time() - each.last_modified.timestamp() if each.last_modified else 0.0
                    _, blocks = await self._container.get_blob_client(each.name).get_block_list("all", **self._once)
                    size = sum(block.size for block in blocks)
                    found.append(Unfinished(each.name, max(0.0, age), size))
        return found

    async def remove_unfinished(self, key: str, token: str) -> None:
        """See `Bucket.remove_unfinished`.

        Azure drops blocks when something is committed without them: an empty blob, on the condition that there is
        none, and removed at once. Of a blob that appeared meanwhile nothing is touched.
        """
        del token
        blob = self._container.get_blob_client(key)
        with _answers():
            _, blocks = await blob.get_block_list("all", **self._once)
            if not blocks:
                return
            try:
                made = await blob.commit_block_list([], **_IF_MISSING, **self._once)
            except (ResourceExistsError, ResourceModifiedError):
                return
            await blob.delete_blob(**_if_match(_version(made["etag"])), **self._once)


class AzureUpload:
    """Blocks of one blob; see `PartedUpload`.

    A block is called by where it lies and what it holds, so sending it twice is sending it once, also for twins:
    whoever commits first has all blocks, and the other one commits the same list again.
    """

    most_parts_at_once = 16

    def __init__(
        self, blob: Any, attributes: Mapping[str, str], once: dict[str, Any], *, exclusive: bool = False
    ) -> None:
        self._blob = blob
        self._attributes = dict(attributes)
        self._once = once
        self._condition = _IF_MISSING if exclusive else {}
        self._blocks: dict[int, str] = {}

    async def part(self, offset: int, body: bytes) -> None:
        """See `PartedUpload.part`."""
        digest = await asyncio.to_thread(hashlib.sha256, body)
        name = f"{offset:016x}{digest.hexdigest()[:24]}"
        await self.stage(name, body)
        self._blocks[offset] = name

    async def stage(self, name: str, body: bytes) -> None:
        """Send a block; all blocks of a blob have names of 40 letters."""
        with _answers():
            await self._blob.stage_block(name, io.BytesIO(body), len(body), **self._once)

    async def staged(self) -> list[tuple[str, int]]:
        """Names and sizes of blocks that belong to no blob yet; GoneError where there are none."""
        with _answers():
            try:
                _, blocks = await self._blob.get_block_list("uncommitted", **self._once)
            except ResourceNotFoundError as error:
                raise GoneError from error
        return [(block.id, block.size) for block in blocks]

    async def finish(self, offset: int, body: bytes) -> None:
        """See `PartedUpload.finish`: one request commits the list of all blocks."""
        if body:
            await self.part(offset, body)
        await self.join([self._blocks[offset] for offset in sorted(self._blocks)])

    async def join(self, names: Sequence[str]) -> None:
        """Make a blob of those blocks; GoneError where one of them is gone."""
        blocks = [BlobBlock(name) for name in names]
        with _answers():
            try:
                await self._blob.commit_block_list(
                    blocks, content_settings=_OCTETS, metadata=self._attributes, **self._condition, **self._once
                )
            except HttpResponseError as error:
                if _code(error) in _LOST_BLOCKS:
                    raise GoneError from error
                raise

    async def abort(self) -> None:
        """See `PartedUpload.abort`: nothing; a twin may be using the same blocks, and Azure drops them after a week."""


class AzureConnection:
    """Azure's client for the account that adlfs finds in the environment and fsspec's configuration."""

    def __init__(
        self,
        limits: ObjectLimits | None = None,
        retry: Retry | None = None,
        options: Mapping[str, Any] | None = None,
        account: str | None = None,
    ) -> None:
        self._account = account
        self.client = ObjectClient(translate, limits or ObjectLimits(), retry or Retry())
        self.once: dict[str, Any] = {
            "retry_total": 0,  # one place retries
            "connection_timeout": self.client.limits.connect_seconds,
            "read_timeout": self.client.limits.idle_seconds,
        }
        """Arguments of every request."""
        try:
            named = {} if account is None else {"account_name": account}
            self._fs: Any = adlfs.AzureBlobFileSystem(skip_instance_cache=True, **named, **(options or {}))
        except ValueError as error:
            raise ResourceError("az://…: no credentials, or not even the name of the account", _CREDENTIALS) from error
        found = self._fs.service_client.account_name
        if account not in (None, found):
            raise ResourceError(
                f"az://…: the credentials are of the account {found}, the URL names {account}", _CREDENTIALS
            )

    def url(self, name: str) -> str:
        """Of a container: with the account where a URL named it."""
        return f"az://{name}" if self._account is None else f"abfss://{name}@{self._account}.dfs.core.windows.net"

    def container(self, name: str) -> Any:
        """Azure's client of a container."""
        return self._fs.service_client.get_container_client(name)


@functools.cache
def shared_connection(account: str | None = None) -> AzureConnection:
    """The connection of this process to an account; None: to that of the environment."""
    return AzureConnection(account=account)


def _version(etag: str) -> str:
    return etag.strip('"')


def _if_match(version: str) -> dict[str, Any]:
    return {"etag": f'"{version}"', "match_condition": MatchConditions.IfNotModified}


@contextlib.contextmanager
def _answers() -> Iterator[None]:
    """Raise what an answer means where our stores have a word for it."""
    try:
        yield
    except (ResourceModifiedError, ResourceExistsError) as error:
        if _code(error) in _CONDITIONS:
            raise ConditionError from error
        raise
    except ResourceNotFoundError as error:
        if _code(error) in _NO_CONTAINER:
            raise NoBucketError from error
        raise FileNotFoundError("no such blob") from error


def _code(error: HttpResponseError) -> str:
    """Azure's name of the error; its client gives those that it knows as members of an enumeration."""
    code = getattr(error, "error_code", None) or ""
    return str(getattr(code, "value", code))


def _told(error: HttpResponseError) -> str:
    """What the server said, without its request's number and time."""
    return f"the server answered {error.status_code} {_code(error)}"


def translate(error: Exception, where: str) -> Exception:
    """The exception that a user should see for a failed request."""
    if isinstance(error, HttpResponseError) and error.status_code is not None:
        return _translate_answer(error, where)
    if isinstance(error, ClientAuthenticationError):
        return ResourceError(f"{where}: no usable credentials ({type(error).__name__})", _CREDENTIALS)
    if isinstance(error, ServiceRequestError | ServiceResponseError | OSError):
        return TemporaryError(f"{where}: the connection failed ({type(error).__name__})", AGAIN)
    if isinstance(error, AzureError):
        return TemporaryError(f"{where}: {type(error).__name__}", AGAIN)
    return error


def _translate_answer(error: HttpResponseError, where: str) -> Exception:
    text, status, code = f"{where}: {_told(error)}", error.status_code, _code(error)
    if status in _BUSY or code in _BUSY_CODES:
        return TemporaryError(text, AGAIN)
    if isinstance(error, ClientAuthenticationError) or status in (401, 403):
        return ResourceError(f"{text} (credentials or their rights)", _CREDENTIALS)
    if status in (413, 507) or code == "AccountLimitExceeded":
        return ResourceError(text, f"The account's limit is reached; make room. {AGAIN}")
    return ResourceError(text, "The server refuses this request; check the URL and the container's settings.")
