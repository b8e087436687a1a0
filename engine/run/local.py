"""All work of a run in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..kernels import Kernels
from ..plan import Receipt, Round, Survey, SurveyPart, share_reading
from .memory import plan_shared_memory
from .meter import Meter
from .protocols import Member
from .shard import Shard, ShardWorker
from .survey import SurveyWorker
from .work_items import shared_stores, surroundings


class LocalRunner:
    """All work in this process.

    Args:
        members: recipes that share a reading.
        threads: fold threads at most; the memory limit may hold fewer.
        limit_bytes: memory limit of this process.
        kernels: where the arithmetic runs.
        meter: gets seconds and bytes.
        cuda: whether the kernels run on a CUDA device.
    """

    def __init__(
        self,
        members: Sequence[Member],
        threads: int,
        limit_bytes: int,
        kernels: Kernels,
        meter: Meter,
        cuda: bool = False,
    ) -> None:
        self._members = members
        self._kernels = kernels
        self._meter = meter
        self._group = share_reading([member.plan for member in members])
        self.memory = plan_shared_memory(self._group, limit_bytes, threads, surroundings(members, cuda=cuda))

    def survey(self, shards: Sequence[int], round_: Round, members: Sequence[int], done: Callable[[int], None]) -> None:
        def publish(parts: Sequence[SurveyPart]) -> None:
            for member in members:
                self._members[member].output.publish_survey_parts(round_, parts)
            done(parts[0].shard)

        inputs = self._members[members[0]].inputs
        worker = SurveyWorker(inputs.plan, inputs.stores, self.memory, self._kernels, self._meter)
        worker.survey(shards, round_, publish)

    def merge(
        self, shards: Sequence[Shard], surveys: Sequence[Survey | None], done: Callable[[int, Receipt], None]
    ) -> None:
        worker = ShardWorker(
            self._group,
            shared_stores(self._group, self._members),
            [member.output for member in self._members],
            self.memory,
            self._kernels,
            self._meter,
        )
        worker.merge(shards, surveys, done)
