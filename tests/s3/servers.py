"""Real S3 servers for tests, each a process of its own, and clients for them."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch.engine.storage.object_store import ObjectStore
from anabranch.engine.storage.requests import RequestLimits
from anabranch.engine.storage.retry import Retry, RetryBudget
from anabranch.engine.storage.s3 import S3Bucket
from anabranch.engine.storage.s3_client import S3Client

READY_SECONDS = 60.0


@dataclass(frozen=True)
class Server:
    endpoint: str
    key: str
    secret: str
    config: tuple[tuple[str, Any], ...] = ()

    def options(self, endpoint: str = "", **options: Any) -> dict[str, Any]:
        """Arguments of s3fs."""
        return {
            "endpoint_url": endpoint or self.endpoint,
            "key": self.key,
            "secret": self.secret,
            "client_kwargs": {"region_name": "us-east-1"},
            "config_kwargs": {"s3": {"addressing_style": "path"}, **dict(self.config)},
            **options,
        }

    def client(
        self, *, endpoint: str = "", limits: RequestLimits | None = None, retry: Retry | None = None, **options: Any
    ) -> S3Client:
        """A client of its own; quick retries and small parts unless told otherwise."""
        return S3Client(self.options(endpoint, **options), limits or quick_limits(), retry or quick_retry())

    def bucket(self, client: S3Client) -> str:
        """A fresh bucket."""
        name = f"test-{secrets.token_hex(6)}"
        client.request(name, lambda: client.call("create_bucket", Bucket=name))
        return name

    def store(self, prefix: str = "models/out") -> ObjectStore:
        """An empty store in a fresh bucket."""
        client = self.client()
        return store_of(self.bucket(client), prefix, client)

    def environment(self) -> dict[str, str]:
        """Variables with which an unchanged command line finds this server."""
        names = {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        checksums = dict(self.config).get("request_checksum_calculation")
        return names | ({"AWS_REQUEST_CHECKSUM_CALCULATION": checksums} if checksums else {})


def store_of(bucket: str, prefix: str, client: S3Client) -> ObjectStore:
    """The store of a prefix."""
    return ObjectStore(S3Bucket(bucket, client), prefix)


def bucket_of(store: ObjectStore) -> str:
    """The name of its bucket."""
    return store.url.split("/")[2]


def quick_limits(**changes: Any) -> RequestLimits:
    """Small parts (the smallest that S3 allows) and pieces; the tests of slow servers shorten the waits, too."""
    return RequestLimits(**{"part_bytes": 5 << 20, "piece_bytes": 1 << 20, "idle_seconds": 20.0, **changes})


def quick_retry(attempts: int = 5, retries: float = 1000.0) -> Retry:
    """Almost no waiting, and a budget of its own."""
    return Retry(attempts, 0.02, 0.1, RetryBudget(retries))


def free_port() -> int:
    """A port below the range from which the system hands out ports to others between our look and our use."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")


def wait_until_ready(endpoint: str, process: subprocess.Popen[bytes] | None, log: Path) -> None:
    """Until the server answers anything at all."""
    deadline = time.monotonic() + READY_SECONDS
    trusting = ssl._create_unverified_context() if endpoint.startswith("https:") else None  # only whether it is there
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}: {log.read_text()[-2000:]}")
        with contextlib.suppress(OSError):
            try:
                urllib.request.urlopen(endpoint, timeout=2, context=trusting).close()
            except urllib.error.HTTPError as answer:
                answer.close()
            return
        time.sleep(0.1)
    raise RuntimeError(f"no answer from {endpoint}: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def moto_server(folder: Path, certificate: Path | None = None, key: Path | None = None) -> Iterator[Server]:
    """moto's simulator as a process, spoken to over the network like any server; over TLS with a certificate."""
    secure = [] if certificate is None else ["-c", str(certificate), "-k", str(key)]
    port, log = free_port(), folder / "moto.log"
    executable = Path(sys.executable).parent / "moto_server"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [executable, "-H", "127.0.0.1", "-p", str(port), *secure], stdout=output, stderr=output,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
    try:
        endpoint = f"{'https' if secure else 'http'}://127.0.0.1:{port}"
        wait_until_ready(endpoint, process, log)
        yield Server(endpoint, "testkey", "testsecret")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
