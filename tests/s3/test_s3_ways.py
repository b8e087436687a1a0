"""Ways to a bucket that companies have: proxies, certificates of clients, credentials that a machine hands out."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from anabranch.engine.errors import TemporaryError
from anabranch.engine.storage.object_store import ObjectStore

from .certificates import write_certificate
from .fault_proxy import HttpFault, fault_proxy
from .relay import relay
from .s3_contract import PART, pattern
from .servers import Server, bucket_of, moto_server, quick_retry, store_of

pytestmark = pytest.mark.s3

REGION = {"region_name": "us-east-1"}
ELSEWHERE = "s3.us-east-1.amazonaws.com"
"""Tests have no network, so that only a proxy that is asked for it answers."""
DATA = pattern(2 * PART + 5)


def there_and_back(store: ObjectStore) -> None:
    """Small files and large ones, whole and in parts: requests of both HTTP libraries."""
    store.replace("small", b"little")
    writer = store.writer("large", len(DATA), {"plan_id": "p"}, "run1")
    writer.write(DATA)
    writer.commit()
    into = bytearray(len(DATA) - 7)
    store.read_into("large", 7, memoryview(into), store.info("large").version)
    assert into == DATA[7:]
    assert store.read_bytes("small") == b"little"
    assert store.list() == ["large", "small"]


def test_all_bytes_go_through_a_proxy(moto: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with relay(moto.endpoint) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
        client = moto.client(endpoint=f"http://{ELSEWHERE}")
        there_and_back(store_of(moto.bucket(client), "x", client))
        assert proxy.asked
        assert all(f" http://{ELSEWHERE}/" in line for line in proxy.asked)
        assert min(proxy.sent_bytes, proxy.received_bytes) > len(DATA) - 7


def test_all_bytes_go_through_a_proxy_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tunnel, in which the server's own certificate is looked at."""
    certificate, key = write_certificate(tmp_path, ELSEWHERE)
    with moto_server(tmp_path, certificate, key) as server, relay(server.endpoint) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
        trusting = {**REGION, "verify": str(certificate)}
        client = server.client(endpoint=f"https://{ELSEWHERE}", client_kwargs=trusting)
        there_and_back(store_of(server.bucket(client), "x", client))
        assert {line.rpartition(" ")[0] for line in proxy.asked} == {f"CONNECT {ELSEWHERE}:443"}
        assert min(proxy.sent_bytes, proxy.received_bytes) > len(DATA) - 7


CONNECT = """
import sys, threading
from botocore.awsrequest import AWSRequest
from anabranch.engine.storage.s3_session import ThreadedSession
address, certificate, key = sys.argv[1:]
request = AWSRequest("GET", address).prepare()
for _ in range(30):
    session = ThreadedSession(verify=certificate, client_cert=(certificate, key), max_pool_connections=32)
    threads = [threading.Thread(target=session.send, args=(request,)) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


@contextlib.contextmanager
def gate_of(server: Server, folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """A way to a server that wants a certificate, its address, and such a certificate with its key."""
    certificate, key = write_certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificate)
    with relay(server.endpoint, context) as gate:
        yield f"https://{gate.address}", certificate, key


def test_many_threads_show_a_certificate_at_once(moto: Server, tmp_path: Path) -> None:
    """In a process of its own: where each connection loads the certificate, OpenSSL ends it."""
    with gate_of(moto, tmp_path) as (address, certificate, key):
        program = [sys.executable, "-c", CONNECT, address, str(certificate), str(key)]
        done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_client_shows_its_certificate(moto: Server, tmp_path: Path) -> None:
    """Where a server wants one; without it no request is answered, whichever library sends it."""
    with gate_of(moto, tmp_path) as (address, certificate, key):
        trusting = {**REGION, "verify": str(certificate)}
        options = {"endpoint": address, "client_kwargs": trusting}
        path = {"s3": {"addressing_style": "path"}}
        known = moto.client(**options, config_kwargs={**path, "client_cert": (str(certificate), str(key))})
        store = store_of(moto.bucket(known), "x", known)
        there_and_back(store)
        stranger = store_of(bucket_of(store), "x", moto.client(**options, config_kwargs=path, retry=quick_retry(1)))
        for ask in (
            lambda: stranger.info("large"),
            lambda: stranger.read_into("large", 0, memoryview(bytearray(9))),
            lambda: stranger.replace("small", b"1"),
        ):
            with pytest.raises(TemporaryError):
                ask()


class Metadata(BaseHTTPRequestHandler):
    """What a virtual machine of Amazon asks for credentials: a token, the role's name, its keys."""

    def do_PUT(self) -> None:
        self._answer(b"a-token")

    def do_GET(self) -> None:
        keys = {"AccessKeyId": "fromtherole", "SecretAccessKey": "s", "Token": "t"}
        role = json.dumps({"Code": "Success", "Expiration": "2999-01-01T00:00:00Z", **keys})
        self._answer(role.encode() if self.path.endswith("/reader") else b"reader")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A virtual machine with a role, and no other credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("machine")
def test_every_request_is_signed_with_the_keys_of_a_machine_s_role(moto: Server) -> None:
    shown: set[str] = set()

    def look(headers: dict[str, str]) -> None:
        found = {name.lower(): value for name, value in headers.items()}
        assert found["x-amz-security-token"] == "t"
        shown.add(found["authorization"].split("Credential=")[1].split("/")[0])

    with fault_proxy(moto.endpoint) as seen:
        client = moto.client(endpoint=seen.endpoint, key=None, secret=None)
        store = store_of(moto.bucket(client), "x", client)
        seen.script(HttpFault(times=1 << 30, edit=look))
        there_and_back(store)
    assert shown == {"fromtherole"}
