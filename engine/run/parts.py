"""A shard that several workers write: each a part of the file, and one of them makes it visible.

Parts that follow each other in time hand on the digest of the file so far, and the bytes behind the last border where
another process may begin to write. A part that begins before the one ahead of it in the file has ended knows neither:
what it writes is read again for the digest when the shard is finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ..fold import CountingPass, SharePass, TensorFold
from ..output import PLAN_ATTRIBUTE, OutputDirectory
from ..plan import Plan, Receipt, Survey, TensorRow, cut_stretch, grain
from ..storage import PartedStore, UnjoinableError, moving_digest
from .meter import Meter
from .part_writer import Part, PartRecord, PartWriter, Piece
from .places import Places
from .shard import Shard, ShardWorker
from .taken import TakenBytes, input_ranges
from .tensor_job import PassGroup, TensorJob
from .work import Worker

READ_BYTES = 32 << 20
"""Of one read of what is read again: several requests to an object store side by side."""


def begin_shard(plan: Plan, index: int, store: PartedStore, run_id: str) -> str:
    """Begin the file of a shard that is written in parts; the token of these, see `PartedStore.begin`."""
    shard = plan.shards[index]
    return store.begin(shard.name, shard.size, _attributes(plan), run_id)


def _attributes(plan: Plan) -> dict[str, str]:
    """As those of a shard that one worker writes."""
    return {PLAN_ATTRIBUTE: plan.plan_id}


@dataclass(slots=True)
class _Work:
    """A tensor, or a stretch of it, on its way."""

    tensor: int
    job: TensorJob
    fold: TensorFold
    share: SharePass | None


def part_worker(worker: Worker, survey: Survey | None, meter: Meter) -> PartWorker:
    """What makes parts in a process that works for one plan; of which whole models may have decided something."""
    shards = ShardWorker(worker.group, worker.stores, worker.outputs, worker.memory, worker.kernels, meter)
    return PartWorker(shards, worker.group.plans[0], survey, worker.outputs[0], meter)


@dataclass(slots=True)
class PartWorker:
    """Makes parts of shards of one plan, and finishes shards of which all parts are there.

    Args:
        worker: makes the folds of tensors, and runs them.
        plan: the plan.
        survey: what whole models decided, where the plan asks for it.
        output: where its shards are written; a store where several may write one file.
        meter: gets seconds and bytes.
    """

    worker: ShardWorker
    plan: Plan
    survey: Survey | None
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
        places, shard = self._places(part.shard), self.plan.shards[part.shard]
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

    def _places(self, index: int) -> Places:
        return Places(self.plan, index, self.survey)

    def _fold(self, position: int) -> TensorFold:
        return self.worker.fold(position, self.survey)

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
        fold = self._fold(self.plan.shards[shard].tasks[tensor])
        state, share = fold.state, None
        if begin or end:
            end = end or state.task.numel
            share = SharePass(_only_pass(fold), begin, end)
            elements = max(window.end - window.begin for window in state.windows)
            state.windows = cut_stretch(begin, end, elements, grain(state.task))
        group = PassGroup(state, fold.passes if share is None else [share], self.worker.places)
        return _Work(tensor, TensorJob([group], noted=True), fold, share)

    def _note(self, job: TensorJob, rows: dict[int, TensorRow], pieces: dict[int, Piece]) -> None:
        work = self._works.pop(0)
        assert work.job is job, "tensors come in the order of the plan"
        if work.share is None:
            rows[work.tensor] = self._row(work.fold, job.taken)
        else:
            assert work.share.share is not None, "its windows have run"
            pieces[work.tensor] = Piece(work.share.share, job.taken)

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
            FileNotFoundError: the unfinished file is gone, and no finished one is there.
        """
        index, token = records[0].part.shard, records[0].part.token
        shard = self.plan.shards[index]
        rows = self._rows(index, records)
        try:
            self._join(index, records)
            self._store.complete(shard.name, token, shard.size, _attributes(self.plan))
            sha256 = self._digest(index, records)
        except FileNotFoundError:
            # Somebody else completed it: another worker that gave no answer, or a twin of the whole run.
            receipt = self.output.receipt(index)
            if receipt is not None:
                return receipt
            if self._store.attributes(shard.name) is not None:
                raise  # by them the store would have known a file of this plan
            sha256 = self._digest(index, ())
        except UnjoinableError:
            return self._whole(index)
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

    def _whole(self, index: int) -> Receipt:
        """Make a shard alone, as if there were no parts of it."""
        made: list[Receipt] = []
        self.worker.merge([Shard(index, (0,))], (self.survey,), lambda _, receipt: made.append(receipt))
        return made[0]

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
        fold = self._fold(position)
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
        places, shard = self._places(index), self.plan.shards[index]
        for before, after in pairwise(records):
            if after.head:
                data = before.tail + after.head
                begin = places.byte(after.part.begin) - len(before.tail)
                end = begin + len(data)
                writer = self._store.range_writer(shard.name, after.part.token, begin, end, shard.size)
                try:
                    writer.write(data)
                    writer.commit()
                except BaseException:
                    writer.discard()
                    raise

    def _digest(self, index: int, records: Sequence[PartRecord]) -> str:
        """SHA-256 of the file; what was not hashed when it was written is read."""
        places, shard = self._places(index), self.plan.shards[index]
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
