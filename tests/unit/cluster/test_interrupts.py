"""A signal that comes at a moment at which Python drops exceptions stops the command all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

DROPPED = """
import ctypes, os, signal, sys, time
from anabranch.cluster.interrupts import handle_signals

def send():
    os.kill(os.getpid(), signal.NUMBER)
    for _ in range(10_000):  # the handler runs here
        pass

class Finalised:
    def __del__(self):
        send()

handle_signals()
try:
    if "HOW" == "finaliser":
        Finalised()
    else:
        called = ctypes.CFUNCTYPE(None)(send)
        called()
    time.sleep(20)
    print("lost")
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("how", ["finaliser", "callback"])
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupt_that_python_drops_is_raised_again(how: str, number: str) -> None:
    program = [sys.executable, "-c", DROPPED.replace("NUMBER", number).replace("HOW", how)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "interrupted\n", done.stderr
    assert done.stderr == ""


def test_other_errors_of_finalisers_are_told() -> None:
    code = (
        "from anabranch.cluster.interrupts import handle_signals\nhandle_signals()\n"
        "class Bad:\n    def __del__(self): raise ValueError('told')\nBad()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "ValueError: told" in done.stderr
