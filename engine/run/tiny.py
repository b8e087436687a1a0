"""Tensors so small that handling each by itself costs more than its arithmetic: many of them in two buffers.

Their stored bytes mostly follow each other in a file, so that one read fetches them all, and one thread runs all passes
of one after the other. What is done to each is the same as for any other tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..fold import Target
from ..models import DTYPES, TensorInfo
from .taken import TakenBytes
from .tensor_job import TensorJob

Bytes = NDArray[np.uint8]

TINY_BYTES = 256 << 10
"""Inputs, or outputs, of a tensor up to this size are tiny: folding them takes about as long as handing them around."""
BATCH_BYTES = 2 << 20
"""Of inputs, or of outputs, of the tensors of one batch, which keeps one thread busy for some milliseconds."""
BATCH_TENSORS = 128
ALIGNMENT = 64
"""Outputs begin at multiples of it, and inputs as far behind one as in their file."""


@dataclass(frozen=True, slots=True)
class Run:
    """Stored tensors that follow each other in one file."""

    source: int
    file: int
    tensors: Sequence[tuple[TensorInfo, TakenBytes | None]]
    begin: int
    """Where they lie in the buffer of inputs."""
    end: int


@dataclass(slots=True)
class Batch:
    """Tiny tensors on their way through the pipeline."""

    jobs: list[TensorJob] = field(default_factory=list)
    inputs_bytes: int = 0
    """At most, with what alignment adds."""
    outputs_bytes: int = 0
    inputs: Bytes | None = None
    outputs: Bytes | None = None
    reads: list[Future[None]] = field(default_factory=list)
    views: list[list[Bytes | None]] = field(default_factory=list)
    """Per job and need of it, the bytes; None where there are none."""
    outs: list[list[tuple[Target, Bytes]]] = field(default_factory=list)
    """Per job, for everything that it writes, by part and then target."""
    folded: Future[bool] = field(default_factory=Future)
    """Whether the outs are filled."""

    def takes(self, job: TensorJob, slab_bytes: int) -> bool:
        """Take a job in if it is tiny and there is room for it."""
        if job.windows != 1:
            return False
        inputs, units = 0, job.parts[0].state.task.numel
        for _, location in job.needs:
            size, unit = location.info.nbytes, DTYPES[location.info.dtype].unit_bytes
            if location.derived is not None or size > units * unit:
                return False
            inputs += size + 2 * ALIGNMENT
        outputs = sum([target.task.write_bytes + ALIGNMENT for target in job.targets])
        room = min(BATCH_BYTES, slab_bytes)
        if max(inputs, outputs) > min(TINY_BYTES, room) or len(self.jobs) == BATCH_TENSORS:
            return False
        if self.inputs_bytes + inputs > room or self.outputs_bytes + outputs > room:
            return False
        self.jobs.append(job)
        self.inputs_bytes += inputs
        self.outputs_bytes += outputs
        return True

    def lay_out(self, inputs: Bytes | None, outputs: Bytes | None) -> Iterator[Run]:
        """Give every tensor its place in the buffers; yields what is to be read."""
        self.inputs, self.outputs = inputs, outputs
        place = 0
        for job in self.jobs:
            own = []
            for target in job.targets:
                assert outputs is not None, "there is room for outputs"
                size = target.task.write_bytes
                own.append((target, outputs[place : place + size]))
                place += -(-size // ALIGNMENT) * ALIGNMENT
            self.outs.append(own)
            self.views.append([None] * len(job.needs))
        if inputs is not None:
            yield from self._runs(inputs)

    def _runs(self, inputs: Bytes) -> Iterator[Run]:
        place = 0
        for run in self._stored():
            first = run[0]
            place = begin = -(-place // ALIGNMENT) * ALIGNMENT + first.begin % ALIGNMENT
            tensors = []
            for each in run:
                job, size = self.jobs[each.job], each.end - each.begin
                self.views[each.job][each.need] = inputs[place : place + size]
                place += size
                tensors.append((job.needs[each.need][1].info, job.taken_of(each.need)))
            yield Run(first.source, first.file, tensors, begin, place)

    def _stored(self) -> list[list[_Stored]]:
        """What is read, cut where one does not begin where the one before ends."""
        stored: list[_Stored] = []
        for number, job in enumerate(self.jobs):
            for need, (source, location) in enumerate(job.needs):
                begin, size = location.info.offset, location.info.nbytes
                if size:
                    stored.append(_Stored(source, location.file, begin, number, need, begin + size))
        runs: list[list[_Stored]] = []
        following = None
        for each in sorted(stored):
            if (each.source, each.file, each.begin) != following:
                runs.append([])
            runs[-1].append(each)
            following = (each.source, each.file, each.end)
        return runs


class _Stored(NamedTuple):
    """A tensor of a file that a job reads; they are read in this order."""

    source: int
    file: int
    begin: int
    """In the file."""
    job: int
    need: int
    end: int
