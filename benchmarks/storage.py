"""Read ranges from and upload to an S3 server on this machine: our store, plain s3fs, and obstore, taking turns.

    python -m benchmarks.storage --size-mib 256 --repeats 3
    python -m benchmarks.storage --cpu --before ../another-tree --repeats 3

Client and server share the processor, so the ratios mean more than the rates. Every round runs each contender
once; the table shows medians of MiB/s, and each contender's ratio to ours in the same rounds.

With `--cpu` each turn is a process of its own (`benchmarks.storage_cpu`) that moves one object by eight readers or one
writer, over HTTP and over TLS; the table shows CPU seconds of that process for each GB and its busiest thread's share.
`--before` names a checkout of another state, whose store takes turns with ours.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
import s3fs
from obstore.store import S3Store as ObstoreS3

from anabranch.engine.storage.requests import RequestLimits
from anabranch.engine.storage.retry import Retry
from tests.s3.ceph import ceph_server, missing_programs
from tests.s3.servers import Server, moto_server, store_of

from .storage_cpu import compare_cpu

MIB = 1 << 20
RANGE_BYTES = 8 * MIB
READERS = (1, 2, 4, 8, 16, 32)
WRITERS = (1, 2, 4)
NAMES = ("anabranch", "s3fs", "obstore")


@contextlib.contextmanager
def server() -> Iterator[tuple[str, Server]]:
    """Ceph's gateway where it is installed, else moto."""
    with tempfile.TemporaryDirectory() as name:
        if missing_programs():
            with moto_server(Path(name)) as running:
                yield "moto", running
        else:
            with ceph_server(Path(name)) as running:
                yield "radosgw", running


class Contenders:
    """The same reads and uploads by each client."""

    def __init__(self, running: Server, size: int) -> None:
        client = running.client(limits=RequestLimits(), retry=Retry())
        self.bucket = running.bucket(client)
        self.ours = store_of(self.bucket, "bench", client)
        self.s3fs = s3fs.S3FileSystem(**running.options(), skip_instance_cache=True)
        self.obstore = ObstoreS3(
            self.bucket, endpoint=running.endpoint, access_key_id=running.key, secret_access_key=running.secret,
            region="us-east-1", virtual_hosted_style_request=False, client_options={"allow_http": True},
        )  # fmt: skip
        self.size = size
        self.data = (bytes(range(256)) * (size // 256 + 1))[:size]
        self.buffers = {reader: bytearray(RANGE_BYTES) for reader in range(max(READERS))}
        self.upload("anabranch", "input")
        self.version = self.ours.info("input").version

    def read(self, name: str, reader: int, offset: int) -> None:
        """Bring one range into memory that is used again and again."""
        into = memoryview(self.buffers[reader])
        if name == "anabranch":
            self.ours.read_into("input", offset, into, self.version)
        elif name == "s3fs":
            into[:] = self.s3fs.cat_file(f"{self.bucket}/bench/input", start=offset, end=offset + RANGE_BYTES)
        else:
            into[:] = memoryview(obstore.get_range(self.obstore, "bench/input", start=offset, length=RANGE_BYTES))

    def read_all(self, name: str, readers: int) -> None:
        """The whole object in ranges, by several threads."""

        def work(reader: int) -> None:
            for offset in range(reader * RANGE_BYTES, self.size, readers * RANGE_BYTES):
                self.read(name, reader, offset)

        with ThreadPoolExecutor(readers) as pool:
            list(pool.map(work, range(readers)))

    def upload(self, name: str, key: str) -> None:
        """One object of the full size in parts, from windows of 2 MiB as a merge writes them."""
        windows = (memoryview(self.data)[start : start + 2 * MIB] for start in range(0, self.size, 2 * MIB))
        if name == "anabranch":
            writer = self.ours.writer(key, self.size, {"plan_id": "bench"}, "bench")
            for window in windows:
                writer.write(window)
            writer.commit()
        elif name == "s3fs":
            file: Any = self.s3fs.open(f"{self.bucket}/bench/{key}", "wb", autocommit=False, block_size=8 * MIB)
            for window in windows:
                file.write(window)
            file.close()
            file.commit()
        else:
            with obstore.open_writer(self.obstore, f"bench/{key}", buffer_size=8 * MIB, max_concurrency=4) as sink:
                for window in windows:
                    sink.write(bytes(window))

    def upload_all(self, name: str, writers: int) -> None:
        """Several objects at once."""
        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(lambda number: self.upload(name, f"out-{number}"), range(writers)))


def rates(action: Callable[[str], None], size: int, repeats: int) -> dict[str, list[float]]:
    """MiB/s of each contender in each round; one round before is not measured."""
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for number in range(repeats + 1):
        for name in NAMES[number % len(NAMES) :] + NAMES[: number % len(NAMES)]:
            started = time.perf_counter()
            action(name)
            if number:
                found[name].append(size / MIB / (time.perf_counter() - started))
    return found


def row(label: str, found: dict[str, list[float]]) -> str:
    """One line of the table."""
    cells = [label]
    for name in NAMES:
        ratios = [theirs / ours for theirs, ours in zip(found[name], found["anabranch"], strict=True)]
        cells.append(f"{statistics.median(found[name]):.0f} ({statistics.median(ratios):.2f})")
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str]) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="CPU seconds for each GB instead of MiB/s")
    parser.add_argument("--before", type=Path, help="with --cpu: a checkout of another state")
    options = parser.parse_args(arguments)
    if options.cpu:
        compare_cpu(options.size_mib, options.repeats, options.before)
        return
    size = options.size_mib * MIB // RANGE_BYTES * RANGE_BYTES
    with server() as (kind, running):
        contenders = Contenders(running, size)
        print(f"{kind}, object of {size // MIB} MiB, MiB/s (ratio to anabranch), median of {options.repeats} rounds\n")
        print(f"| | {' | '.join(NAMES)} |\n|---|{'---|' * len(NAMES)}")
        for readers in READERS:
            found = rates(lambda name, n=readers: contenders.read_all(name, n), size, options.repeats)
            print(row(f"read 8 MiB ranges, {readers} threads", found), flush=True)
        for writers in WRITERS:
            found = rates(lambda name, n=writers: contenders.upload_all(name, n), writers * size, options.repeats)
            print(row(f"upload, {writers} at once", found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
