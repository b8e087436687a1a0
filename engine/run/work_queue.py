"""What the fold threads do next: the earliest window whose inputs no unfinished pass still has to look at."""

from __future__ import annotations

import heapq
import threading
from itertools import count
from typing import Generic, TypeVar

Item = TypeVar("Item")


class WorkQueue(Generic[Item]):
    """Items in the order in which they were put, except that some wait until a turn is over.

    A thread that would have to wait for a turn takes what comes after it, so that the passes over a tensor of a few
    windows keep all threads busy with its neighbours. Items that wait for the same turn are taken in order.
    """

    def __init__(self) -> None:
        self._numbers = count()
        self._ready: list[tuple[int, Item]] = []
        """A heap."""
        self._waiting: dict[threading.Event, list[tuple[int, Item]]] = {}
        """By what has to happen first."""
        self._closed = False
        self._stopped = False
        self._changed = threading.Condition()

    def put(self, item: Item, after: threading.Event | None = None) -> None:
        """Add an item that is ready once a turn is over, which `over` says; None: now."""
        with self._changed:
            entry = (next(self._numbers), item)
            if after is None or after.is_set() or self._stopped:
                heapq.heappush(self._ready, entry)
                self._changed.notify()
            else:
                self._waiting.setdefault(after, []).append(entry)

    def over(self, turn: threading.Event) -> None:
        """Set the event, and make ready what waited for it."""
        with self._changed:
            turn.set()
            for entry in self._waiting.pop(turn, ()):
                heapq.heappush(self._ready, entry)
            self._changed.notify_all()

    def take(self) -> Item | None:
        """The first item that is ready, waiting for one; None when all were taken and no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or (self._closed and not self._waiting))
            return heapq.heappop(self._ready)[1] if self._ready else None

    def close(self) -> None:
        """No more items will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Hand everything out at once: nothing will be done with it."""
        with self._changed:
            self._stopped = True
            for entries in self._waiting.values():
                self._ready += entries
            self._waiting = {}
            heapq.heapify(self._ready)
            self._changed.notify_all()
