"""Shards that an earlier run left: read and hashed before they are taken for finished.

A receipt is written after its shard is durable, but only the disk knows whether it kept its word: after a loss of power
a file can have its size and its name and hold zeros. Nothing that a file system says about a file proves that this did
not happen, so local (and mounted) files are read again. Objects of a store appear whole, with the store's own
checksums, or not at all: of them size and plan id are compared.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ..output import FileEntry, OutputDirectory, Problem, check_file
from ..storage import crosses_network
from .machine import available_cores
from .meter import Meter
from .protocols import Member, Progress

MAX_THREADS = 8
"""Each has a buffer of 8 MiB, before the merge has any."""


def check_threads() -> int:
    """Files that are read at the same time."""
    return min(MAX_THREADS, available_cores())


def check_resumed(members: Sequence[Member], places: Sequence[int], meter: Meter, progress: Progress) -> None:
    """Withdraw the receipts of shards that are not what they were when their receipts were written.

    Args:
        members: recipes that share a reading.
        places: which of them take part.
        meter: gets the bytes that are read.
        progress: is told how many bytes are read.
    """
    outputs = [members[place].output for place in places]
    doubted = [
        (output, shard, entry)
        for output in outputs
        if not crosses_network(output.store.url)
        for shard, entry in output.shards_with_receipts().items()
    ]
    if not doubted:
        return
    progress.phase("check", sum(entry.size for _, _, entry in doubted), 0)

    def read(output: OutputDirectory, shard: int, entry: FileEntry) -> Problem | None:
        began = time.perf_counter()

        def count(size_bytes: int) -> None:
            nonlocal began
            now = time.perf_counter()
            meter.add("check", began, now, size_bytes)
            began = now

        return check_file(output.store, output.plan.shards[shard].name, entry, count)

    with ThreadPoolExecutor(check_threads(), "check") as pool:
        futures = [pool.submit(read, *each) for each in doubted]
        try:
            for (output, shard, _), future in zip(doubted, futures, strict=True):
                if (problem := future.result()) is not None:
                    output.withdraw_receipt(shard, problem.text)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
