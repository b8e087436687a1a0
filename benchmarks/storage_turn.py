"""One turn of `storage_cpu`, in a process of its own: run by its path, with the tree to measure on PYTHONPATH."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store as ObstoreS3

from anabranch.engine.storage.object_store import ObjectStore
from anabranch.engine.storage.s3 import S3Bucket
from anabranch.engine.storage.s3_client import S3Client

MIB = 1 << 20
RANGE_BYTES = 8 * MIB
READERS = 8


class Turn:
    """Reads or uploads one object with one of the clients."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.size: int = task["size"]
        self.data = bytes(range(256)) * (self.size // 256)
        self.buffers = [bytearray(RANGE_BYTES) for _ in range(READERS)]
        self.is_ours = task["contender"] != "obstore"
        options = {
            "endpoint_url": task["endpoint"],
            "key": task["key"],
            "secret": task["secret"],
            "client_kwargs": {"region_name": "us-east-1", "verify": task["certificate"]},
            "config_kwargs": {"s3": {"addressing_style": "path"}, **dict(task["config"])},
        }
        self.store = ObjectStore(S3Bucket(task["bucket"], S3Client(options)), "bench")
        self.obstore = ObstoreS3(
            task["bucket"], endpoint=task["endpoint"], access_key_id=task["key"], secret_access_key=task["secret"],
            region="us-east-1", virtual_hosted_style_request=False,
            client_options={"allow_http": True, "allow_invalid_certificates": True},
        )  # fmt: skip
        self.upload("warm", 16 * MIB)
        if "input" not in self.store.list():
            self.upload("input", self.size)
        self.version = self.store.info("input").version

    def upload(self, name: str, size: int) -> None:
        """One object in parts, from windows of 2 MiB as a merge writes them."""
        windows = (memoryview(self.data)[start : start + 2 * MIB] for start in range(0, size, 2 * MIB))
        if self.is_ours or name == "input":
            writer = self.store.writer(name, size, {"plan_id": "bench"}, "bench")
            for window in windows:
                writer.write(window)
            writer.commit()
        else:
            with obstore.open_writer(self.obstore, f"bench/{name}", buffer_size=8 * MIB, max_concurrency=4) as sink:
                for window in windows:
                    sink.write(bytes(window))

    def read(self, reader: int) -> None:
        """Every eighth range, into memory that is used again and again."""
        into = memoryview(self.buffers[reader])
        for offset in range(reader * RANGE_BYTES, self.size, READERS * RANGE_BYTES):
            if self.is_ours:
                self.store.read_into("input", offset, into, self.version)
            else:
                into[:] = memoryview(obstore.get_range(self.obstore, "bench/input", start=offset, length=RANGE_BYTES))

    def run(self, action: str) -> None:
        """The whole object, once."""
        if action == "upload":
            self.upload("output", self.size)
            return
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(self.read, range(READERS)))


def cpu_by_thread() -> dict[str, float]:
    """CPU seconds so far of each thread that lives."""
    found = {}
    for folder in Path("/proc/self/task").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        found[folder.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def cpu_seconds() -> float:
    """CPU seconds so far of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main(task: dict[str, Any]) -> None:
    """Take the turn and print what it took as JSON."""
    turn = Turn(task)
    turn.run(task["action"])  # connections and memory are there afterwards
    threads, cpu, started = cpu_by_thread(), cpu_seconds(), time.perf_counter()
    turn.run(task["action"])
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    busiest = max(used - threads.get(name, 0.0) for name, used in cpu_by_thread().items())
    gigabytes = turn.size / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"cpu": cpu / gigabytes, "share": busiest / cpu, "rate": turn.size / 1e6 / seconds, "peak": peak}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
