"""Files under a prefix of an S3 bucket: ranged reads of one version, and objects that appear whole or not at all."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ..errors import InputError, TemporaryError
from .bucket_files import IDENTITY_ATTRIBUTE, BucketFiles
from .bucket_ranges import RangeWriter
from .protocol import DEFAULT_READ_LIMIT_BYTES, FileInfo, Leftover, RangeRules
from .requests import side_by_side
from .s3_client import GarbledError, RefusedError, S3Client, shared_client
from .s3_ranges import begin_upload, complete_upload, range_rules, range_writer
from .s3_writer import S3Writer, from_metadata

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_CHANGED = {"PreconditionFailed", "412"}
_BEYOND_END = {"InvalidRange", "416"}
_NO_CONDITIONS = {"NotImplemented", "501"}


class S3Store(BucketFiles):
    """A prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str, client: S3Client | None = None) -> None:
        super().__init__(f"s3://{bucket}", prefix)
        self._bucket = bucket
        self._client = client or shared_client()

    def info(self, name: str) -> FileInfo:
        """See `Store.info`; the version is the ETag."""
        answer = self._client.request("head_object", self._where(name), **self._object(name))
        info = FileInfo(answer["ContentLength"], _version(answer))
        self._small_reads.note_size(name, info.version, info.size)
        return info

    def list(self, folder: str = "") -> list[str]:
        """See `Store.list`."""
        arguments = {"Bucket": self._bucket, "Prefix": self._folder(folder), "Delimiter": "/"}
        keys: list[str] = []
        while True:
            answer = self._client.request("list_objects_v2", self._where(folder), **arguments)
            keys += [entry["Key"] for entry in answer.get("Contents", [])]
            if not answer.get("IsTruncated"):
                break
            arguments["ContinuationToken"] = answer["NextContinuationToken"]
        return self._names(keys)

    def read_bytes(self, name: str, limit_bytes: int = DEFAULT_READ_LIMIT_BYTES) -> bytes:
        """See `Store.read_bytes`."""
        where = self._where(name)

        async def attempt() -> bytes:
            async with self._client.transfer(where, limit_bytes):
                answer = await self._client.call("get_object", where, **self._object(name))
                with contextlib.closing(answer["Body"]):
                    size = answer["ContentLength"]
                    if size > limit_bytes:
                        raise InputError(f"{where}: {size} bytes, expected at most {limit_bytes}")
                    # At its end a body is compared with the store's checksum, if it has one.
                    data: bytes = await answer["Body"].read()
                    _check_length(len(data), size, where)
                    return data

        return self._client.run(self._client.repeat(attempt))

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`: If-None-Match, and then a look at what is there.

        The look covers servers that ignore the condition: of two different plans that race for one name there, the
        one that was overwritten is told so, unless it looked first; all that follows reads the plan again.
        """
        where, arguments = self._where(name), {**self._object(name), "body": bytes(data)}
        if self._exists(name):
            return False
        condition: dict[str, Any] = {"IfNoneMatch": "*"}

        async def attempt() -> None:
            try:
                await self._client.call("put_object", where, expect=_CHANGED | _NO_CONDITIONS, **condition, **arguments)
            except GarbledError:
                condition.clear()  # what is there now is ours and damaged: it is written over
                raise

        try:
            self._client.run(self._client.repeat(attempt))
        except RefusedError as error:
            if error.code in _CHANGED:
                return False
            self._client.request("put_object", where, **arguments)
        return self.read_bytes(name, max(len(data), DEFAULT_READ_LIMIT_BYTES)) == data

    def replace(self, name: str, data: bytes) -> None:
        """See `Store.replace`."""
        arguments = {**self._object(name), "body": bytes(data)}
        self._client.request("put_object", self._where(name), **arguments)

    def writer(self, name: str, size: int, attributes: Mapping[str, str], run_id: str) -> S3Writer:
        """See `Store.writer`: a multipart upload, or one request for small files."""
        del run_id  # an upload has an identity of its own
        return S3Writer(self._client, self._bucket, self._key(name), self._where(name), size, attributes)

    @property
    def takes_ranges(self) -> bool:
        """See `PartedStore.takes_ranges`: some servers want all parts of an upload equally long."""
        return self._client.takes_uneven_parts

    def range_rules(self, size: int) -> RangeRules:
        """See `PartedStore.range_rules`."""
        return range_rules(size)

    def begin(self, name: str, size: int, attributes: Mapping[str, str], run_id: str) -> str:
        """See `PartedStore.begin`: a multipart upload, known by its id."""
        del size, run_id
        return begin_upload(self._client, self._where(name), self._object(name), attributes)

    def range_writer(self, name: str, token: str, begin: int, end: int, size: int) -> RangeWriter:
        """See `PartedStore.range_writer`: parts of that upload."""
        return range_writer(self._client, self._where(name), self._upload(name, token), begin, end, size)

    def complete(self, name: str, token: str, size: int, attributes: Mapping[str, str]) -> None:
        """See `PartedStore.complete`."""
        complete_upload(self._client, self._where(name), self._upload(name, token), size, attributes)

    def give_up(self, name: str, token: str) -> None:
        """See `PartedStore.give_up`."""
        self.delete_leftover(Leftover(name, token, 0.0, 0))

    def attributes(self, name: str) -> Mapping[str, str] | None:
        """See `Store.attributes`: the object's metadata."""
        answer = self._client.request("head_object", self._where(name), **self._object(name))
        found = from_metadata(answer.get("Metadata", {}))
        found.pop(IDENTITY_ATTRIBUTE, None)
        return found

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        self._client.request("delete_object", self._where(name), **self._object(name))

    def leftovers(self, names: Collection[str], older_than_seconds: float = 0.0) -> tuple[Leftover, ...]:
        """See `Store.leftovers`: uploads of exactly these keys that were neither completed nor aborted."""
        wanted = {self._key(name): name for name in names}
        folders = sorted({key.rpartition("/")[0] for key in wanted})
        now = time.time()
        found = []
        for folder in folders:
            for upload in self._uploads(f"{folder}/" if folder else ""):
                age_seconds = max(0.0, now - upload["Initiated"].timestamp())
                if upload["Key"] in wanted and age_seconds >= older_than_seconds:
                    found.append(Leftover(wanted[upload["Key"]], upload["UploadId"], age_seconds, 0))
        return tuple(sorted(found))

    def delete_leftover(self, leftover: Leftover) -> None:
        """See `Store.delete_leftover`."""
        upload = self._upload(leftover.name, leftover.token)
        try:
            self._client.request("abort_multipart_upload", self._where(leftover.name), **upload)
        except FileNotFoundError:
            return

    # -- reading -----------------------------------------------------------------------------------------------------

    def _fetch(self, name: str, offset: int, into: memoryview, version: str | None) -> None:
        """Fill `into` by requests side by side; when this returns or raises, nothing writes into it any more."""

        async def piece(begin: int) -> None:
            part = into[begin : begin + step]
            await self._client.repeat(lambda: self._get_range(name, offset + begin, part, version))

        step = self._client.limits.piece_bytes
        self._client.run(side_by_side(range(0, len(into), step), piece))

    async def _get_range(self, name: str, offset: int, into: memoryview, version: str | None) -> None:
        """One ranged request, checked: version, range, and length of what comes."""
        where = self._where(name)
        condition: dict[str, Any] = {} if version is None else {"IfMatch": f'"{version}"'}
        async with self._client.transfer(where, len(into)):
            try:
                answer = await self._client.call(
                    "get_object", where, expect=_CHANGED | _BEYOND_END, **self._object(name), **condition,
                    Range=f"bytes={offset}-{offset + len(into) - 1}",
                )  # fmt: skip
            except RefusedError as error:
                if error.code in _CHANGED:
                    raise self._changed(name) from error
                size = (await self._client.call("head_object", where, **self._object(name)))["ContentLength"]
                raise _too_short(where, size, offset + len(into)) from error
            with contextlib.closing(answer["Body"]):
                if version is not None and _version(answer) != version:
                    raise self._changed(name)
                _check_range(answer, offset, len(into), where)
                _check_length(await answer["Body"].raw_stream.receive(into), len(into), where)

    # -- names -------------------------------------------------------------------------------------------------------

    def _object(self, name: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._key(name)}

    def _upload(self, name: str, token: str) -> dict[str, Any]:
        return {**self._object(name), "UploadId": token}

    def _exists(self, name: str) -> bool:
        try:
            self.info(name)
        except FileNotFoundError:
            return False
        return True

    def _changed(self, name: str) -> InputError:
        return InputError(
            f"{self._where(name)}: changed while in use (its ETag is another)",
            "Restore the object, or start a new output from the changed inputs.",
        )

    def _uploads(self, prefix: str) -> Iterator[dict[str, Any]]:
        arguments = {"Bucket": self._bucket, "Prefix": prefix}
        while True:
            answer = self._client.request("list_multipart_uploads", self._where(""), **arguments)
            yield from answer.get("Uploads", [])
            if not answer.get("IsTruncated"):
                return
            arguments["KeyMarker"] = answer["NextKeyMarker"]
            arguments["UploadIdMarker"] = answer["NextUploadIdMarker"]


def _version(answer: dict[str, Any]) -> str:
    return str(answer["ETag"]).strip('"')


def _check_range(answer: dict[str, Any], offset: int, count: int, where: str) -> None:
    """Check that the answer is about the bytes that were asked for, before any of them is used."""
    text = str(answer.get("ContentRange", ""))
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None:
        if offset == 0 and answer["ContentLength"] == count:
            return  # the range was ignored, and was the whole file
        raise TemporaryError(f"{where}: asked for bytes {offset} to {offset + count - 1}, got the whole file")
    begin, end = int(match[1]), int(match[2]) + 1
    if begin == offset and end < offset + count and match[3] == str(end):
        raise _too_short(where, end, offset + count)
    if (begin, end) != (offset, offset + count):
        raise TemporaryError(f"{where}: asked for bytes {offset} to {offset + count - 1}, got {text!r}")


def _check_length(got: int, expected: int, where: str) -> None:
    if got != expected:
        raise TemporaryError(f"{where}: the answer ended after {got} of {expected} bytes")


def _too_short(where: str, size: int, needed: int) -> InputError:
    return InputError(f"{where}: ends at byte {size}, expected {needed} bytes", "Upload the file again.")
