"""Two checkpoints, tensor by tensor, in windows that two of each thread's buffers hold."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import IntegrityError, ResourceError
from ..kernels import Array, Kernels
from ..models import (
    BYTES_PER_TENSOR,
    DTYPES,
    HELD_BYTES,
    Bytes,
    Checkpoint,
    Opened,
    Room,
    TensorLocation,
    is_part,
    open_checkpoint,
    open_models,
)
from ..models import resolve_model as resolve
from ..output import MANIFEST_NAME, PLAN_NAME, Finished, open_outputs
from ..storage import Store, client_bytes, crosses_network
from .comparison_report import ComparedTensor, ComparisonReport
from .element_differences import TILE, TensorDifference, TileDifference, compare_floats, compare_units, differing_bits
from .machine import available_cores
from .manifest_differences import manifest_differences
from .memory import (
    FIXED_BYTES,
    LARGEST_REMOTE_SLAB,
    LARGEST_SLAB,
    REMOTE_READERS,
)
from .meter import Meter
from .reader import HeldArrays, Scratch, SourceReader

TILE_BYTES = TILE * 8 * 7
"""What a thread holds besides its windows while it compares a tile: decoded values, fp64 copies, products, masks."""
WAITING = 4
"""Windows per thread that are handed out ahead."""


@dataclass(frozen=True)
class Side:
    """One of the two."""

    checkpoint: Checkpoint
    store: Store
    finished: Finished | None
    """Its manifest, where it is an output of ours."""


@dataclass(frozen=True, slots=True)
class _Window:
    place: int
    """Of the pair."""
    begin: int
    end: int
    """In units, see `TensorInfo.units`."""


@dataclass(frozen=True, slots=True)
class _Memory:
    threads: int
    window_bytes: int
    held_bytes: int


def open_side(reference: str, room: Room) -> Side:
    """A checkpoint as recipes name it, or a finished output.

    Args:
        reference: it.
        room: memory for headers and texts of all sides.

    Raises:
        RecipeError: there is none.
        InputError: it is damaged, or of a kind that is not read.
        IntegrityError: it is an output that is not finished.
        ResourceError: headers and texts do not fit into the room.
    """
    url, opened = resolve(reference, Path.cwd()), Opened(room=room)
    home = opened.folder(url.base)
    finished = None
    if url.adapter is None and MANIFEST_NAME in home.list():
        [finished] = open_outputs(url.base)
    elif PLAN_NAME in home.list(PLAN_NAME.rpartition("/")[0]):
        raise IntegrityError(f"{home.url} is not finished", "run the same merge again; it goes on where it stopped")
    if url.adapter is None and is_part(home):  # masks or a task vector: compared as they are stored
        return Side(open_checkpoint(url.base, home, room), home, finished)
    checkpoint, store = open_models([url], opened)[url]
    return Side(checkpoint, store, finished)


class Comparison:
    """Two opened checkpoints; nothing but headers has been read.

    Args:
        first: a.
        second: b.
        memory_bytes: limit of this process.
        workers: threads; None: as many as the memory holds, of those that cores or requests are good for.

    Raises:
        ResourceError: not even one thread fits.
    """

    def __init__(self, first: Side, second: Side, memory_bytes: int, workers: int | None = None) -> None:
        self._sides = (first, second)
        mine, theirs = first.checkpoint.tensors, second.checkpoint.tensors
        self._names = [*mine, *(name for name in theirs if name not in mine)]
        self._pairs = [(mine[name], theirs[name]) for name in mine if name in theirs and _fit(mine[name], theirs[name])]
        self._memory = self._plan_memory(memory_bytes, workers)

    @property
    def total_bytes(self) -> int:
        """Bytes of both that are compared, as they are in memory."""
        return sum(location.info.nbytes for pair in self._pairs for location in pair)

    def run(self, kernels: Kernels, progress: Callable[[int], None] = lambda _: None) -> ComparisonReport:
        """Read both and compare them.

        Args:
            kernels: what decodes elements.
            progress: is called, by any thread, with bytes that have been compared.

        Raises:
            InputError, ResourceError, TemporaryError: what stopped it.
        """
        worker = _Worker(self._sides, self._pairs, self._memory, kernels, progress)
        found = [TensorDifference() for _ in self._pairs]
        with ThreadPoolExecutor(self._memory.threads, thread_name_prefix="compare") as pool:
            try:
                for window, tiles in _in_order(pool, worker.compare, self._windows(), self._memory.threads * WAITING):
                    for tile in tiles:
                        found[window.place].add(tile)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return self._report({pair[0].info.name: each for pair, each in zip(self._pairs, found, strict=True)})

    def _windows(self) -> Iterator[_Window]:
        for place, pair in enumerate(self._pairs):
            widest = max(DTYPES[location.info.dtype].unit_bytes for location in pair)
            step = max(TILE, self._memory.window_bytes // widest // TILE * TILE)
            units = pair[0].info.units
            for begin in range(0, units, step):
                yield _Window(place, begin, min(begin + step, units))

    def _plan_memory(self, limit_bytes: int, workers: int | None) -> _Memory:
        remote = any(crosses_network(side.store.url) for side in self._sides)
        window = LARGEST_REMOTE_SLAB if remote else LARGEST_SLAB
        derived = [location.derived for pair in self._pairs for location in pair if location.derived is not None]
        held = 2 * sum(sorted((d.held_bytes(HELD_BYTES) for d in derived), reverse=True)[:2])
        scratch = 2 * max((d.held_bytes(HELD_BYTES) + d.scratch_bytes(HELD_BYTES) for d in derived), default=0)
        tensors = sum(len(side.checkpoint.tensors) for side in self._sides)
        fixed = FIXED_BYTES + client_bytes(side.store.url for side in self._sides) + held + BYTES_PER_TENSOR * tensors
        per_thread = 2 * window + TILE_BYTES + scratch
        wanted = workers or (max(REMOTE_READERS, available_cores()) if remote else available_cores())
        threads = min(wanted, (limit_bytes - fixed) // per_thread)
        if threads < 1:
            need = -(-(fixed + per_thread) >> 20)
            raise ResourceError(
                f"a comparison of these needs {need} MiB, the limit is {limit_bytes >> 20} MiB",
                "give more with --memory",
            )
        return _Memory(threads, window, held)

    def _report(self, found: dict[str, TensorDifference]) -> ComparisonReport:
        first, second = self._sides
        mine, theirs = first.checkpoint.tensors, second.checkpoint.tensors
        rows = []
        for name in self._names:
            a, b = mine.get(name), theirs.get(name)
            rows.append(
                ComparedTensor(name, None if a is None else a.info, None if b is None else b.info, found.get(name))
            )
        ours = None
        if first.finished is not None and second.finished is not None:
            ours = manifest_differences(first.finished, second.finished)
        return ComparisonReport(first.checkpoint.url, second.checkpoint.url, tuple(rows), ours)


def _fit(first: TensorLocation, second: TensorLocation) -> bool:
    """Whether elements can be compared one by one."""
    a, b = first.info, second.info
    both_floats = DTYPES[a.dtype].kind == DTYPES[b.dtype].kind == "float"
    return a.shape == b.shape and (a.dtype == b.dtype or both_floats)


class _Buffers(threading.local):
    """Two windows of one thread, made when the thread first asks."""

    pair: tuple[Bytes, Bytes] | None = None


class _Worker:
    """Compares windows; one object serves all threads."""

    def __init__(
        self,
        sides: Sequence[Side],
        pairs: Sequence[tuple[TensorLocation, TensorLocation]],
        memory: _Memory,
        kernels: Kernels,
        progress: Callable[[int], None],
    ) -> None:
        self._pairs, self._kernels, self._progress = pairs, kernels, progress
        self._window_bytes = max(memory.window_bytes, TILE * 8)
        self._buffers = _Buffers()
        self._scratch = Scratch()
        held, meter = HeldArrays(memory.held_bytes, HELD_BYTES), Meter()
        self._readers: list[list[SourceReader]] = []
        for number, side in enumerate(sides):
            readers: list[SourceReader] = []
            readers.append(
                SourceReader(
                    number,
                    side.checkpoint,
                    side.store,
                    kernels=kernels,
                    held=held,
                    scratch=self._scratch,
                    meter=meter,
                    readers=readers,
                )
            )
            self._readers.append(readers)

    def compare(self, window: _Window) -> list[TileDifference]:
        """The tiles of a window, in order."""
        pair = self._pairs[window.place]
        if self._buffers.pair is None:
            self._buffers.pair = (np.empty(self._window_bytes, np.uint8), np.empty(self._window_bytes, np.uint8))
        units = [DTYPES[location.info.dtype].unit_bytes for location in pair]
        raws = []
        for location, unit, buffer, [reader] in zip(pair, units, self._buffers.pair, self._readers, strict=True):
            raw = buffer[: (window.end - window.begin) * unit]
            reader.fill(location, window.begin, window.end, raw)
            raws.append(raw)
        self._progress(sum(map(len, raws)))
        dtypes = [location.info.dtype for location in pair]
        found = []
        for begin in range(0, window.end - window.begin, TILE):
            parts = [raw[begin * unit : (begin + TILE) * unit] for raw, unit in zip(raws, units, strict=True)]
            found.append(self._tile(parts, dtypes))
        return found

    def _tile(self, parts: Sequence[Bytes], dtypes: Sequence[str]) -> TileDifference:
        unit = DTYPES[dtypes[0]].unit_bytes
        if DTYPES[dtypes[0]].kind != "float":
            return compare_units(parts[0], parts[1], unit)
        bits = differing_bits(parts[0], parts[1], unit) if dtypes[0] == dtypes[1] else None
        first, second = (self._values(*each) for each in zip(parts, dtypes, ("first", "second"), strict=True))
        return compare_floats(first, second, bits)

    def _values(self, raw: Bytes, dtype: str, slot: str) -> Array:
        """Elements as numbers: F64 as it is, others as fp32, which holds all of their values."""
        if dtype in ("F64", "F32"):
            return raw.view(np.float64 if dtype == "F64" else np.float32)
        count = len(raw) // DTYPES[dtype].size
        values = self._scratch.get(self._kernels, slot, count)
        self._kernels.decode(self._kernels.load(raw), dtype, values)
        return values


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[_Window], list[TileDifference]],
    windows: Iterator[_Window],
    ahead: int,
) -> Iterator[tuple[_Window, list[TileDifference]]]:
    """Results in the order of the windows, a few of which are handed out ahead."""
    waiting: deque[tuple[_Window, Future[list[TileDifference]]]] = deque(
        (window, pool.submit(work, window)) for window in itertools.islice(windows, ahead)
    )
    while waiting:
        window, future = waiting.popleft()
        yield window, future.result()
        for following in itertools.islice(windows, 1):
            waiting.append((following, pool.submit(work, following)))
