"""An HTTP proxy between client and S3 server that goes wrong as its script says."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

CHUNK_BYTES = 1 << 16


@dataclass
class HttpFault:
    """One misfortune: which requests it befalls, and what happens to them."""

    method: str = ".*"
    """Regular expression of HTTP methods."""
    target: str = ""
    """Regular expression found in path and query."""
    number: int = 1
    """Which matching request, from 1."""
    times: int = 1
    """How many from there on."""
    status: int = 0
    """Answer with this status instead of asking the server."""
    code: str = ""
    """S3 error code of that answer."""
    body: bytes = b""
    """Body of that answer, instead of one made of `code`."""
    reset: bool = False
    """Reset the connection instead of asking the server."""
    lose_answer: bool = False
    """Ask the server, and reset the connection instead of passing its answer on."""
    cut_after: int | None = None
    """Close the connection after so many bytes of the answer's body."""
    stall_after: int | None = None
    """Send nothing more after so many bytes of the answer's body."""
    bytes_per_second: int = 0
    """Send the answer's body this slowly."""
    flip_sent: int | None = None
    """Flip a bit of this byte of the request's body."""
    flip_answer: int | None = None
    """Flip a bit of this byte of the answer's body."""
    etag: str = ""
    """Answer with this ETag instead of the server's."""
    edit: Callable[[dict[str, str]], None] | None = None
    """Change the request's headers."""
    action: Callable[[], None] | None = None
    """Done before the request is passed on."""
    seen: int = field(default=0, init=False)


class FaultProxy(ThreadingHTTPServer):
    """Passes requests on to a server, except where a fault is due. Remembers all requests."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.faults: list[HttpFault] = []
        self.requests: list[str] = []
        self.sent_bytes = 0
        self.connections = 0
        self.stopping = threading.Event()
        self._lock = threading.Lock()

    def get_request(self) -> tuple[Any, Any]:
        """The next connection, counted."""
        self.connections += 1
        return super().get_request()

    def script(self, *faults: HttpFault) -> None:
        """From now on these faults, counted from now, and an empty memory."""
        with self._lock:
            self.faults = list(faults)
            self.requests = []
            self.sent_bytes = 0

    def count(self, pattern: str) -> int:
        """Requests so far whose "METHOD target" matches."""
        with self._lock:
            return sum(re.search(pattern, request) is not None for request in self.requests)

    def due(self, method: str, target: str) -> HttpFault:
        """The fault for a request; one that does nothing when none is due."""
        with self._lock:
            self.requests.append(f"{method} {target}")
            for fault in self.faults:
                if re.fullmatch(fault.method, method) and re.search(fault.target, target):
                    fault.seen += 1
                    if fault.number <= fault.seen < fault.number + fault.times:
                        return fault
        return HttpFault()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def _serve(self) -> None:
        fault = self.server.due(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault.reset:
            self._reset()
        elif fault.status:
            self._answer(fault)
        else:
            if fault.action is not None:
                fault.action()
            self._pass_on(fault, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - names that the base class calls

    def _answer(self, fault: HttpFault) -> None:
        text = fault.body or (
            f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>scripted</Message></Error>".encode()
        )
        self.send_response(fault.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _pass_on(self, fault: HttpFault, body: bytes) -> None:
        headers = dict(self.headers.items())
        if fault.edit is not None:
            fault.edit(headers)
        body = _flipped(body, fault.flip_sent)
        upstream = http.client.HTTPConnection(self.server.upstream.netloc, timeout=60)
        try:
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            if fault.lose_answer:
                answer.read()
                self._reset()
                return
            self.send_response_only(answer.status, answer.reason)
            names = {name.lower() for name, _ in answer.getheaders()}
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, f'"{fault.etag}"' if fault.etag and name.lower() == "etag" else value)
            content = b"" if self.command == "HEAD" else _flipped(answer.read(), fault.flip_answer)
            if "content-length" not in names and answer.status not in (204, 304):
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self._send_body(fault, content)
        finally:
            upstream.close()

    def _send_body(self, fault: HttpFault, content: bytes) -> None:
        limits = [limit for limit in (fault.cut_after, fault.stall_after) if limit is not None]
        end = min([len(content), *limits])
        self.server.sent_bytes += end
        step = max(1, fault.bytes_per_second // 20) if fault.bytes_per_second else CHUNK_BYTES
        for start in range(0, end, step):
            self.wfile.write(content[start : min(start + step, end)])
            if fault.bytes_per_second and self.server.stopping.wait(0.05):
                break
        if fault.stall_after is not None:
            self.wfile.flush()
            self.server.stopping.wait(60)
        if limits:
            self.close_connection = True

    def _reset(self) -> None:
        """Close so that the client sees a reset, not an orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


def _flipped(data: bytes, place: int | None) -> bytes:
    if place is None:
        return data
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


@contextlib.contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A running proxy in front of a server."""
    proxy = FaultProxy(upstream)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stopping.set()
        proxy.shutdown()
        thread.join(10)
        proxy.server_close()
