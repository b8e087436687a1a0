"""The bytes of objects travel in threads, between sockets and our memory; what is small stays on the event loop.

aiobotocore lets a client bring its own HTTP session. This one takes over where botocore has resolved, signed and
checksummed a request: ranged reads and bodies that are sent go through botocore's own session of urllib3, in a thread
for each, where sending, receiving, TLS and checksums release Python's lock. So they cost less, and use all cores.
"""

from __future__ import annotations

import asyncio
import copy
import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.httpsession import AIOHTTPSession
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.httpsession import URLLib3Session

from .requests import Result

PIECE_BYTES = 256 << 10
"""Sent at once; a connection that takes none of it for the whole time limit is dead."""
CHUNK_BYTES = 1 << 20
"""Received at once."""
FRESH_SECONDS = 30.0
"""Idle connections are left after this time: firewalls forget them, which shows only by a silence."""

_NO_PASSWORD = ""
"""Of a key: OpenSSL would ask for one on the terminal."""


class Threads:
    """As many threads as there is work at once; they do not hold up the end of the process."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._idle = threading.Semaphore(0)

    def start(self, work: Callable[[], Result]) -> Future[Result]:
        """Run `work` in one of them."""
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - it is passed on
                future.set_exception(error)
            else:
                future.set_result(result)

        self._work.put(run)
        if not self._idle.acquire(blocking=False):
            threading.Thread(target=self._serve, name="s3", daemon=True).start()
        return future

    async def run(self, work: Callable[[], Result], stop: Callable[[], None]) -> Result:
        """Await `work`; when cancelled, `stop` it and wait until it has ended."""
        future = self.start(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            stop()
            while not future.done():
                await asyncio.wait([asyncio.wrap_future(future)])
            raise

    def _serve(self) -> None:
        while True:
            self._work.get()()
            self._idle.release()


class Incoming:
    """The body of an answer; its connection is still open."""

    def __init__(self, response: AWSResponse, threads: Threads) -> None:
        self._response = response
        self._threads = threads
        self._stopped = False

    async def read(self) -> bytes:
        """All of it: what an error says, or the answer to an upload."""
        return bytes(await self._threads.run(lambda: self._response.content, self._stop))

    async def receive(self, into: memoryview) -> int:
        """Fill `into`; returns how many bytes came. When this returns or raises, nothing writes into it any more."""
        return await self._threads.run(lambda: self._receive(into), self._stop)

    def close(self) -> None:
        """Close the connection, unless all was received and others may use it."""
        self._response.raw.close()

    def _receive(self, into: memoryview) -> int:
        done = 0
        while done < len(into) and not self._stopped:
            count = self._response.raw.readinto(into[done : done + CHUNK_BYTES])
            if not count:
                break
            done += count
        return done

    def _stop(self) -> None:
        self._stopped = True
        try:
            self._response.raw.shutdown()
        except (OSError, RuntimeError, ValueError):  # all was received meanwhile
            return


class Outgoing:
    """The body of a request as botocore wants it, a file; nothing is copied.

    Args:
        data: what is signed, and what checksums are of.
        sent: what leaves instead, as if it had changed on its way; of the same length.
    """

    def __init__(self, data: memoryview, sent: memoryview | None = None) -> None:
        self.data = data
        self.sent = data if sent is None else sent
        self._place = 0

    def read(self, size: int = -1) -> memoryview:
        """The next bytes, all of them if none are said."""
        rest = self.data[self._place :]
        piece = rest if size < 0 else rest[:size]
        self._place += len(piece)
        return piece

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, as files do."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: len(self.data)}[whence]
        return self._place

    def tell(self) -> int:
        """Where the next bytes are read."""
        return self._place


class ThreadedSession(URLLib3Session):  # type: ignore[misc]
    """botocore's session for many threads: a client's certificate is loaded once.

    urllib3 would load it for every connection, into the one TLS context that all connections share, while other threads
    begin connections with it; OpenSSL ends the process then, now and then.
    """

    def _get_pool_manager_kwargs(self, **more: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._get_pool_manager_kwargs(**more)
        certificate, key = arguments.pop("cert_file"), arguments.pop("key_file")
        if certificate is not None:
            arguments["ssl_context"].load_cert_chain(certificate, key, password=_NO_PASSWORD)
        return arguments


class S3Session(AIOHTTPSession):  # type: ignore[misc]
    """Sends requests; see the module."""

    def __init__(
        self,
        verify: bool | str = True,
        proxies: dict[str, str] | None = None,
        timeout: Any = None,
        max_pool_connections: int = 10,
        socket_options: Any = None,
        client_cert: Any = None,
        proxies_config: Any = None,
        connector_args: dict[str, Any] | None = None,
    ) -> None:
        arguments = (verify, proxies, timeout, max_pool_connections, socket_options, client_cert, proxies_config)
        super().__init__(*arguments, connector_args)
        self._make_threaded = lambda: ThreadedSession(*arguments)
        self._threaded = self._make_threaded()  # type: ignore[no-untyped-call]
        self._made_at = time.monotonic()
        self._threads = Threads()
        self._connections = asyncio.Semaphore(max_pool_connections)

    async def send(self, request: AWSPreparedRequest) -> AioAWSResponse:
        """Send one request; bodies of ranged reads are still to be received."""
        if request.method != "PUT" and "Range" not in request.headers:
            return await super().send(request)
        if time.monotonic() - self._made_at > FRESH_SECONDS:
            self._threaded, self._made_at = self._make_threaded(), time.monotonic()  # type: ignore[no-untyped-call]
        session, stopped = self._threaded, threading.Event()
        threaded = copy.copy(request)
        if request.body:
            threaded.body = _pieces(request.body, stopped)
        async with self._connections:
            future = self._threads.start(lambda: session.send(threaded))
            try:
                answer = await asyncio.wrap_future(future)
            except asyncio.CancelledError:
                stopped.set()  # the thread ends by itself: with its next piece, or when the connection is silent
                future.add_done_callback(_close_unwanted)
                raise
        return AioAWSResponse(answer.url, answer.status_code, answer.headers, Incoming(answer, self._threads))


def _pieces(body: Any, stopped: threading.Event) -> Iterator[memoryview]:
    """A request's body bit by bit, until nobody wants it to be sent any more."""
    for chunk in _chunks(body):
        view = memoryview(chunk)
        for start in range(0, len(view), PIECE_BYTES):
            if stopped.is_set():
                raise ConnectionAbortedError("given up")
            yield view[start : start + PIECE_BYTES]


def _chunks(body: Any) -> Iterator[memoryview | bytes]:
    """A body in as few chunks as it comes in."""
    if isinstance(body, Outgoing):
        yield body.sent
    elif hasattr(body, "__anext__"):  # botocore's frame with a checksum behind it: asynchronous, but never waits
        while (chunk := _next_of(body)) is not None:
            yield chunk
    else:
        yield body


def _next_of(body: Any) -> bytes | None:
    try:
        body.__anext__().send(None)
    except StopIteration as done:
        return bytes(done.value)
    except StopAsyncIteration:
        return None
    raise AssertionError("the bytes of a request are at hand")


def _close_unwanted(future: Future[AWSResponse]) -> None:
    """Close the connection of an answer that came after it was given up."""
    if future.exception() is None:
        future.result().raw.close()
