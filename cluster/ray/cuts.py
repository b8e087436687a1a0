"""Which shards are written in parts, so that no worker is waited for alone at the end of a run. Pure.

Whoever has nothing to do writes the next part of the shard of which most is left. Parts of one shard follow each other,
as each hands on the digest of the file; only a shard for which that would take too long is begun in several places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from .events import ShardTask
from .limits import Limits

READ_AGAIN = 4
"""Of bytes moved for a part, about one in so many is in the file: it is read where the digest was not taken before."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a shard, by shares of its size."""

    begin: float
    end: float
    waits: bool
    """Whether it is written after the one before it; else at any time."""


def cut_last(tasks: Sequence[ShardTask], workers: int, limits: Limits) -> dict[int, list[Stretch]]:
    """The stretches of those tasks that are cut.

    Args:
        tasks: all of a run, each a whole shard.
        workers: how many there will be.
        limits: see Limits.

    Returns:
        By id, at least two stretches from 0 to 1; tasks that stay whole are left out.
    """
    if workers < 2 or not tasks:
        return {}
    total = sum(task.size_bytes for task in tasks)
    longest = limits.longest_share * total / workers
    first = total * (1 - min(limits.parted_rounds * workers / len(tasks), 1.0))
    cuts, before = {}, 0
    for task in sorted(tasks, key=lambda task: (-task.size_bytes, task.id)):
        before += task.size_bytes
        if before > first or task.size_bytes > longest:
            stretches = _stretches(task.size_bytes, max(ceil(task.size_bytes / longest), 1), limits)
            if len(stretches) > 1:
                cuts[task.id] = stretches
    return cuts


def _stretches(size_bytes: int, beginnings: int, limits: Limits) -> list[Stretch]:
    """Of a shard that is begun in so many places, equally far from each other."""
    least = limits.least_part_bytes / max(size_bytes, 1)
    found = []
    for number in range(beginnings):
        place, end, waits = number / beginnings, (number + 1) / beginnings, False
        while end - place > 1.5 * least:
            length = max(limits.part_share * (end - place), least)
            found.append(Stretch(place, place + length, waits))
            place, waits = place + length, True
        if end > place:
            found.append(Stretch(place, end, waits))
    return found


def parted_tasks(task: ShardTask, lengths: Sequence[int], waits: Sequence[bool], number: int) -> list[ShardTask]:
    """The tasks of a shard that is cut.

    Args:
        task: the whole shard; the first part has its id.
        lengths: bytes of the file in each part.
        waits: whether each part is written after the one before it.
        number: id of the second part; those of the others follow.

    Returns:
        One per part in the order of the file, and one for the end, which waits for all of them.
    """
    ids = [task.id, *range(number, number + len(lengths))]
    sizes = [task.size_bytes * length // sum(lengths) for length in lengths]
    known = waits.index(False, 1) if False in waits[1:] else len(waits)
    ending_bytes = sum(sizes[known:]) // READ_AGAIN
    tasks, path = [], ending_bytes
    for place in reversed(range(len(sizes))):
        follows = place + 1 < len(waits) and waits[place + 1]
        path = sizes[place] + (path if follows else ending_bytes)
        after = (ids[place - 1],) if waits[place] else ()
        tasks.append(ShardTask(ids[place], sizes[place], f"{task.name}, part {place + 1}", after, path))
    lasts = [ids[place] for place in range(len(sizes)) if not (*waits, False)[place + 1]]
    return [*reversed(tasks), ShardTask(ids[-1], ending_bytes, f"{task.name}, its end", tuple(lasts), ending_bytes)]
