"""One object in Google Cloud Storage that several processes upload: parts are objects until they are composed.

A part's name says where it lies in the file and what it holds, so that twins send one object, and whoever composes
knows without reading whether a part is what was sent. https://cloud.google.com/storage/docs/composite-objects
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from .gcs_client import OCTETS, AnswerError, GcsConnection, GcsObjects
from .object_bucket import Unfinished
from .object_client import ConditionError, GoneError
from .protocol import TEMPORARY_PREFIX, UnjoinableError
from .requests import side_by_side

MOST_SOURCES = 32
"""Google's own limit of objects in one request that composes."""
REQUESTS_AT_ONCE = 16
"""Of those that move no bytes: about 600 parts of a shard of 5 GB are composed and removed in some seconds."""

_FOLDER = f"{TEMPORARY_PREFIX}parts/"
"""Beside the object; a list of what lies there shows no objects in folders below it."""
_OURS = re.compile(r"(?P<name>[^/]+)/[0-9a-f]{8}/((?P<offset>[0-9a-f]{16})-(?P<crc32c>[0-9a-f]{8})|joined-[0-9a-f]{8})")

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Source(NamedTuple):
    """An object that is composed, in the very generation that was seen."""

    key: str
    generation: str


def part_key(key: str, mark: str, offset: int, crc32c: str) -> str:
    """Of the part of an upload that begins at a byte of the object `key`; checksum as the server spells it."""
    return f"{_parts_of(key)}{mark}/{offset:016x}-{_in_hex(crc32c)}"


def _in_hex(crc32c: str) -> str:
    """A checksum for names, which take no slashes."""
    return base64.b64decode(crc32c).hex()


def _parts_of(key: str) -> str:
    """What the keys of an object's parts begin with, whatever the upload."""
    folder, slash, name = key.rpartition("/")
    return f"{folder}{slash}{_FOLDER}{name}/"


class GcsRanges:
    """Parts of uploads to a bucket, in a folder beside the objects that they will be.

    Args:
        connection: sends requests.
        objects: of the bucket.
    """

    def __init__(self, connection: GcsConnection, objects: GcsObjects) -> None:
        self._connection = connection
        self._objects = objects

    async def compose(self, key: str, mark: str, size: int, attributes: Mapping[str, str], generation: str) -> None:
        """Make an object of the parts of an upload.

        Args:
            key: of the object.
            mark: of the upload.
            size: of the object in bytes.
            attributes: kept beside it.
            generation: that it has now; "0" where there is none.

        Raises:
            GoneError: parts are not there, or the object has another generation by now.
            UnjoinableError: a part is not what was sent, or the server refuses to compose them.
        """
        sources = await self._whole(key, mark, size)
        while len(sources) > MOST_SOURCES:
            groups = [sources[i : i + MOST_SOURCES] for i in range(0, len(sources), MOST_SOURCES)]
            sources = await _each(groups, lambda group: self._compose_some(key, mark, group))
        await self._compose(key, sources, attributes, generation)

    async def _whole(self, key: str, mark: str, size: int) -> list[_Source]:
        """The parts of an upload in the order of the object, from its first to its last byte."""
        place, sources = 0, []
        for item, part in await self._list(f"{_parts_of(key)}{mark}/", "size", "generation", "crc32c"):
            if part["offset"] is None:
                continue  # composed of some of them by another finisher, or before an answer was lost
            offset = int(part["offset"], 16)
            if offset > place:
                raise GoneError
            if offset < place or _in_hex(item["crc32c"]) != part["crc32c"]:
                raise UnjoinableError(f"what lies at byte {offset} is not what was sent")
            sources.append(_Source(item["name"], str(item["generation"])))
            place += int(item["size"])
        if place != size:
            raise GoneError
        return sources

    async def _compose_some(self, key: str, mark: str, sources: Sequence[_Source]) -> _Source:
        """Make a longer part; its name is nobody else's, so that two finishers do not meet."""
        joined = f"{_parts_of(key)}{mark}/joined-{secrets.token_hex(4)}"
        return _Source(joined, await self._compose(joined, sources, {}, "0"))

    async def _compose(
        self, key: str, sources: Sequence[_Source], attributes: Mapping[str, str], generation: str
    ) -> str:
        """One request; returns the new generation."""
        described = {
            "destination": {"contentType": OCTETS, "metadata": dict(attributes)},
            "sourceObjects": [{"name": source.key, "generation": source.generation} for source in sources],
        }
        query = {"ifGenerationMatch": generation, "fields": "generation"}
        headers = {"Content-Type": "application/json; charset=UTF-8"}
        path = f"{self._objects.path(key)}/compose"
        try:
            made = await self._connection.json("POST", path, query, headers, json.dumps(described).encode())
        except (FileNotFoundError, ConditionError) as error:
            raise GoneError from error
        except AnswerError as error:
            if error.status == 400:  # their storage classes differ, for example
                raise UnjoinableError(f"the server does not compose its parts ({error.message})") from error
            raise
        return str(made["generation"])

    async def unfinished(self, prefix: str) -> list[Unfinished]:
        """See `Bucket.unfinished`: an upload is as old as the youngest of its parts."""
        found: dict[str, Unfinished] = {}
        now = time.time()
        for item, part in await self._list(f"{prefix}{_FOLDER}", "size", "timeCreated"):
            key = f"{prefix}{part['name']}"
            age = max(0.0, now - datetime.fromisoformat(item["timeCreated"]).timestamp())
            seen = found.get(key, Unfinished(key, age, 0))
            found[key] = Unfinished(key, min(age, seen.age_seconds), seen.size + int(item["size"]))
        return list(found.values())

    async def remove(self, key: str, mark: str = "") -> None:
        """Remove the parts of an upload, or of all uploads of an object."""
        prefix = _parts_of(key) + (f"{mark}/" if mark else "")
        await _each([item["name"] for item, _ in await self._list(prefix)], self._remove)

    async def _remove(self, key: str) -> None:
        try:
            await self._objects.delete(key)
        except FileNotFoundError:
            return  # somebody else did

    async def _list(self, prefix: str, *fields: str) -> list[tuple[dict[str, Any], re.Match[str]]]:
        """Parts whose keys begin so, in the order of keys, with what their names say; nothing that is not ours."""
        items = await self._objects.items(prefix, ",".join(("name", *fields)))
        found = [(item, _OURS.fullmatch(item["name"].rpartition(_FOLDER)[2])) for item in items]
        return [(item, part) for item, part in found if part is not None]


async def _each(items: Sequence[Item], request: Callable[[Item], Coroutine[Any, Any, Result]]) -> list[Result]:
    """What a request for each of them came to, in their order."""
    slots, results = asyncio.Semaphore(REQUESTS_AT_ONCE), dict[int, Result]()

    async def one(index: int) -> None:
        async with slots:
            results[index] = await request(items[index])

    await side_by_side(range(len(items)), one)
    return [results[index] for index in range(len(items))]
