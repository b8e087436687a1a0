"""Signals that ask the command to stop become a KeyboardInterrupt in the main thread, whatever runs there."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:  # a name of the type checker's alone
    from sys import UnraisableHookArgs

AGAIN_SECONDS = 0.01
"""Until an interrupt that was lost is raised again."""


def handle_signals() -> None:
    """Take over the signals of this process.

    Python drops an exception that a signal raises while an object is finalised or C calls back. Such an interrupt is
    raised again a moment later, and again until somebody hears of it.
    """
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup sets
        signal.signal(signal.SIGHUP, _terminate)
    signal.signal(signal.SIGALRM, _interrupt)
    told = sys.unraisablehook

    def dropped(about: UnraisableHookArgs) -> None:
        if issubclass(about.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        else:
            told(about)

    sys.unraisablehook = dropped


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # one is enough: a second would stop the cleaning up
    raise KeyboardInterrupt


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
