"""Threads of a merge are awaited to their end, also by who was interrupted while it waited."""

from __future__ import annotations

import signal
import threading

import pytest

from anabranch.engine.run.awaited_thread import AwaitedThread


def test_the_end_can_be_awaited_after_an_interrupt() -> None:
    go_on, done = threading.Event(), []

    def work() -> None:
        go_on.wait(60)
        done.append(True)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    thread = AwaitedThread(work, "work")
    thread.start()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            thread.ended.wait(60)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not thread.ended.wait(0.05)
    go_on.set()
    assert thread.ended.wait(60)
    assert done == [True]
