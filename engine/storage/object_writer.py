"""One object on its way to a cloud: parts leave while later bytes are computed; it appears when complete."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any

from ..errors import AnabranchError, IntegrityError, TemporaryError
from .bucket_files import IDENTITY_ATTRIBUTE, part_size_bytes
from .object_bucket import Bucket, PartedUpload
from .object_client import GoneError
from .requests import InFlight


class ObjectWriter:
    """Uploads one object; see `Writer`."""

    def __init__(self, bucket: Bucket, key: str, where: str, size: int, attributes: Mapping[str, str]) -> None:
        assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in attributes), f"bad attribute names {attributes}"
        self._bucket = bucket
        self._client = bucket.client
        self._key = key
        self._where = where
        self._size = size
        self._attributes = dict(attributes)
        self._identity = secrets.token_hex(8)
        self._metadata = {**attributes, IDENTITY_ATTRIBUTE: self._identity}
        self._part_bytes = part_size_bytes(
            size, self._client.limits.part_bytes, bucket.granularity_bytes, bucket.most_parts
        )
        self._buffer = bytearray(min(size, self._part_bytes))
        self._filled = 0
        self._sent = 0
        self._parts: InFlight[None] | None = None
        self._upload: PartedUpload | None = None
        self._open = True
        if size > self._part_bytes:
            self._upload = self._client.request(where, lambda: bucket.begin(key, size, self._metadata))
            most = min(self._upload.most_parts_at_once, self._client.limits.parts_in_flight)
            self._parts = InFlight(self._client, most)

    def write(self, data: memoryview | bytes) -> None:
        """See `Writer.write`; waits only when enough parts are on their way. Raises what an earlier part met."""
        assert self._open, "write after commit or discard"
        view = memoryview(data).cast("B")
        if self._sent + self._filled + len(view) > self._size:
            raise IntegrityError(f"{self._where}: more bytes than the {self._size} that were announced")
        while len(view):
            if self._filled == self._part_bytes:  # there is more, so this is not the last part
                self._send_part()
            count = min(len(view), self._part_bytes - self._filled)
            self._buffer[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]

    def commit(self) -> None:
        """See `Writer.commit`; the last request shows the object, all or nothing."""
        assert self._open, "commit after commit or discard"
        if self._sent + self._filled != self._size:
            raise IntegrityError(
                f"{self._where}: {self._sent + self._filled} bytes were written, expected {self._size}"
            )
        if self._parts is not None:
            with self._removed():
                self._parts.settle()
        body = self._take_buffer()
        try:
            self._client.request(self._where, lambda: self._finish(body), len(body))
        except GoneError as error:
            if not self._is_published():
                raise FileNotFoundError(f"{self._where}: its unfinished upload was removed") from error
        except TemporaryError:
            if not self._is_published():
                raise
        self._open = False
        self._check_published()

    def discard(self) -> None:
        """See `Writer.discard`; what the server does not take back is invisible, and left for `gc` or its own clock."""
        if not self._open:
            return
        self._open = False
        if self._parts is not None:
            self._parts.cancel()
        if self._upload is not None:
            with contextlib.suppress(AnabranchError, FileNotFoundError, GoneError):
                self._client.request(self._where, self._upload.abort)

    async def _finish(self, body: bytes) -> None:
        if self._upload is None:
            await self._bucket.put(self._key, body, self._metadata, exclusive=False)
        else:
            await self._upload.finish(self._sent, body)

    def _take_buffer(self) -> bytes:
        body = bytes(memoryview(self._buffer)[: self._filled])
        self._filled = 0
        return body

    def _send_part(self) -> None:
        """Start sending what the buffer holds as the next part."""
        assert self._parts is not None, "only a file of several parts fills its buffer before its end"
        with self._removed():
            self._parts.start(self._next_part)

    def _next_part(self) -> Coroutine[Any, Any, None]:
        upload, offset, body = self._upload, self._sent, self._take_buffer()
        assert upload is not None, "parts are of an upload"
        self._sent += len(body)
        return self._client.repeat(self._where, lambda: upload.part(offset, body), len(body))

    @contextlib.contextmanager
    def _removed(self) -> Iterator[None]:
        """Tell in words of stores that parts met no upload any more."""
        try:
            yield
        except GoneError as error:
            raise FileNotFoundError(f"{self._where}: its unfinished upload was removed") from error

    def _is_published(self) -> bool:
        """Whether the object is there: ours, or a twin's of the same plan, which is byte for byte the same."""
        try:
            info = self._client.request(self._where, lambda: self._bucket.head(self._key))
        except FileNotFoundError:
            return False
        found = dict(info.attributes)
        ours = found.pop(IDENTITY_ATTRIBUTE, None) == self._identity
        twin = bool(self._attributes) and found == self._attributes
        return info.size == self._size and (ours or twin)

    def _check_published(self) -> None:
        info = self._client.request(self._where, lambda: self._bucket.head(self._key))
        if info.size != self._size:
            raise IntegrityError(
                f"{self._where}: the server holds {info.size} bytes, {self._size} were sent",
                "The store did not keep what it confirmed; do not use this output.",
            )
