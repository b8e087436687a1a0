"""A thread whose end can be awaited again after an interrupt."""

from __future__ import annotations

import threading
from collections.abc import Callable


class AwaitedThread(threading.Thread):
    """Does some work and says so.

    In Python 3.11 `join` takes a thread for ended when it is interrupted itself, and returns at once when it is called
    again: whoever cleans up then would do so beside a thread that goes on.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self.ended = threading.Event()

    def run(self) -> None:
        """See `Thread.run`."""
        try:
            self._work()
        finally:
            self.ended.set()
