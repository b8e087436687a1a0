"""Processes beside the soak, which itself stays without threads so that it can fork: they obey lines of JSON.

Run as `python -m tests.soak.helpers s3 FOLDER` or `cluster`; the first line that they print says where they are.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORKER_SECONDS = 15.0
"""Until a worker has begun, which a driver that has just started takes some seconds for."""


class Helper:
    """One of them, as the soak sees it."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "tests.soak.helpers", *arguments]
        self._process = Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True)
        self.about = self._answer()

    def ask(self, verb: str, **details: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"verb": verb, **details}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):  # Ray prints lines of its own
                return json.loads(line)
        raise RuntimeError(f"a helper ended with {self._process.wait()}")

    def close(self) -> None:
        self._process.communicate(timeout=60)


def tell(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


def s3(folder: Path) -> None:
    """An S3 server and a proxy before it that does what the last line asked for."""
    from ..s3.fault_proxy import HttpFault, fault_proxy
    from ..s3.servers import moto_server

    with moto_server(folder) as server, fault_proxy(server.endpoint) as proxy:
        client = server.client()
        environment = {**server.environment(), "AWS_ENDPOINT_URL_S3": proxy.endpoint}
        tell(endpoint=server.endpoint, bucket=server.bucket(client), environment=environment)
        for line in sys.stdin:
            faults = [HttpFault(**fault) for fault in json.loads(line)["faults"]]
            seen = sum(fault.seen >= fault.number for fault in proxy.faults)
            proxy.script(*faults)
            tell(hit=seen)


def cluster() -> None:
    """A Ray cluster of two nodes that are lost and replaced as asked."""
    from ..cluster.conftest import Nodes

    nodes = Nodes()
    try:
        nodes.resize(2)
        tell(address=nodes.address)
        for line in sys.stdin:
            verb, hit = json.loads(line)["verb"], True
            if verb == "kill worker":
                deadline = time.monotonic() + WORKER_SECONDS
                while not (workers := nodes.workers()) and time.monotonic() < deadline:
                    time.sleep(0.02)
                hit = bool(workers)
                for worker in workers[:1]:
                    worker.kill()
            elif verb == "kill node":
                nodes.remove()
            elif verb == "restore":
                nodes.resize(2)
            tell(hit=hit)
    finally:
        nodes.shutdown()


def fault(**details: Any) -> dict[str, Any]:
    """A fault of the proxy as one can send it: checked here, where it is named."""
    from ..s3.fault_proxy import HttpFault

    known = asdict(HttpFault())
    assert details.keys() <= known.keys()
    return details


if __name__ == "__main__":
    if sys.argv[1] == "s3":
        s3(Path(sys.argv[2]))
    else:
        cluster()
