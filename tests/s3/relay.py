"""What stands between clients and a server: a proxy, or whoever asks clients for certificates."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Relay:
    """Takes connections and hands all that comes to a server, whatever server was asked for."""

    upstream: str
    listening: socket.socket
    secure: ssl.SSLContext | None
    asked: list[str] = field(default_factory=list)
    """First lines of connections."""
    sent_bytes: int = 0
    received_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listening.getsockname()[1]}"

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            if self.secure:
                connection = self.secure.wrap_socket(connection, server_side=True)
            stack.enter_context(connection)
            begin = connection.recv(1 << 16)
            first = begin.split(b"\r\n", 1)[0].decode()
            self.asked.append(first)
            address = urlsplit(self.upstream)
            server = stack.enter_context(socket.create_connection((address.hostname, address.port)))
            if first.startswith("CONNECT "):
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                server.sendall(begin)
            back = threading.Thread(target=self._copy, args=(server, connection, "received_bytes"), daemon=True)
            back.start()
            self._copy(connection, server, "sent_bytes")
            back.join()

    def _copy(self, source: socket.socket, target: socket.socket, count: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
                with self.lock:
                    setattr(self, count, getattr(self, count) + len(data))
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def relay(upstream: str, secure: ssl.SSLContext | None = None) -> Iterator[Relay]:
    """Before `upstream`, on a port of its own; over TLS with a context."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        found = Relay(upstream, listening, secure)
        threading.Thread(target=found.serve, daemon=True).start()
        yield found
        listening.shutdown(socket.SHUT_RDWR)
