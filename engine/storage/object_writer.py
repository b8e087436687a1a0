"""One object on its way to a cloud: parts leave while later bytes are computed; it appears when complete."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import AnabranchError, IntegrityError, TemporaryError
from .object_bucket import IDENTITY_ATTRIBUTE, Bucket, ObjectInfo, PartedUpload, part_size_bytes
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
        self._part_bytes = part_size_bytes(bucket, size)
        self._buffer = bytearray(min(size, self._part_bytes))
        self._filled = 0
        self._sent = 0
        self._parts: InFlight | None = None
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
            raise IntegrityError(f"{self._where}: more than the expected {self._size} bytes were written")
        while len(view):
            count = min(len(view), self._part_bytes - self._filled)
            self._buffer[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
            if self._filled == self._part_bytes and self._sent + self._filled < self._size:
                self._send_part()

    def commit(self) -> None:
        """See `Writer.commit`; the last request shows the object, all or nothing."""
        assert self._open, "commit after commit or discard"
        if self._sent + self._filled != self._size:
            raise IntegrityError(
                f"{self._where}: {self._sent + self._filled} bytes were written, expected {self._size}"
            )
        if self._upload is not None and self._parts is not None:
            if self._upload.most_parts_at_once > 1:
                self._send_part()  # the last one goes beside the others
            with self._removed():
                self._parts.settle()
        body = self._take_buffer()
        publication = Publication(self._bucket, self._key, self._where, self._size, self._attributes, self._identity)
        publication.by(lambda: self._finish(body), len(body))
        self._open = False

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
            raise FileNotFoundError(f"{self._where}: {error}") from error


@dataclass(frozen=True)
class Publication:
    """An object that is to become visible, and how it is known when it is there."""

    bucket: Bucket
    key: str
    where: str
    """Our URL of it, for messages."""
    size: int
    """Bytes."""
    attributes: Mapping[str, str]
    """A twin's object has the same, if there are any: it is of the same plan, and byte for byte the same."""
    identity: str | None = None
    """Ours alone has this, if there is one."""

    def by(self, last: Callable[[], Awaitable[None]], size: int = 0) -> None:
        """Send the last request of its upload, and see that all of it is there.

        After a lost answer it may be there although the request failed.

        Args:
            last: sends that request.
            size: bytes that it moves.

        Raises:
            IntegrityError: the object has another size.
            FileNotFoundError: its upload is gone, and it is not there.
        """
        try:
            self.bucket.client.request(self.where, last, size)
        except (FileNotFoundError, GoneError, TemporaryError) as error:
            if self._is_there():
                return
            if isinstance(error, GoneError):
                raise FileNotFoundError(f"{self.where}: {error}") from error
            raise
        found = self._head().size
        if found != self.size:
            raise IntegrityError(
                f"{self.where}: the server holds {found} bytes, {self.size} were sent",
                "The store did not keep what it confirmed; do not use this output.",
            )

    def _is_there(self) -> bool:
        try:
            info = self._head()
        except FileNotFoundError:
            return False
        found = dict(info.attributes)
        identity = found.pop(IDENTITY_ATTRIBUTE, None)
        ours = self.identity is not None and identity == self.identity
        twin = bool(self.attributes) and found == self.attributes
        return info.size == self.size and (ours or twin)

    def _head(self) -> ObjectInfo:
        return self.bucket.client.request(self.where, lambda: self.bucket.head(self.key))
