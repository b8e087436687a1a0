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
from ..plan import InputRange
from ..storage import BLOCK_BYTES, crosses_network, open_store, read_digest
from .machine import available_cores
from .meter import Meter
from .protocols import Member, Progress

MAX_THREADS = 8
"""Each has a buffer of 8 MiB, before the merge has any."""


def check_threads() -> int:
    """Files that are read at the same time."""
    return min(MAX_THREADS, available_cores())


def check_inputs(output: OutputDirectory) -> None:
    """Give up what another host made from other inputs, as far as one range of each file shows; called on resume.

    Inodes and times of change mean nothing here, and another model of the same size and time at the same path differs
    in every tensor. Objects of a store are known by their ETags on every host.
    """
    samples: dict[int, InputRange] = {}
    for receipt in output.receipts().values():
        for part in (part for row in receipt.tensors for part in row.inputs):
            if part.file not in samples or _fitness(part) > _fitness(samples[part.file]):
                samples[part.file] = part
    for place, part in samples.items():
        folder, _, name = output.plan.input_files[place].rpartition("/")
        if crosses_network(folder):
            continue
        store = open_store(folder)
        if read_digest(store, name, store.info(name).version, part[1:4]) != part.digest:
            output.start_over(f"{folder}/{name} is not what another host read")
            return


def _fitness(part: InputRange) -> int:
    """Prefers ranges of about a block, which are soon read and no row of ones; of larger ones the smallest."""
    size = part.end - part.begin
    return size if size <= BLOCK_BYTES else BLOCK_BYTES - size // BLOCK_BYTES


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
