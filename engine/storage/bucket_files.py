"""What files under a prefix of a bucket have in common, whichever cloud has the bucket."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from ..errors import InputError
from .coalesce import Coalescer
from .protocol import FileInfo, check_name

IDENTITY_ATTRIBUTE = "anabranch_upload"
"""Object metadata that tells one upload from its twin, so that a lost answer to `commit` can be cleared up."""


def part_size_bytes(size: int, part_bytes: int, granularity_bytes: int, most_parts: int) -> int:
    """Size of all parts but the last: `part_bytes`, or as many whole grains as the most parts of a huge file need."""
    if size <= part_bytes * most_parts:
        return part_bytes
    return -(-size // (most_parts * granularity_bytes)) * granularity_bytes


class BucketFiles(ABC):
    """Names, URLs and small reads of a store in a bucket; see `Store`.

    Args:
        bucket_url: scheme and bucket, without a slash at the end.
        prefix: of all keys, without a slash at its ends; empty for the whole bucket.
    """

    def __init__(self, bucket_url: str, prefix: str) -> None:
        self._prefix = f"{prefix}/" if prefix else ""
        self._url = f"{bucket_url}/{prefix}" if prefix else bucket_url
        self._small_reads = Coalescer(self._fetch)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    @property
    def url(self) -> str:
        """scheme://bucket/prefix."""
        return self._url

    @abstractmethod
    def info(self, name: str) -> FileInfo:
        """See `Store.info`."""

    def read_into(self, name: str, offset: int, into: memoryview, version: str | None = None) -> None:
        """See `Store.read_into`."""
        view = into.cast("B")
        if len(view) == 0:
            if version not in (None, self.info(name).version):
                raise self._changed(name)
            return
        self._small_reads.read_into(name, offset, view, version)

    def free_bytes(self) -> int | None:
        """None: buckets do not tell."""
        return None

    @abstractmethod
    def _fetch(self, name: str, offset: int, into: memoryview, version: str | None) -> None:
        """Fill `into` by requests side by side; when this returns or raises, nothing writes into it any more."""

    @abstractmethod
    def _changed(self, name: str) -> InputError:
        """What a read of a version ends with that is not there any more."""

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    def _folder(self, folder: str) -> str:
        """What the keys of a folder's files begin with."""
        return self._prefix + (f"{check_name(folder)}/" if folder else "")

    def _names(self, keys: Iterable[str]) -> list[str]:
        """Sorted names of objects, without those that stand for folders."""
        names = (key[len(self._prefix) :] for key in keys)
        return sorted(name for name in names if name.rpartition("/")[2] not in ("", ".", ".."))

    def _where(self, name: str) -> str:
        return f"{self._url}/{name}" if name else self._url
