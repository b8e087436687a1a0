"""How requests to object stores run: bounded in number and time, repeated, in our own words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from ..errors import AnabranchError, ResourceError, TemporaryError
from .requests import LoopClient, RequestLimits, Result
from .retry import Retry


class ConditionError(Exception):
    """The condition of a request does not hold: the object exists, or is another version."""


class GoneError(Exception):
    """An upload that the server no longer knows, or parts of it."""

    def __init__(self, what: str = "its unfinished upload was removed") -> None:
        super().__init__(what)


class GarbledError(TemporaryError):
    """Bytes changed on their way to the server, which has kept them so."""


class ExpiredCredentialsError(ResourceError):
    """The server says that credentials are no longer valid; there may be newer ones."""


class NoBucketError(Exception):
    """There is no bucket or container of this name."""


@dataclass(frozen=True)
class ObjectLimits(RequestLimits):
    """Smaller reads than of S3, and fewer."""

    requests_in_flight: int = 8
    """With the pieces below 32 MiB on the way, 1.3 GB/s at 25 ms. Azure's client holds each answer whole before it
    hands it over, so this is memory, too."""
    piece_bytes: int = 4 << 20


@dataclass
class ObjectClient(LoopClient):
    """Runs requests on fsspec's event loop for ordinary threads; one for each cloud in a process."""

    translate: Callable[[Exception, str], Exception]
    """What a user should see for a failed request, or the error itself where there is nothing to say."""
    limits: RequestLimits = field(default_factory=ObjectLimits)
    retry: Retry = field(default_factory=Retry)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.limits.requests_in_flight)
        self._renewing = asyncio.Lock()
        self._renewals = 0

    def request(
        self, where: str, operation: Callable[[], Awaitable[Result]], size: int = 0, *, is_read: bool = False
    ) -> Result:
        """`repeat`, awaited by an ordinary thread."""
        return self.run(self.repeat(where, operation, size, is_read=is_read))

    async def repeat(
        self, where: str, operation: Callable[[], Awaitable[Result]], size: int = 0, *, is_read: bool = False
    ) -> Result:
        """Await `operation()` within its deadline, again after temporary errors, and once after renewing credentials.

        Args:
            where: our URL of the file or folder, for messages.
            operation: one request.
            size: bytes that it moves; adds to the deadline.
            is_read: whether it takes one of the slots for reads; waiting for it does not count.
        """
        attempt, renewed = 1, False
        while True:
            renewals = self._renewals
            try:
                async with self._slots if is_read else contextlib.nullcontext(), self._bounded(where, size):
                    result = await operation()
            except ExpiredCredentialsError:
                if renewed:
                    raise
                renewed = True
                async with self._renewing:
                    if renewals == self._renewals:  # nobody else has meanwhile
                        await self.renew()
                        self._renewals += 1
            except TemporaryError:
                delay_seconds = self.retry.next_delay_seconds(attempt)
                if delay_seconds is None:
                    raise
                await asyncio.sleep(delay_seconds)
                attempt += 1
            else:
                self.retry.budget.earn()
                return result

    async def renew(self) -> None:
        """Look for newer credentials than those that expired; what has its own way to keep them fresh does nothing."""

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
