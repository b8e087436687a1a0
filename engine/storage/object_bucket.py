"""What a cloud must answer so that `ObjectStore` can make a store of it; nothing is tried twice here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from ..errors import InputError, TemporaryError
from .object_client import ObjectClient
from .requests import AGAIN

IDENTITY_ATTRIBUTE = "anabranch_upload"
"""Object metadata that tells one upload from its twin, so that a lost answer to `commit` can be cleared up."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class ObjectInfo(NamedTuple):
    """An object as its server describes it."""

    size: int
    """Bytes."""
    version: str
    """Another one after every change."""
    attributes: Mapping[str, str]
    """What was stored beside it."""


class Unfinished(NamedTuple):
    """Parts that were uploaded and never became an object."""

    key: str
    age_seconds: float
    size: int
    """Bytes, as far as the server tells cheaply; else 0."""
    token: str = ""
    """Tells it from others of the same key, where there may be several."""


class PartedUpload(Protocol):
    """One object on its way, invisible before `finish`."""

    most_parts_at_once: int
    """1 where the server takes them in order only."""

    async def part(self, offset: int, body: bytes) -> None:
        """Send bytes from `offset` on; the same bytes may be sent again."""

    async def finish(self, offset: int, body: bytes) -> None:
        """Send the last bytes, if any are left, and make the object visible, whole; may be repeated.

        Raises:
            GoneError: parts of it are gone; perhaps because it was finished.
        """

    async def abort(self) -> None:
        """Take back what can be taken back at once."""


class Bucket(Protocol):
    """A bucket or container. Errors are FileNotFoundError, ConditionError, or what the client's `translate` knows."""

    url: str
    """Scheme and name, without a slash at the end."""
    granularity_bytes: int
    """Parts but the last are multiples of this."""
    most_parts: int

    @property
    def client(self) -> ObjectClient:
        """Runs its requests."""

    async def head(self, key: str) -> ObjectInfo:
        """Describe an object."""

    async def keys(self, prefix: str) -> list[str]:
        """Keys that begin with `prefix` and have no slash after it."""

    async def get(self, key: str, offset: int, into: memoryview, version: str | None) -> None:
        """Fill `into` from byte `offset` on.

        Raises:
            ConditionError: the object has another version than the one that is given.
            InputError: it ends too early.
        """

    async def read(self, key: str, limit_bytes: int) -> bytes:
        """The whole of a small object, of one version; see `check_limit`."""

    async def put(self, key: str, data: bytes, attributes: Mapping[str, str], *, exclusive: bool) -> None:
        """Write a whole object.

        Raises:
            ConditionError: it must not exist and does.
            GarbledError: what exists now is ours and damaged.
        """

    async def delete(self, key: str) -> None:
        """Remove an object; FileNotFoundError where there is none."""

    async def begin(self, key: str, size: int, attributes: Mapping[str, str]) -> PartedUpload:
        """Start to upload an object of `size` bytes."""

    async def unfinished(self, prefix: str) -> list[Unfinished]:
        """Unfinished uploads of keys that begin with `prefix`, as far as the server tells."""

    async def remove_unfinished(self, key: str, token: str) -> None:
        """Remove what an unfinished upload left; FileNotFoundError where there is nothing."""

    @property
    def takes_ranges(self) -> bool:
        """Whether several processes may send parts of one object, in any order and again, as far as is known of it."""

    def least_part_bytes(self, size: int) -> int:
        """No part of an object of `size` bytes is shorter, but the one at its end: they are at most `most_parts`."""

    async def mark(self, key: str, attributes: Mapping[str, str]) -> str:
        """What is common to the parts of one upload, and to no others."""

    async def send(self, key: str, mark: str, offset: int, body: bytes, size: int) -> None:
        """Send bytes of an object of `size` bytes from `offset` on."""

    async def join(self, key: str, mark: str, size: int, attributes: Mapping[str, str]) -> None:
        """Make the object visible, whole; may be repeated.

        Raises:
            GoneError: its parts are not there, or not all of them; perhaps because it was joined.
            IntegrityError: they are not the whole object.
            UnjoinableError: see there.
        """

    async def clear(self, key: str, mark: str) -> None:
        """Remove what is left of the parts of an upload when its object is there; may be repeated."""

    async def give_up(self, key: str, mark: str) -> None:
        """Take an upload back where that takes nothing from others; FileNotFoundError where there is nothing."""


def part_size_bytes(bucket: Bucket, size: int) -> int:
    """Of all parts but the last: as limits say, or as many whole grains as the most parts of a huge object need."""
    if size <= bucket.client.limits.part_bytes * bucket.most_parts:
        return bucket.client.limits.part_bytes
    return -(-size // (bucket.most_parts * bucket.granularity_bytes)) * bucket.granularity_bytes


def check_limit(where: str, size: int, limit_bytes: int) -> None:
    """InputError where an object is larger than what may be read whole."""
    if size > limit_bytes:
        raise InputError(f"{where}: {size} bytes, expected at most {limit_bytes}")


def check_range(content_range: str, length: int | None, offset: int, end: int, where: str) -> None:
    """Check that an answer is about the bytes that were asked for, before any of them is used.

    Args:
        content_range: what its header says; empty where it has none.
        length: of its body, if it is known.
        offset: of the first byte that was asked for.
        end: of the last one.
        where: our URL of the object, for messages.
    """
    match = _CONTENT_RANGE.fullmatch(content_range)
    if match is None:
        if offset == 0 and length == end:
            return  # the range was ignored, and was the whole file
        raise TemporaryError(f"{where}: asked for bytes {offset} to {end - 1}, got the whole file", AGAIN)
    found = (int(match[1]), int(match[2]) + 1)
    if found[0] >= found[1] or (found[0] == offset and found[1] < end and match[3] == str(found[1])):
        raise too_short(where, int(match[3]) if match[3] != "*" else found[1], end)
    if found != (offset, end):
        raise TemporaryError(f"{where}: asked for bytes {offset} to {end - 1}, got {content_range!r}", AGAIN)


def too_short(where: str, size: int, needed: int) -> InputError:
    """What a read ends with that wants more bytes than an object has."""
    return InputError(f"{where}: ends at byte {size}, expected {needed} bytes", "Upload the file again.")
