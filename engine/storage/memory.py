"""A store in this process's memory: what tests and small experiments use instead of a disk."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import ClassVar, NamedTuple

from ..errors import InputError, IntegrityError
from .protocol import DEFAULT_READ_LIMIT_BYTES, FileInfo, Leftover, check_name


class _File(NamedTuple):
    data: bytes
    version: str
    attributes: Mapping[str, str]


class MemoryStore:
    """Files in a dictionary; keeps attributes as object stores do."""

    _shared: ClassVar[dict[str, MemoryStore]] = {}
    _shared_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, url: str = "memory://") -> None:
        self._url = url
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}
        self._open_writers: dict[str, MemoryWriter] = {}
        self._counter = 0

    @classmethod
    def shared(cls, url: str) -> MemoryStore:
        """The one store of this process at a `memory://` URL."""
        scheme, _, path = url.partition("://")
        normal = f"{scheme.lower()}://{'/'.join(part for part in path.split('/') if part)}"
        with cls._shared_lock:
            return cls._shared.setdefault(normal, cls(normal))

    @property
    def url(self) -> str:
        """The URL that the store was opened with."""
        return self._url

    def info(self, name: str) -> FileInfo:
        """See `Store.info`."""
        file = self._file(name)
        return FileInfo(len(file.data), file.version)

    def list(self, folder: str = "") -> list[str]:
        """See `Store.list`."""
        prefix = f"{folder}/" if folder else ""
        with self._lock:
            return sorted(name for name in self._files if name.startswith(prefix) and "/" not in name[len(prefix) :])

    def read_into(self, name: str, offset: int, into: memoryview, version: str | None = None) -> None:
        """See `Store.read_into`."""
        file = self._file(name)
        where = f"{self._url}/{name}"
        if version is not None and version != file.version:
            raise InputError(f"{where}: changed while it was in use ({file.version}, expected {version})")
        view = into.cast("B")
        if offset + len(view) > len(file.data):
            raise InputError(f"{where}: ends at byte {len(file.data)}, expected {offset + len(view)} bytes")
        view[:] = file.data[offset : offset + len(view)]

    def read_bytes(self, name: str, limit_bytes: int = DEFAULT_READ_LIMIT_BYTES) -> bytes:
        """See `Store.read_bytes`."""
        data = self._file(name).data
        if len(data) > limit_bytes:
            raise InputError(f"{self._url}/{name}: {len(data)} bytes, expected at most {limit_bytes}")
        return data

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`."""
        with self._lock:
            if name in self._files:
                return False
            self._put(name, data, {})
            return True

    def replace(self, name: str, data: bytes) -> None:
        """See `Store.replace`."""
        with self._lock:
            self._put(name, data, {})

    def writer(self, name: str, size: int, attributes: Mapping[str, str], run_id: str) -> MemoryWriter:
        """See `Store.writer`."""
        with self._lock:
            self._counter += 1
            token = f"{run_id}.{self._counter}"
            writer = MemoryWriter(self, check_name(name), token, size, dict(attributes))
            self._open_writers[token] = writer
            return writer

    def attributes(self, name: str) -> Mapping[str, str] | None:
        """See `Store.attributes`."""
        return self._file(name).attributes

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        with self._lock:
            self._files.pop(name, None)

    def leftovers(self, names: Collection[str], older_than_seconds: float = 0.0) -> tuple[Leftover, ...]:
        """See `Store.leftovers`; an unfinished writer has the age 0."""
        with self._lock:
            found = [
                Leftover(writer.name, token, 0.0, len(writer.data))
                for token, writer in self._open_writers.items()
                if writer.name in names and older_than_seconds <= 0
            ]
        return tuple(sorted(found))

    def delete_leftover(self, leftover: Leftover) -> None:
        """See `Store.delete_leftover`."""
        with self._lock:
            self._open_writers.pop(leftover.token, None)

    def free_bytes(self) -> int | None:
        """None: as much as the process may have."""
        return None

    def publish(self, writer: MemoryWriter) -> None:
        """Make a writer's bytes visible; FileNotFoundError when its left-over was deleted."""
        with self._lock:
            if self._open_writers.pop(writer.token, None) is None:
                raise FileNotFoundError(f"{self._url}/{writer.name}: its unfinished write was removed")
            self._put(writer.name, bytes(writer.data), writer.attributes)

    def _file(self, name: str) -> _File:
        with self._lock:
            try:
                return self._files[check_name(name)]
            except KeyError:
                raise FileNotFoundError(f"{self._url}/{name}: no such file") from None

    def _put(self, name: str, data: bytes, attributes: Mapping[str, str]) -> None:
        self._counter += 1
        self._files[check_name(name)] = _File(bytes(data), f"v{self._counter}", attributes)


class MemoryWriter:
    """Bytes that `commit` makes visible."""

    def __init__(self, store: MemoryStore, name: str, token: str, size: int, attributes: Mapping[str, str]) -> None:
        self.name = name
        self.token = token
        self.data = bytearray()
        self.attributes = attributes
        self._store = store
        self._size = size
        self._open = True

    def write(self, data: memoryview | bytes) -> None:
        """See `Writer.write`."""
        assert self._open, "write after commit or discard"
        self.data += data

    def commit(self) -> None:
        """See `Writer.commit`."""
        assert self._open, "commit after commit or discard"
        if len(self.data) != self._size:
            raise IntegrityError(
                f"{self._store.url}/{self.name}: {len(self.data)} bytes were written, expected {self._size}"
            )
        self._store.publish(self)
        self._open = False

    def discard(self) -> None:
        """See `Writer.discard`."""
        self._open = False
        self._store.delete_leftover(Leftover(self.name, self.token, 0.0, 0))
