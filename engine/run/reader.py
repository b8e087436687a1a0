"""The bytes of one checkpoint's tensors into window buffers, with what derived tensors need kept between windows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from ..errors import InputError
from ..kernels import Array, Kernels
from ..models import Bytes, Checkpoint, TensorInfo, TensorLocation
from ..storage import Store
from .meter import Meter
from .taken import TakenBytes


class _Kept(NamedTuple):
    size_bytes: int
    array: Future[Array]


class HeldArrays:
    """Small matrices that windows of a tensor share, up to a number of bytes; what was used longest ago goes first.

    Args:
        room_bytes: of all of them.
        most_bytes: of one; larger ones are not to be kept.
    """

    def __init__(self, room_bytes: int, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._room = room_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[Any, _Kept] = OrderedDict()

    def get(self, key: Any, size_bytes: int, make: Callable[[], Array]) -> Array:
        """The array of this key; made by the first thread that asks, while others wait for it."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                kept = self._kept[key] = _Kept(size_bytes, Future())
                while len(self._kept) > 1 and sum(entry.size_bytes for entry in self._kept.values()) > self._room:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(key)
        if found is not None:
            return found.array.result()
        try:
            kept.array.set_result(make())
        except BaseException as error:
            with self._lock:
                if self._kept.get(key) is kept:
                    del self._kept[key]
            kept.array.set_exception(error)
            raise
        return kept.array.result()


class Scratch(threading.local):
    """Arrays of one thread, made once for each slot and reused."""

    def __init__(self) -> None:
        self._arrays: dict[str, tuple[int, Array]] = {}

    def get(self, kernels: Kernels, slot: str, elements: int) -> Array:
        """An f32 array of `elements` elements."""
        size, array = self._arrays.get(slot, (0, None))
        if size < elements:
            self._arrays[slot] = (0, None)  # let the smaller one go first
            size, array = self._arrays[slot] = (elements, kernels.empty(elements, "f32"))
        return array[:elements]


class SourceReader:
    """`Reads` of one checkpoint.

    Args:
        source: which source of the merge it is; distinguishes what is held.
        checkpoint: its files, as the plan saw them.
        store: where they lie.
        kernels: the arithmetic of derived tensors.
        held: shared by all sources.
        scratch: shared by all sources.
        meter: gets seconds and bytes of reads.
        readers: those of all sources of the merge; filled after they are made.
    """

    def __init__(
        self,
        source: int,
        checkpoint: Checkpoint,
        store: Store,
        *,
        kernels: Kernels,
        held: HeldArrays,
        scratch: Scratch,
        meter: Meter,
        readers: Sequence[SourceReader] = (),
    ) -> None:
        self.kernels = kernels
        self._source = source
        self._checkpoint = checkpoint
        self._store = store
        self._held = held
        self._scratch = scratch
        self._meter = meter
        self._readers = readers

    def fill(
        self, location: TensorLocation, begin: int, end: int, into: Bytes, taken: TakenBytes | None = None
    ) -> None:
        """Units [begin, end) of a tensor of this checkpoint; `taken` notes which stored bytes that took.

        Raises:
            InputError: a file ends too early, is another one than when the plan was made, or what was read before is
                no longer what it was.
        """
        location.fill(begin, end, into, self if taken is None else _Noting(self, taken))

    def read(
        self, file: int, info: TensorInfo, begin: int, into: Bytes, taken: TakenBytes | None = None, rows: bool = False
    ) -> None:
        """See `Reads.read`; `taken` notes it, by rows or by blocks."""
        wanted = self._checkpoint.files[file]
        try:
            with self._meter.measure("read", len(into)):
                self._store.read_into(wanted.name, info.offset + begin, into.data, version=wanted.version)
                if taken is not None and len(into):
                    taken.note(self._checkpoint.file_urls[file], info, begin, into.data, rows)
        except FileNotFoundError as error:
            raise InputError(
                f"{self._store.url}/{wanted.name} vanished while it was read", "restore the file"
            ) from error

    def read_run(self, file: int, tensors: Sequence[tuple[TensorInfo, TakenBytes | None]], into: Bytes) -> None:
        """Stored tensors that follow each other in a file, with one read; errors as for `fill`."""
        url, place = self._checkpoint.file_urls[file], 0
        self.read(file, tensors[0][0], 0, into, None, False)
        for info, taken in tensors:
            if taken is not None:
                taken.note(url, info, 0, into.data[place : place + info.nbytes])
            place += info.nbytes

    def of(self, url: str) -> SourceReader:
        """See `Reads.of`."""
        if url == self._checkpoint.url:
            return self
        return next(reader for reader in self._readers if reader._checkpoint.url == url)

    def by_rows(self) -> SourceReader:
        """See `Reads.by_rows`."""
        return self

    @property
    def held_most_bytes(self) -> int:
        """See `Reads.held_most_bytes`."""
        return self._held.most_bytes

    def computing(self) -> AbstractContextManager[None]:
        """See `Reads.computing`."""
        return self._meter.measure("read")

    def held(self, key: Hashable, size_bytes: int, make: Callable[[], Array]) -> Array:
        """See `Reads.held`."""
        return self._held.get((self._source, key), size_bytes, make)

    def scratch(self, slot: str, elements: int) -> Array:
        """See `Reads.scratch`."""
        return self._scratch.get(self.kernels, slot, elements)


class _Noting:
    """`Reads` of one checkpoint that note what is read for one tensor."""

    __slots__ = ("_reader", "_rows", "_taken")

    def __init__(self, reader: SourceReader, taken: TakenBytes, rows: bool = False) -> None:
        self._reader = reader
        self._taken = taken
        self._rows = rows

    @property
    def kernels(self) -> Kernels:
        return self._reader.kernels

    def read(self, file: int, info: TensorInfo, begin: int, into: Bytes) -> None:
        self._reader.read(file, info, begin, into, self._taken, self._rows)

    def of(self, url: str) -> _Noting:
        return _Noting(self._reader.of(url), self._taken, self._rows)

    def by_rows(self) -> _Noting:
        return _Noting(self._reader, self._taken, rows=True)

    @property
    def held_most_bytes(self) -> int:
        return self._reader.held_most_bytes

    def computing(self) -> AbstractContextManager[None]:
        return self._reader.computing()

    def held(self, key: Hashable, size_bytes: int, make: Callable[[], Array]) -> Array:
        # What is kept was read for this tensor: another one notes its own reading, on any schedule.
        return self._reader.held((key, self._taken), size_bytes, make)

    def scratch(self, slot: str, elements: int) -> Array:
        return self._reader.scratch(slot, elements)
