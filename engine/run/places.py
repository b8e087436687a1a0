"""Where a shard may be cut, so that several workers write it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ..plan import Plan, Survey, cut_elements
from .shard import with_survey


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a shard may be cut: before an element of one of its tensors."""

    tensor: int
    """Position in the shard's tasks."""
    element: int = 0


class Places:
    """Where a shard may be cut, by its bytes in the file.

    Args:
        plan: the plan.
        index: of the shard.
        survey: what whole models decided, where the plan asks for it: a tensor is cut only when nothing is open.
    """

    def __init__(self, plan: Plan, index: int, survey: Survey | None = None) -> None:
        shard = plan.shards[index]
        self._tasks = [with_survey(plan.tasks[i], survey) for i in shard.tasks]
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

    def stretches(self, begins: Sequence[tuple[float, bool]], least_bytes: int) -> list[tuple[Place, Place, bool]]:
        """The shard cut near some shares of its size, each with whether what begins there waits for what is before it.

        Stretches of fewer bytes than the least are left out: they belong to the one before.

        Returns:
            (begin, end, whether it waits), in the order of the file.
        """
        found = [(Place(0), False)]
        for share, waits in begins[1:]:
            place, (last, last_waits) = self.near(int(share * self._size)), found[-1]
            byte = self.byte(place)
            if byte - self.byte(last) >= least_bytes <= self._size - byte:
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
