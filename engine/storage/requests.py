"""What requests to object stores have in common: how many and how long, and how threads await an event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from fsspec.asyn import get_loop

Result = TypeVar("Result")

AGAIN = "Run the same command again; it goes on where it stopped."


@dataclass(frozen=True)
class RequestLimits:
    """What one process may ask of a server, and how long it waits. Every wait ends."""

    connect_seconds: float = 10.0
    """A server that is up accepts a connection within milliseconds; 10 s covers a lost packet or three."""
    idle_seconds: float = 30.0
    """A connection without a byte for this long is dead."""
    answer_seconds: float = 60.0
    """Longest whole request without a body; completing a large upload is the slowest."""
    slowest_bytes_per_second: int = 64 << 10
    """A body that is slower is given up: another connection is usually faster."""
    requests_in_flight: int = 32
    """Reads at once in a process: enough for a 10 Gbit/s link at 25 ms latency, bearable for small servers."""
    piece_bytes: int = 8 << 20
    """Longer reads are cut into pieces of this size that travel side by side."""
    part_bytes: int = 8 << 20
    """Part of an upload; more only when the most parts that a server takes would not hold the file."""
    parts_in_flight: int = 3
    """Parts of one file on the way; one more is being filled: 32 MiB of buffers for each open writer."""

    def deadline_seconds(self, size: int) -> float:
        """Longest time for one request with a body of `size` bytes."""
        return self.answer_seconds + size / self.slowest_bytes_per_second


class LoopClient:
    """Runs coroutines on fsspec's event loop for ordinary threads."""

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine to its end from an ordinary thread; when that thread is interrupted, cancel it."""
        future = self.start(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def start(self, coroutine: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Start a coroutine; the future belongs to the calling thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop())

    def _loop(self) -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = get_loop()
        return loop


class InFlight:
    """Parts of one file on their way, so many at once.

    Args:
        client: sends them.
        most: so many at once.
    """

    def __init__(self, client: LoopClient, most: int) -> None:
        self._client = client
        self._most = most
        self._pending: deque[Future[None]] = deque()

    def start(self, request: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start one, made when there is room for it; raises what an earlier one met."""
        while len(self._pending) >= self._most:
            self._collect()
        self._pending.append(self._client.start(request()))

    def settle(self) -> None:
        """Wait for all of them."""
        while self._pending:
            self._collect()

    def cancel(self) -> None:
        """Send nothing more."""
        for future in self._pending:
            future.cancel()
        self._pending.clear()

    def _collect(self) -> None:
        """Wait for the oldest one; one that failed fails whoever asks again."""
        self._pending[0].result()
        self._pending.popleft()


async def side_by_side(begins: Iterable[int], piece: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    """Run a piece for each beginning; when this returns or raises, none of them is running any more."""
    tasks = [asyncio.create_task(piece(begin)) for begin in begins]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
