"""How the output is cut into files: names, headers and sizes follow from the plan alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..models import DTYPES, build_header
from .task import TensorTask

HEADER_METADATA = {"format": "pt"}


@dataclass(frozen=True, slots=True)
class OutputShard:
    """One file of the output."""

    name: str
    tasks: tuple[int, ...]
    """Tensors in file order, as positions in `Plan.tasks`."""
    header: bytes
    size: int


def cut_shards(tensors: Sequence[tuple[str, str, tuple[int, ...]]], shard_size_bytes: int) -> list[list[int]]:
    """Cut tensors into output shards, greedily in the given order.

    Args:
        tensors: (name, dtype, shape) in the reference's order.
        shard_size_bytes: tensor bytes that a shard holds at most; a larger tensor has a shard of its own.

    Returns:
        Positions in `tensors` per shard.
    """
    shards: list[list[int]] = []
    room = 0
    for position, (_, dtype, shape) in enumerate(tensors):
        size = math.prod(shape) * DTYPES[dtype].bits // 8
        if not shards or size > room:
            shards.append([])
            room = shard_size_bytes
        shards[-1].append(position)
        room -= size
    return shards


def make_shard(
    tasks: Sequence[TensorTask],
    members: Sequence[int],
    index: int,
    count: int,
    metadata: Mapping[str, str] = HEADER_METADATA,
    keep_order: bool = False,
) -> OutputShard:
    """One output file: its header, and its tensors in the order of the file; those that leave no tensor come last.

    Args:
        tasks: of the whole output.
        members: positions of the file's own.
        index: which file it is ...
        count: ... of how many.
        metadata: text in its header.
        keep_order: tensors lie in the order of `members` instead of the one that the safetensors library chooses.
    """
    stored = [i for i in members if tasks[i].stored != "nothing"]
    header, infos = build_header(
        [(tasks[i].name, tasks[i].out_dtype, tasks[i].out_shape) for i in stored], metadata, keep_order
    )
    by_name = {tasks[i].name: i for i in stored}
    order = (*(by_name[info.name] for info in infos), *(i for i in members if tasks[i].stored == "nothing"))
    size = len(header) + sum(info.nbytes for info in infos)
    name = "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"
    return OutputShard(name, order, header, size)


def layout(shards: Sequence[OutputShard]) -> list[dict[str, Any]]:
    """Names, sizes and header digests of the output shards: these determine every output byte's place."""
    return [
        {"name": shard.name, "size": shard.size, "header_sha256": hashlib.sha256(shard.header).hexdigest()}
        for shard in shards
    ]
