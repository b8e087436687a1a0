"""Who used the processor, and how much memory at most: every process of a measurement, looked at again and again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOK_SECONDS = 0.5


@dataclass(slots=True)
class Used:
    """By one process since the measurement began, as it was seen last."""

    part: str
    before: float
    """CPU seconds that it had used when the measurement began; 0 where it started later."""
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    """Of its resident memory, by the kernel's own count (VmHWM), so that nothing is missed between two looks."""


class Processes:
    """Watches the descendants of this process until it is closed.

    A process that ends between two looks keeps what it had at the last one.
    """

    def __init__(self, parts: Mapping[int, str]) -> None:
        """Args:
        parts: what processes are, by their number; workers of Ray are known by their titles, others are Ray's own.
        """
        # psutil's objects know when a process began: numbers come round again within an hour on a busy machine.
        self._parts = {psutil.Process(pid): part for pid, part in parts.items()}
        self._used: dict[psutil.Process, Used] = {}
        self._lock = threading.Lock()
        self._look(started=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def name(self, pid: int, part: str) -> None:
        """Say what a process is that started meanwhile."""
        with self._lock:
            self._parts[psutil.Process(pid)] = part

    def part(self, pid: int) -> str:
        """What a process is, once it was seen."""
        with self._lock:
            return self._parts.get(psutil.Process(pid), "")

    def workers(self) -> list[int]:
        """Numbers of the processes of merge workers that live now."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                if "MergeWorker" in process.cmdline()[0] and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return sorted(found)

    def close(self) -> list[Used]:
        """Stop watching, and say what was seen."""
        self._stop.set()
        self._thread.join()
        return self.so_far()

    def so_far(self) -> list[Used]:
        """Everything that was seen."""
        with self._lock:
            return list(self._used.values())

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            self._look(started=False)

    def _look(self, *, started: bool) -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError, KeyError):
                times = process.cpu_times()
                cpu_seconds = times.user + times.system
                with self._lock:
                    part = self._part_of(process)
                    used = self._used.setdefault(process, Used(part, cpu_seconds if started else 0.0))
                    used.part = part
                    used.cpu_seconds = cpu_seconds - used.before
                    used.peak_bytes = max(used.peak_bytes, _peak_bytes(process.pid))

    def _part_of(self, process: psutil.Process) -> str:
        """What the process is, as far as is known by now: a worker gets its title when Ray gives it an actor."""
        known = self._parts.get(process)
        if known is None and "MergeWorker" in (process.cmdline() or [""])[0]:
            workers = [part for part in self._parts.values() if part.startswith("worker")]
            known = self._parts[process] = f"worker {len(workers) + 1}"
        parent = process.parent()
        return known or (self._parts.get(parent, "Ray") if parent else "Ray")


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["VmHWM"].split()[0]) << 10
