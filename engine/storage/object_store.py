"""Files under a prefix of a bucket of any cloud: ranged reads of one version, and objects that appear whole."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Mapping

from ..errors import AnabranchError, InputError
from .coalesce import Coalescer
from .object_bucket import IDENTITY_ATTRIBUTE, Bucket, ObjectInfo, Unfinished
from .object_client import ConditionError, GarbledError
from .object_ranges import RangeWriter, range_rules
from .object_writer import ObjectWriter, Publication
from .protocol import DEFAULT_READ_LIMIT_BYTES, FileInfo, Leftover, RangeRules, check_name
from .requests import side_by_side


class ObjectStore:
    """A prefix of a bucket; see `Store` and `PartedStore`.

    Args:
        bucket: of any cloud.
        prefix: of all keys, without a slash at its ends; empty for the whole bucket.
    """

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self._bucket = bucket
        self._client = bucket.client
        self._prefix = f"{prefix}/" if prefix else ""
        self._url = f"{bucket.url}/{prefix}" if prefix else bucket.url
        self._small_reads = Coalescer(self._fetch)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    @property
    def url(self) -> str:
        """scheme://bucket/prefix."""
        return self._url

    def info(self, name: str) -> FileInfo:
        """See `Store.info`."""
        found = self._head(name)
        self._small_reads.note_size(name, found.version, found.size)
        return FileInfo(found.size, found.version)

    def list(self, folder: str = "") -> list[str]:
        """See `Store.list`: names of objects, without those that stand for folders."""
        prefix = self._prefix + (f"{check_name(folder)}/" if folder else "")
        keys = self._client.request(self._where(folder), lambda: self._bucket.keys(prefix))
        names = (key[len(self._prefix) :] for key in keys)
        return sorted(name for name in names if name.rpartition("/")[2] not in ("", ".", ".."))

    def read_into(self, name: str, offset: int, into: memoryview, version: str | None = None) -> None:
        """See `Store.read_into`."""
        view = into.cast("B")
        if len(view) == 0:
            if version not in (None, self.info(name).version):
                raise self._changed(name)
            return
        self._small_reads.read_into(name, offset, view, version)

    def read_bytes(self, name: str, limit_bytes: int = DEFAULT_READ_LIMIT_BYTES) -> bytes:
        """See `Store.read_bytes`."""
        key, where = self._key(name), self._where(name)
        try:
            return self._client.request(where, lambda: self._bucket.read(key, limit_bytes), limit_bytes, is_read=True)
        except ConditionError as error:
            raise self._changed(name) from error

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`: a condition of the request, and then a look at what is there.

        The look covers servers that ignore the condition: of two different plans that race for one name there, the
        one that was overwritten is told so, unless it looked first; all that follows reads the plan again.
        """
        try:
            self._head(name)
        except FileNotFoundError:
            pass
        else:
            return False
        key, body, exclusive = self._key(name), bytes(data), True

        async def attempt() -> None:
            nonlocal exclusive
            try:
                await self._bucket.put(key, body, {}, exclusive=exclusive)
            except GarbledError:
                exclusive = False  # what is there now is ours and damaged: it is written over
                raise

        try:
            self._client.request(self._where(name), attempt, len(body))
        except ConditionError:
            return False
        try:
            return self.read_bytes(name, max(len(data), DEFAULT_READ_LIMIT_BYTES)) == data
        except InputError:  # changed while it was read
            return False

    def replace(self, name: str, data: bytes) -> None:
        """See `Store.replace`."""
        key, body = self._key(name), bytes(data)
        self._client.request(self._where(name), lambda: self._bucket.put(key, body, {}, exclusive=False), len(body))

    def writer(self, name: str, size: int, attributes: Mapping[str, str], run_id: str) -> ObjectWriter:
        """See `Store.writer`: an upload in parts, or one request for small files."""
        del run_id  # an upload has an identity of its own
        return ObjectWriter(self._bucket, self._key(name), self._where(name), size, attributes)

    @property
    def takes_ranges(self) -> bool:
        """See `PartedStore.takes_ranges`: where the cloud takes parts in any order."""
        return self._bucket.takes_ranges

    def range_rules(self, size: int) -> RangeRules:
        """See `PartedStore.range_rules`."""
        return range_rules(self._bucket, size)

    def begin(self, name: str, size: int, attributes: Mapping[str, str], run_id: str) -> str:
        """See `PartedStore.begin`."""
        del size, run_id
        bucket, key = self._bucket, self._key(name)
        return self._client.request(self._where(name), lambda: bucket.mark(key, attributes))

    def range_writer(self, name: str, token: str, begin: int, end: int, size: int) -> RangeWriter:
        """See `PartedStore.range_writer`."""
        return RangeWriter(self._bucket, self._key(name), self._where(name), token, begin, end, size)

    def complete(self, name: str, token: str, size: int, attributes: Mapping[str, str]) -> None:
        """See `PartedStore.complete`."""
        assert attributes, "by these a twin's object is known"
        bucket, key = self._bucket, self._key(name)
        publication = Publication(bucket, key, self._where(name), size, attributes)
        publication.by(lambda: bucket.join(key, token, size, attributes))
        with contextlib.suppress(AnabranchError):  # the file is there; what cannot be removed is left to `gc`
            self._client.request(self._where(name), lambda: bucket.clear(key, token))

    def give_up(self, name: str, token: str) -> None:
        """See `PartedStore.give_up`, as far as it does no harm to twins."""
        bucket, key = self._bucket, self._key(name)
        with contextlib.suppress(FileNotFoundError):
            self._client.request(self._where(name), lambda: bucket.give_up(key, token))

    def attributes(self, name: str) -> Mapping[str, str] | None:
        """See `Store.attributes`: the object's metadata."""
        found = dict(self._head(name).attributes)
        found.pop(IDENTITY_ATTRIBUTE, None)
        return found

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        key = self._key(name)
        with contextlib.suppress(FileNotFoundError):
            self._client.request(self._where(name), lambda: self._bucket.delete(key))

    def leftovers(self, names: Collection[str], older_than_seconds: float = 0.0) -> tuple[Leftover, ...]:
        """See `Store.leftovers`: uploads of exactly these keys that never became objects, where the server tells."""
        wanted = {self._key(name): name for name in names}
        found: list[Unfinished] = []
        for folder in sorted({key.rpartition("/")[0] for key in wanted}):
            prefix = f"{folder}/" if folder else ""
            found += self._client.request(self._where(""), functools.partial(self._bucket.unfinished, prefix))
        return tuple(
            sorted(
                Leftover(wanted[upload.key], upload.token, upload.age_seconds, upload.size)
                for upload in found
                if upload.key in wanted and upload.age_seconds >= older_than_seconds
            )
        )

    def delete_leftover(self, leftover: Leftover) -> None:
        """See `Store.delete_leftover`."""
        key = self._key(leftover.name)
        with contextlib.suppress(FileNotFoundError):
            self._client.request(
                self._where(leftover.name), lambda: self._bucket.remove_unfinished(key, leftover.token)
            )

    def free_bytes(self) -> int | None:
        """None: buckets do not tell."""
        return None

    def _fetch(self, name: str, offset: int, into: memoryview, version: str | None) -> None:
        """Fill `into` by requests side by side; when this returns or raises, nothing writes into it any more."""
        key, where, step = self._key(name), self._where(name), self._client.limits.piece_bytes

        async def piece(begin: int) -> None:
            part = into[begin : begin + step]
            await self._client.repeat(
                where, lambda: self._bucket.get(key, offset + begin, part, version), len(part), is_read=True
            )

        try:
            self._client.run(side_by_side(range(0, len(into), step), piece))
        except ConditionError as error:
            raise self._changed(name) from error

    def _head(self, name: str) -> ObjectInfo:
        key = self._key(name)
        return self._client.request(self._where(name), lambda: self._bucket.head(key))

    def _changed(self, name: str) -> InputError:
        return InputError(
            f"{self._where(name)}: changed while in use (it is another version now)",
            "Restore the object, or start a new output from the changed inputs.",
        )

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    def _where(self, name: str) -> str:
        return f"{self._url}/{name}" if name else self._url
