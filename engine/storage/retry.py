"""Stores around stores: retries with one shared budget, and scripted faults for tests."""

from __future__ import annotations

import fnmatch
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from ..errors import TemporaryError
from .protocol import DEFAULT_READ_LIMIT_BYTES, FileInfo, Leftover, Store, Writer

ATTEMPTS = 8
"""Tries of one operation: with the delays below a 25 second outage is survived."""

FIRST_DELAY_SECONDS = 0.2
"""Mean wait before the first retry; doubles each time."""

MAX_DELAY_SECONDS = 15.0
"""Longest mean wait; servers recover from overload within seconds."""

BUDGET_RETRIES = 200.0
"""Retries that all operations together may spend before they must earn more: an outage ends the run, soon."""

EARNED_PER_SUCCESS = 0.1
"""Retries earned by one success: at most about one request in ten is a retry in the long run."""

Result = TypeVar("Result")


class RetryBudget:
    """Retries shared by all operations of a process: an overloaded server is not hammered by each of them."""

    def __init__(self, retries: float = BUDGET_RETRIES) -> None:
        self._lock = threading.Lock()
        self._capacity = retries
        self._left = retries

    def spend(self) -> bool:
        """Take one retry; False when none is left."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True

    def earn(self) -> None:
        """Give back a part of a retry after a success."""
        with self._lock:
            self._left = min(self._capacity, self._left + EARNED_PER_SUCCESS)


SHARED_BUDGET = RetryBudget()
"""The budget of this process."""


@dataclass(frozen=True)
class Retry:
    """How an operation is repeated after a TemporaryError."""

    attempts: int = ATTEMPTS
    first_delay_seconds: float = FIRST_DELAY_SECONDS
    max_delay_seconds: float = MAX_DELAY_SECONDS
    budget: RetryBudget = SHARED_BUDGET
    sleep: Callable[[float], None] = time.sleep

    def call(self, operation: Callable[[], Result]) -> Result:
        """Run `operation` until it succeeds, raises anything but TemporaryError, or may not be repeated."""
        attempt = 1
        while True:
            try:
                result = operation()
            except TemporaryError:
                delay_seconds = self.next_delay_seconds(attempt)
                if delay_seconds is None:
                    raise
                self.sleep(delay_seconds)
                attempt += 1
            else:
                self.budget.earn()
                return result

    def next_delay_seconds(self, attempt: int) -> float | None:
        """Wait after the given failed attempt (from 1); None when it was the last, or the budget is spent.

        The wait is jittered, so that workers that failed together do not come back together.
        """
        if attempt >= self.attempts or not self.budget.spend():
            return None
        mean = min(self.max_delay_seconds, self.first_delay_seconds * 2.0 ** (attempt - 1))
        return mean * random.uniform(0.5, 1.5)


class WrappedStore:
    """Passes everything on to another store; subclasses change what they must."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    @property
    def url(self) -> str:
        """The inner store's URL."""
        return self._inner.url

    def info(self, name: str) -> FileInfo:
        """See `Store.info`."""
        return self._around("info", name, lambda: self._inner.info(name))

    def list(self, folder: str = "") -> list[str]:
        """See `Store.list`."""
        return self._around("list", folder, lambda: self._inner.list(folder))

    def read_into(self, name: str, offset: int, into: memoryview, version: str | None = None) -> None:
        """See `Store.read_into`."""
        self._around("read", name, lambda: self._inner.read_into(name, offset, into, version))

    def read_bytes(self, name: str, limit_bytes: int = DEFAULT_READ_LIMIT_BYTES) -> bytes:
        """See `Store.read_bytes`."""
        return self._around("read", name, lambda: self._inner.read_bytes(name, limit_bytes))

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`."""
        return self._around("create", name, lambda: self._inner.create(name, data))

    def replace(self, name: str, data: bytes) -> None:
        """See `Store.replace`."""
        self._around("replace", name, lambda: self._inner.replace(name, data))

    def writer(self, name: str, size: int, attributes: Mapping[str, str], run_id: str) -> Writer:
        """See `Store.writer`."""
        return self._around("writer", name, lambda: self._inner.writer(name, size, attributes, run_id))

    def attributes(self, name: str) -> Mapping[str, str] | None:
        """See `Store.attributes`."""
        return self._around("info", name, lambda: self._inner.attributes(name))

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        self._around("delete", name, lambda: self._inner.delete(name))

    def leftovers(self, names: Collection[str], older_than_seconds: float = 0.0) -> tuple[Leftover, ...]:
        """See `Store.leftovers`."""
        return self._around("list", "", lambda: self._inner.leftovers(names, older_than_seconds))

    def delete_leftover(self, leftover: Leftover) -> None:
        """See `Store.delete_leftover`."""
        self._around("delete", leftover.name, lambda: self._inner.delete_leftover(leftover))

    def free_bytes(self) -> int | None:
        """See `Store.free_bytes`."""
        return self._around("info", "", self._inner.free_bytes)

    def _around(self, verb: str, name: str, operation: Callable[[], Result], /) -> Result:
        raise NotImplementedError


class RetryStore(WrappedStore):
    """Repeats operations after temporary errors.

    A writer's own calls are not repeated here, as half of their bytes may have gone; a store that can repeat
    them safely does so itself, else the whole file is written again.
    """

    def __init__(self, inner: Store, retry: Retry | None = None) -> None:
        super().__init__(inner)
        self._retry = retry or Retry()

    def _around(self, _verb: str, _name: str, operation: Callable[[], Result], /) -> Result:
        return self._retry.call(operation)


@dataclass
class Fault:
    """One scripted misfortune of a FaultStore."""

    verb: str
    """info, list, read, create, replace, writer, write, commit, discard or delete."""
    number: int = 1
    """Which matching call goes wrong, from 1."""
    times: int = 1
    """How many calls in a row from there go wrong."""
    error: Exception | None = None
    """Raised, if given."""
    after: bool = False
    """Do the operation first: its answer is lost."""
    delay_seconds: float = 0.0
    action: Callable[[], None] | None = None
    """Done before the operation: changes or removes a file, kills a process."""
    pattern: str = "*"
    """Shell pattern of file names that count."""
    calls: int = field(default=0, init=False)
    """Matching calls so far."""


class FaultStore(WrappedStore):
    """Does what its script of faults says, for tests; also counts calls by verb."""

    def __init__(self, inner: Store, *faults: Fault) -> None:
        super().__init__(inner)
        self.faults = list(faults)
        self.calls: dict[str, int] = {}
        self._lock = threading.Lock()

    def writer(self, name: str, size: int, attributes: Mapping[str, str], run_id: str) -> Writer:
        """See `Store.writer`; writes and commits go through the script, too."""
        return _FaultWriter(self, name, super().writer(name, size, attributes, run_id))

    def around(self, verb: str, name: str, operation: Callable[[], Result], /) -> Result:
        """Run an operation, with the faults that are due."""
        due = self._due(verb, name)
        for fault in due:
            if fault.delay_seconds:
                time.sleep(fault.delay_seconds)
            if fault.action is not None:
                fault.action()
            if fault.error is not None and not fault.after:
                raise fault.error
        result = operation()
        for fault in due:
            if fault.error is not None:
                raise fault.error
        return result

    _around = around

    def _due(self, verb: str, name: str) -> list[Fault]:
        due = []
        with self._lock:
            self.calls[verb] = self.calls.get(verb, 0) + 1
            for fault in self.faults:
                if fault.verb == verb and fnmatch.fnmatchcase(name, fault.pattern):
                    fault.calls += 1
                    if fault.number <= fault.calls < fault.number + fault.times:
                        due.append(fault)
        return due


class _FaultWriter:
    def __init__(self, store: FaultStore, name: str, inner: Writer) -> None:
        self._store = store
        self._name = name
        self._inner = inner

    def write(self, data: memoryview | bytes) -> None:
        self._store.around("write", self._name, lambda: self._inner.write(data))

    def commit(self) -> None:
        self._store.around("commit", self._name, self._inner.commit)

    def discard(self) -> None:
        self._store.around("discard", self._name, self._inner.discard)
