"""Bytes between sockets and our memory: over TLS, in threads that end, on connections that are fresh."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import wait

import pytest
from aiobotocore.httpchecksum import AioAwsChunkedWrapper
from botocore.httpchecksum import AwsChunkedWrapper, Crc32Checksum
from hypothesis import given
from hypothesis import strategies as st

from anabranch.engine.errors import TemporaryError
from anabranch.engine.storage import s3_session
from anabranch.engine.storage.object_store import ObjectStore
from anabranch.engine.storage.s3_session import PIECE_BYTES, Outgoing, Threads, _pieces

from .certificates import write_certificate
from .fault_proxy import HttpFault, fault_proxy
from .s3_contract import PART, pattern
from .servers import Server, bucket_of, free_port, moto_server, quick_limits, quick_retry, store_of

pytestmark = pytest.mark.s3

MIB = 1 << 20
REGION = {"region_name": "us-east-1"}


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    """A server over TLS, and the certificate that a client must know to believe it."""
    certificate, key = write_certificate(tmp_path_factory.mktemp("tls"))
    with moto_server(tmp_path_factory.mktemp("secure"), certificate, key) as server:
        yield server, str(certificate)


def secure_store(server: Server, certificate: str, **options) -> ObjectStore:
    client = server.client(client_kwargs={**REGION, "verify": certificate}, **options)
    return store_of(server.bucket(client), "x", client)


def upload(store: ObjectStore, data: bytes) -> None:
    writer = store.writer("big", len(data), {"plan_id": "p"}, "run1")
    writer.write(data)
    writer.commit()


@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_the_same_bytes_go_and_come_over_tls(secure, checksums):
    """With and without a checksum behind the body."""
    config = {"s3": {"addressing_style": "path"}, "request_checksum_calculation": checksums}
    store = secure_store(*secure, config_kwargs=config)
    data = pattern(2 * PART + 5)
    upload(store, data)
    into = bytearray(len(data) - 3)
    store.read_into("big", 3, memoryview(into), store.info("big").version)
    assert into == data[3:]
    assert store.read_bytes("big", len(data)) == data


@pytest.mark.parametrize(("own", "signed"), [({}, False), ({"payload_signing_enabled": True}, True)])
def test_parts_are_signed_in_tls_only_where_the_configuration_says_so(secure, monkeypatch, own, signed):
    """By servers that are said to know no checksums, for which botocore would sign them."""
    said, send = [], s3_session.S3Session.send

    async def listen(session, request):
        if "partNumber" in request.url:
            said.append(request.headers["X-Amz-Content-SHA256"])
        return await send(session, request)

    monkeypatch.setattr(s3_session.S3Session, "send", listen)
    config = {"s3": {"addressing_style": "path", **own}, "request_checksum_calculation": "when_required"}
    store, data = secure_store(*secure, config_kwargs=config), pattern(2 * PART + 5)
    upload(store, data)
    assert len(said) == 3
    assert all((text in (b"UNSIGNED-PAYLOAD", "UNSIGNED-PAYLOAD")) != signed for text in said)
    assert store.read_bytes("big", len(data)) == data


def test_an_unknown_certificate_is_not_believed(secure):
    """Neither for what is small nor for ranges and parts, which go through another library."""
    server, certificate = secure
    known = secure_store(server, certificate)
    known.replace("big", pattern(MIB))
    client = server.client(retry=quick_retry(1))
    stranger = store_of(bucket_of(known), "x", client)
    for ask in (
        lambda: stranger.info("big"),
        lambda: stranger.read_into("big", 0, memoryview(bytearray(MIB))),
        lambda: stranger.replace("big", b"1"),
    ):
        with pytest.raises(TemporaryError, match=r"SSL|certificate"):
            ask()
    assert known.info("big").size == MIB


def test_connections_are_used_again_while_they_are_fresh(moto, monkeypatch):
    with fault_proxy(moto.endpoint) as proxy:
        client = moto.client(endpoint=proxy.endpoint)
        store = store_of(moto.bucket(client), "x", client)
        store.replace("big", pattern(MIB))
        store.read_into("big", 0, memoryview(bytearray(MIB)))
        before = proxy.connections
        for _ in range(3):
            store.read_into("big", 0, memoryview(bytearray(MIB)))
        assert proxy.connections == before
        monkeypatch.setattr(s3_session, "FRESH_SECONDS", 0.0)
        for _ in range(3):
            store.read_into("big", 0, memoryview(bytearray(MIB)))
        assert proxy.connections == before + 3


def test_a_read_that_is_given_up_ends_its_thread_at_once(moto):
    """A thread that waits for a silent server is woken, long before the connection counts as dead."""
    with fault_proxy(moto.endpoint) as proxy:
        limits = quick_limits(idle_seconds=60.0, answer_seconds=1.0, slowest_bytes_per_second=1 << 30)
        client = moto.client(endpoint=proxy.endpoint, limits=limits, retry=quick_retry(1))
        store = store_of(moto.bucket(client), "x", client)
        store.replace("big", pattern(MIB))
        proxy.script(HttpFault("GET", "/big", stall_after=1000))
        started = time.monotonic()
        with pytest.raises(TemporaryError):
            store.read_into("big", 0, memoryview(bytearray(MIB)))
        assert time.monotonic() - started < 10


def test_an_upload_that_is_given_up_is_not_sent_to_its_end():
    stopped = threading.Event()
    pieces = _pieces(Outgoing(memoryview(bytes(3 * PIECE_BYTES))), stopped)
    assert len(next(pieces)) == PIECE_BYTES
    stopped.set()
    with pytest.raises(ConnectionAbortedError):
        next(pieces)


PROGRAM = """
import sys
from anabranch.engine.storage.requests import RequestLimits
from anabranch.engine.storage.object_store import ObjectStore
from anabranch.engine.storage.s3 import S3Bucket
from anabranch.engine.storage.s3_client import S3Client
client = S3Client({"endpoint_url": sys.argv[1], "key": "k", "secret": "s", "client_kwargs": {"region_name": "r"}})
print("asking", flush=True)
ObjectStore(S3Bucket("bucket", client), "x").%s
"""


@pytest.mark.parametrize("ask", ["replace('y', bytes(1 << 24))", "read_into('y', 0, memoryview(bytearray(1 << 20)))"])
def test_an_interrupt_does_not_wait_for_a_silent_server(ask):
    with socket.create_server(("127.0.0.1", free_port())) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM % ask, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"asking\n"
        connection, _ = server.accept()
        with connection:
            connection.recv(1)  # the request is on its way
            interrupted = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
    assert time.monotonic() - interrupted < 5
    assert b"KeyboardInterrupt" in errors


# -- bodies ----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300), st.integers(1, 100))
def test_a_body_in_pieces_is_the_body(data, piece):
    never = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3_session, "PIECE_BYTES", piece)
        assert b"".join(_pieces(Outgoing(memoryview(data)), never)) == data
        assert b"".join(_pieces(data, never)) == data
        framed = AwsChunkedWrapper(io.BytesIO(data), Crc32Checksum, "x-amz-checksum-crc32", chunk_size=70)
        ours = AioAwsChunkedWrapper(Outgoing(memoryview(data)), Crc32Checksum, "x-amz-checksum-crc32", chunk_size=70)
        assert b"".join(_pieces(ours, never)) == framed.read()


moves = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 60)),
    st.tuples(st.just("seek"), st.integers(0, 40)),
    st.tuples(st.just("end")),
    st.tuples(st.just("tell")),
)


@given(st.binary(max_size=40), st.lists(moves, max_size=20))
def test_a_body_is_read_as_a_file_is(data, steps):
    ours, file = Outgoing(memoryview(data)), io.BytesIO(data)
    for verb, *arguments in steps:
        if verb == "end":
            assert ours.seek(0, io.SEEK_END) == file.seek(0, io.SEEK_END)
        else:
            assert getattr(ours, verb)(*arguments) == getattr(file, verb)(*arguments)


# -- threads ---------------------------------------------------------------------------------------------------------


def test_threads_are_used_again_and_none_holds_up_the_end():
    threads, seen, lock = Threads(), set(), threading.Lock()

    def work() -> None:
        with lock:
            seen.add(threading.current_thread())

    for _ in range(20):
        wait([threads.start(work)])
        time.sleep(0.005)
    assert len(seen) < 10
    assert all(thread.daemon for thread in seen)


def test_what_a_thread_raises_reaches_who_waits():
    async def ask() -> None:
        await Threads().run(lambda: 1 // 0, lambda: None)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(ask())


def test_who_is_cancelled_waits_until_the_thread_has_ended():
    stop, ended = threading.Event(), []

    def work() -> None:
        stop.wait(10)
        time.sleep(0.1)
        ended.append(True)

    async def ask() -> None:
        async with asyncio.timeout(0.05):
            await Threads().run(work, stop.set)

    with pytest.raises(TimeoutError):
        asyncio.run(ask())
    assert ended == [True]
