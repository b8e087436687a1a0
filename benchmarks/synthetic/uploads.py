"""What a server keeps of what it is sent: sizes and digests of everything, and the bytes of small objects."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
import weakref
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

KEPT_BYTES = 32 << 20
"""Larger objects are hashed and forgotten: shards are, receipts and tables are not."""
EARLY_BYTES = 8 << 30
"""Of one upload on the disk, waiting for parts before them."""


class Refused(Exception):
    """An error answer of S3."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A finished object."""

    size: int
    sha256: str
    version: str
    metadata: Mapping[str, str]
    data: bytes | None
    """None where they are forgotten."""


def whole(body: bytes, metadata: Mapping[str, str]) -> Uploaded:
    """An object that came in one request."""
    digest = hashlib.sha256(body).hexdigest()
    return Uploaded(len(body), digest, f"{digest[:32]}-1", metadata, body if len(body) <= KEPT_BYTES else None)


class Part(NamedTuple):
    """A part as its ETag names it."""

    crc32: int
    size: int

    @property
    def version(self) -> str:
        return f"{self.crc32:08x}-{self.size}"


@dataclass
class Upload:
    """An object on its way in parts of any order, hashed in theirs; only what came early is held, on the disk.

    Numbers may have gaps, as where several clients number the parts of one object by where they begin: then what comes
    behind a gap waits for the end, because what may still come before it is not known.
    """

    key: str
    metadata: Mapping[str, str]
    began: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._sha256 = hashlib.sha256()
        self._parts: dict[int, Part] = {}
        self._hashed = 0  # parts
        self._early: dict[int, tuple[int, int]] = {}  # where in the spool, and how many bytes
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the upload
        weakref.finalize(self, self._spool.close)
        self._kept: bytearray | None = bytearray()

    @property
    def early_bytes(self) -> int:
        """Held at this moment."""
        return sum(size for _, size in self._early.values())

    def add(self, number: int, body: memoryview) -> Part:
        """Take a part, which may come again with the same bytes, and until its turn with others.

        Raises:
            Refused: too many bytes wait for their turn, or other bytes come for a part that is hashed.
        """
        part = Part(zlib.crc32(body), len(body))
        with self._lock:
            if number <= self._hashed:
                if self._parts[number] != part:
                    raise Refused(400, "InvalidPart")
                return part
            if number > self._hashed + 1:
                if self.early_bytes + len(body) > EARLY_BYTES:
                    raise Refused(503, "SlowDown")
                self._early[number] = (self._spool.seek(0, os.SEEK_END), len(body))
                self._spool.write(body)
            else:
                self._take(body)
                while self._hashed + 1 in self._early:
                    self._take(self._held(self._hashed + 1))
            self._parts[number] = part
        return part

    def finish(self, listed: Sequence[tuple[int, str]]) -> Uploaded:
        """The whole object of the parts that the client lists by number and ETag; all of them.

        Raises:
            Refused: it lists others than came.
        """
        with self._lock:
            came = [(number, self._parts[number].version) for number in sorted(self._parts)]
            if list(listed) != came or not came:
                raise Refused(400, "InvalidPart")
            for number in sorted(self._early):
                self._take(self._held(number))
            size = sum(part.size for part in self._parts.values())
            digest = self._sha256.hexdigest()
            data = None if self._kept is None else bytes(self._kept)
            return Uploaded(size, digest, f"{digest[:32]}-{len(came)}", self.metadata, data)

    def parts(self) -> list[tuple[int, Part]]:
        """Those that came, by number."""
        with self._lock:
            return sorted(self._parts.items())

    def _held(self, number: int) -> bytes:
        """A part that came early, which is held no more."""
        begin, size = self._early.pop(number)
        self._spool.seek(begin)
        return self._spool.read(size)

    def _take(self, body: memoryview | bytes) -> None:
        self._sha256.update(body)
        self._hashed += 1
        if self._kept is not None:
            self._kept += body
            if len(self._kept) > KEPT_BYTES:
                self._kept = None
