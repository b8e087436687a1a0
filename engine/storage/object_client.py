"""How requests to object stores other than S3 run: bounded in number and time, repeated, in our own words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from fsspec.asyn import get_loop

from ..errors import AnabranchError, ResourceError, TemporaryError
from .retry import Retry

Result = TypeVar("Result")

AGAIN = "Run the same command again; it goes on where it stopped."


class ConditionError(Exception):
    """The condition of a request does not hold: the object exists, or is another version."""


class GoneError(Exception):
    """An upload that the server no longer knows, or parts of it."""


class NoBucketError(Exception):
    """There is no bucket or container of this name."""


@dataclass(frozen=True)
class ObjectLimits:
    """What one process may ask of a server, and how long it waits. Every wait ends."""

    connect_seconds: float = 10.0
    """A server that is up accepts a connection within milliseconds; 10 s covers a lost packet or three."""
    idle_seconds: float = 30.0
    """A connection without a byte for this long is dead."""
    answer_seconds: float = 60.0
    """Longest whole request without a body."""
    slowest_bytes_per_second: int = 64 << 10
    """A body that is slower is given up: another connection is usually faster."""
    requests_in_flight: int = 8
    """Reads at once in a process: with the pieces below 32 MiB on the way, 1.3 GB/s at 25 ms. Azure's client holds each
    answer whole before it hands it over, so this is memory, too."""
    piece_bytes: int = 4 << 20
    """Longer reads are cut into pieces of this size that travel side by side."""
    part_bytes: int = 8 << 20
    """Part of an upload; more only when the most parts that a server takes would not hold the file."""
    parts_in_flight: int = 3
    """Parts of one file on the way, where the server takes them in any order; one more is being filled."""

    def deadline_seconds(self, size: int) -> float:
        """Longest time for one request with a body of `size` bytes."""
        return self.answer_seconds + size / self.slowest_bytes_per_second


@dataclass
class ObjectClient:
    """Runs requests on fsspec's event loop for ordinary threads; one for each cloud in a process."""

    translate: Callable[[Exception, str], Exception]
    """What a user should see for a failed request, or the error itself where there is nothing to say."""
    limits: ObjectLimits = field(default_factory=ObjectLimits)
    retry: Retry = field(default_factory=Retry)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.limits.requests_in_flight)

    def run(self, coroutine: Coroutine[None, None, Result]) -> Result:
        """Run a coroutine to its end from an ordinary thread; when that thread is interrupted, cancel it."""
        future = self.start(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def start(self, coroutine: Coroutine[None, None, Result]) -> Future[Result]:
        """Start a coroutine; the future belongs to the calling thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, get_loop())

    def request(self, where: str, operation: Callable[[], Awaitable[Result]], size: int = 0) -> Result:
        """`repeat`, awaited by an ordinary thread."""
        return self.run(self.repeat(where, operation, size))

    async def repeat(
        self, where: str, operation: Callable[[], Awaitable[Result]], size: int = 0, *, is_read: bool = False
    ) -> Result:
        """Await `operation()` within its deadline, and again after temporary errors.

        Args:
            where: our URL of the file or folder, for messages.
            operation: one request.
            size: bytes that it moves; adds to the deadline.
            is_read: whether it takes one of the slots for reads; waiting for it does not count.
        """
        attempt = 1
        while True:
            try:
                async with self._slots if is_read else contextlib.nullcontext(), self._bounded(where, size):
                    result = await operation()
            except TemporaryError:
                delay_seconds = self.retry.next_delay_seconds(attempt)
                if delay_seconds is None:
                    raise
                await asyncio.sleep(delay_seconds)
                attempt += 1
            else:
                self.retry.budget.earn()
                return result

    @contextlib.asynccontextmanager
    async def _bounded(self, where: str, size: int = 0) -> AsyncIterator[None]:
        """A time limit, and errors in our own words."""
        try:
            async with asyncio.timeout(self.limits.deadline_seconds(size)):
                yield
        except (AnabranchError, FileNotFoundError, ConditionError, GoneError):
            raise
        except NoBucketError as error:
            raise ResourceError(
                f"{where}: there is no such bucket or container", "Create it, or correct the URL."
            ) from error
        except Exception as error:
            replacement = self.translate(error, where)
            if replacement is error:
                raise
            raise replacement from error
