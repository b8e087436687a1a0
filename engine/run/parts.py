"""A shard that several workers write: each a part of the file, and one of them makes it visible.

Parts that follow each other in time hand on the digest of the file so far, and the bytes behind the last border where
another process may begin to write. A part that begins before the one ahead of it in the file has ended knows neither:
what it writes is read again for the digest when the shard is finished.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from ..fold import CountingPass, Share, SharePass, TensorFold
from ..output import PLAN_ATTRIBUTE, OutputDirectory
from ..plan import Plan, Receipt, TensorRow, cut_elements, cut_stretch, grain
from ..storage import RANGE_GRAIN_BYTES, PartedStore, RunningDigest, digests_move, moving_digest
from .meter import Meter
from .shard import ShardWorker
from .taken import TakenBytes, input_ranges
from .tensor_job import PassGroup, TensorJob
from .work import Worker

LEAST_PART_BYTES = 4 * RANGE_GRAIN_BYTES
"""In the file; what is smaller would lie between two borders of ranges."""
READ_BYTES = 4 << 20
"""Of one read of what is read again."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a shard may be cut: before an element of one of its tensors."""

    tensor: int
    """Position in the shard's tasks."""
    element: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a shard's file; the first one has the header, too."""

    shard: int
    begin: Place
    end: Place
    token: str
    """Of the unfinished file, see `PartedStore`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What was found in a stretch of a tensor that lies in several parts."""

    share: Share
    taken: Sequence[TakenBytes]
    """By source that is read."""


@dataclass(frozen=True, slots=True)
class PartRecord:
    """What a part leaves beside its bytes; a few kilobytes."""

    part: Part
    rows: Mapping[int, TensorRow]
    """Of tensors that lie in it whole, by position in the shard's tasks."""
    pieces: Mapping[int, Piece]
    """Of the others."""
    state: bytes | None
    """Of the digest of the file up to the part's end; None where what comes before it was not known."""
    head: bytes
    """Before the first border of ranges, where the part ahead was not known: nobody has written it."""
    tail: bytes
    """Behind the last border: nobody has written it."""


def begin_shard(plan: Plan, index: int, store: PartedStore, run_id: str) -> str:
    """Begin the file of a shard that is written in parts; the token of these, see `PartedStore.begin`."""
    shard = plan.shards[index]
    return store.begin(shard.name, shard.size, {PLAN_ATTRIBUTE: plan.plan_id}, run_id)


class Places:
    """Where a shard may be cut, by its bytes in the file."""

    def __init__(self, plan: Plan, index: int) -> None:
        shard = plan.shards[index]
        self._tasks = [plan.tasks[i] for i in shard.tasks]
        sizes = [task.write_bytes for task in self._tasks]
        self._begins = [0, *accumulate(sizes)]
        self._header = len(shard.header)
        self._size = shard.size

    @property
    def end(self) -> Place:
        return Place(len(self._tasks))

    def byte(self, place: Place) -> int:
        """Where in the file a place is; the header belongs to the first one."""
        if place == Place(0):
            return 0
        within = self._tasks[place.tensor].out_bytes(place.element) if place.element else 0
        return self._header + self._begins[place.tensor] + within

    def stretches(self, begins: Sequence[tuple[float, bool]]) -> list[tuple[Place, Place, bool]]:
        """The shard cut near some shares of its size, each with whether what begins there waits for what is before it.

        Stretches that would be small are left out: they belong to the one before.

        Returns:
            (begin, end, whether it waits), in the order of the file.
        """
        found = [(Place(0), False)]
        for share, waits in begins[1:]:
            place, (last, last_waits) = self.near(int(share * self._size)), found[-1]
            byte = self.byte(place)
            if byte - self.byte(last) >= LEAST_PART_BYTES <= self._size - byte:
                found.append((place, waits))
            elif len(found) > 1:
                found[-1] = (last, last_waits and waits)
        ends = [*(place for place, _ in found[1:]), self.end]
        return [(begin, end, waits) for (begin, waits), end in zip(found, ends, strict=True)]

    def near(self, byte: int) -> Place:
        """The last place at or before a byte of the file."""
        byte -= self._header
        if byte <= 0:
            return Place(0)
        tensor = min(bisect_right(self._begins, byte) - 1, len(self._tasks))
        if tensor == len(self._tasks):
            return self.end
        task = self._tasks[tensor]
        step = cut_elements(task)
        if not step:
            return Place(tensor)
        return Place(tensor, (byte - self._begins[tensor]) // task.out_bytes(step) * step)


class PartWriter:
    """Takes a part's bytes in order: most go to the file, those at its borders are kept.

    Args:
        begin: of the part in the file.
        end: of the part in the file.
        size: of the file.
        before: the record of the part ahead, where it is known.
    """

    def __init__(
        self, store: PartedStore, name: str, token: str, begin: int, end: int, size: int, before: PartRecord | None
    ) -> None:
        self._place = begin
        carried = before.tail if before is not None else b""
        first = begin - len(carried) if begin == 0 or before is not None else _border(begin + RANGE_GRAIN_BYTES - 1)
        last = end if end == size else _border(end)
        assert first <= last, "a part is larger than what it leaves to others"
        self._first, self._last, self._end = first, last, end
        self.head, self.tail = bytearray(), bytearray()
        known = before is not None and before.state is not None
        moves = digests_move() and (begin == 0 or known)
        self._digest = moving_digest(before.state if before is not None else None) if moves else None
        self._writer = store.range_writer(name, token, first, last - first)
        if carried:
            self._writer.write(carried)

    def write(self, data: NDArray[np.uint8], meter: Meter) -> None:
        if self._digest is not None:
            with meter.measure("hash", len(data)):
                self._digest.update(data.data)
        with meter.measure("write", len(data)):
            to_head = min(max(self._first - self._place, 0), len(data))
            to_file = min(max(self._last - self._place, 0), len(data))
            self.head += data[:to_head].data
            if to_head < to_file:
                self._writer.write(data[to_head:to_file].data)
            self.tail += data[max(to_head, to_file) :].data
        self._place += len(data)

    def commit(self) -> bytes | None:
        """Make the range durable; the state of the digest."""
        assert self._place == self._end, "every window of the part was written"
        self._writer.commit()
        return self._digest.state if isinstance(self._digest, RunningDigest) else None

    def discard(self) -> None:
        self._writer.discard()


@dataclass(slots=True)
class _Work:
    """A tensor, or a stretch of it, on its way."""

    tensor: int
    job: TensorJob
    fold: TensorFold
    share: SharePass | None


def part_worker(worker: Worker, meter: Meter) -> PartWorker:
    """What makes parts in a process that works for one plan."""
    shards = ShardWorker(worker.group, worker.stores, worker.outputs, worker.memory, worker.kernels, meter)
    return PartWorker(shards, worker.group.plans[0], worker.outputs[0], meter)


@dataclass(slots=True)
class PartWorker:
    """Makes parts of shards of one plan, and finishes shards of which all parts are there.

    Args:
        worker: makes the folds of tensors, and runs them.
        plan: the plan.
        output: where its shards are written; a store where several may write one file.
        meter: gets seconds and bytes.
    """

    worker: ShardWorker
    plan: Plan
    output: OutputDirectory
    meter: Meter
    _works: list[_Work] = field(default_factory=list)

    def make(self, part: Part, before: PartRecord | None) -> PartRecord:
        """Write a part.

        Args:
            part: which.
            before: the record of the part ahead of it in the file, where that is finished.

        Raises:
            FileNotFoundError: the unfinished file is gone: the shard was finished by a twin, or given up.
        """
        places, shard = Places(self.plan, part.shard), self.plan.shards[part.shard]
        begin, end = places.byte(part.begin), places.byte(part.end)
        writer = PartWriter(self._store, shard.name, part.token, begin, end, shard.size, before)
        rows: dict[int, TensorRow] = {}
        pieces: dict[int, Piece] = {}
        try:
            if begin == 0:
                writer.write(np.frombuffer(bytearray(shard.header), np.uint8), self.meter)
            self._works.clear()
            self.worker.pipeline.run(
                self._jobs(part),
                lambda _, data: writer.write(data, self.meter),
                lambda job: self._note(job, rows, pieces),
            )
            with self.meter.measure("publish"):
                state = writer.commit()
        except BaseException:
            writer.discard()
            raise
        return PartRecord(part, rows, pieces, state, bytes(writer.head), bytes(writer.tail))

    @property
    def _store(self) -> PartedStore:
        store = self.output.store
        assert isinstance(store, PartedStore), "asked before a shard is cut"
        return store

    def _jobs(self, part: Part) -> Iterator[TensorJob]:
        last = part.end.tensor + (part.end.element > 0)
        for tensor in range(part.begin.tensor, last):
            begin = part.begin.element if tensor == part.begin.tensor else 0
            end = part.end.element if tensor == part.end.tensor else 0
            work = self._work(part.shard, tensor, begin, end)
            self._works.append(work)
            yield work.job

    def _work(self, shard: int, tensor: int, begin: int, end: int) -> _Work:
        """A tensor whole, or from element `begin` to `end`, where 0 stands for its end."""
        fold = self.worker.fold(self.plan.shards[shard].tasks[tensor])
        state, share = fold.state, None
        if begin or end:
            end = end or state.task.numel
            share = SharePass(_only_pass(fold), begin, end)
            elements = max(window.end - window.begin for window in state.windows)
            state.windows = cut_stretch(begin, end, elements, grain(state.task))
        group = PassGroup(state, fold.passes if share is None else [share], self.worker.places)
        return _Work(tensor, TensorJob([group], {n: TakenBytes() for n in group.needs if n is not None}), fold, share)

    def _note(self, job: TensorJob, rows: dict[int, TensorRow], pieces: dict[int, Piece]) -> None:
        work = self._works.pop(0)
        assert work.job is job, "tensors come in the order of the plan"
        if work.share is None:
            rows[work.tensor] = self._row(work.fold, [*job.taken.values()])
        else:
            assert work.share.share is not None, "its windows have run"
            pieces[work.tensor] = Piece(work.share.share, [*job.taken.values()])

    def _row(self, fold: TensorFold, taken: Sequence[TakenBytes]) -> TensorRow:
        (target,) = fold.state.targets
        read = [stretch for each in taken for stretch in each.stretches()]
        return fold.row(target).model_copy(update={"inputs": tuple(sorted(input_ranges(self.plan, read)))})

    # -- the end of a shard ------------------------------------------------------------------------------------------

    def finish(self, records: Sequence[PartRecord]) -> Receipt:
        """Make a shard visible of which all parts are there, and publish its receipt.

        Args:
            records: of all its parts, in the order of the file.

        Raises:
            InputError: what its tensors hold cannot be merged; nothing becomes visible.
        """
        index, token = records[0].part.shard, records[0].part.token
        shard = self.plan.shards[index]
        rows = self._rows(index, records)
        try:
            self._join(index, records)
            self._store.complete(shard.name, token, shard.size)
            sha256 = self._digest(index, records)
        except FileNotFoundError:
            # Somebody else completed it: another worker that gave no answer, or a twin of the whole run.
            receipt = self.output.receipt(index)
            if receipt is not None:
                return receipt
            sha256 = self._digest(index, ())
        receipt = Receipt(
            plan_id=self.plan.plan_id,
            shard=index,
            name=shard.name,
            size=shard.size,
            sha256=sha256,
            tensors=rows,
        )
        self.output.publish_receipt(receipt)
        return receipt

    def _rows(self, index: int, records: Sequence[PartRecord]) -> tuple[TensorRow, ...]:
        """By tensor; what lies in several parts is put together."""
        found = {tensor: row for record in records for tensor, row in record.rows.items()}
        positions = self.plan.shards[index].tasks
        for tensor, position in enumerate(positions):
            if tensor not in found:
                pieces = [record.pieces[tensor] for record in records if tensor in record.pieces]
                found[tensor] = self._whole_row(position, pieces)
        return tuple(found[tensor] for tensor in range(len(positions)))

    def _whole_row(self, position: int, pieces: Sequence[Piece]) -> TensorRow:
        fold = self.worker.fold(position)
        whole = _only_pass(fold)
        taken = [TakenBytes() for _ in pieces[0].taken]
        for piece in pieces:
            whole.take(piece.share)
            for each, more in zip(taken, piece.taken, strict=True):
                each.take(more)
        whole.finish()
        return self._row(fold, taken)

    def _join(self, index: int, records: Sequence[PartRecord]) -> None:
        """Write what lies at borders between parts that did not know each other."""
        places, shard = Places(self.plan, index), self.plan.shards[index]
        for before, after in pairwise(records):
            if after.head:
                data = before.tail + after.head
                begin = places.byte(after.part.begin) - len(before.tail)
                writer = self._store.range_writer(shard.name, after.part.token, begin, len(data))
                try:
                    writer.write(data)
                    writer.commit()
                except BaseException:
                    writer.discard()
                    raise

    def _digest(self, index: int, records: Sequence[PartRecord]) -> str:
        """SHA-256 of the file; what was not hashed when it was written is read."""
        places, shard = Places(self.plan, index), self.plan.shards[index]
        known = [record for record in records if record.state is not None]
        digest = moving_digest(known[-1].state if known else None)
        begin = places.byte(known[-1].part.end) if known else 0
        buffer = bytearray(min(READ_BYTES, max(shard.size - begin, 1)))
        for place in range(begin, shard.size, len(buffer)):
            data = memoryview(buffer)[: shard.size - place]
            with self.meter.measure("read", len(data)):
                self._store.read_into(shard.name, place, data)
            with self.meter.measure("hash", len(data)):
                digest.update(data)
        return digest.hexdigest()


def _only_pass(fold: TensorFold) -> CountingPass:
    """The one look at a tensor that may be cut."""
    (only,) = fold.passes
    assert isinstance(only, CountingPass), "what it finds in stretches can be added"
    return only


def _border(byte: int) -> int:
    """The last border of ranges at or before a byte."""
    return byte // RANGE_GRAIN_BYTES * RANGE_GRAIN_BYTES
