"""Run one command and say what it cost: seconds, CPU, peak memory, bytes read and written.

Imports nothing heavy: a child starts as a copy of its parent, whose memory would count as the child's peak.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

BLOCK = 512  # bytes: the unit of the kernel's block counts


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command and its children used. Times in seconds."""

    seconds: float  # until the command has ended and what it wrote is on the disk
    cpu_seconds: float
    peak_bytes: int  # resident memory of the largest process
    read_bytes: int  # handed over by read calls, from the disk or from memory; memory-mapped reads are not seen
    disk_read_bytes: int
    disk_written_bytes: int
    others_cores: float  # processor cores that everything else on the machine used meanwhile


class CommandFailed(Exception):
    """The command exited with something else than 0."""


def run(
    command: Sequence[str],
    log: IO[bytes],
    out: Path | None = None,
    extra_environment: Mapping[str, str] | None = None,
) -> Cost:
    """Run ``command``, flush the files of ``out`` to the disk, and return the cost of both.

    Raises:
        CommandFailed: with the exit status; the command's own words are in ``log``.
    """
    environment = {**os.environ, **(extra_environment or {})}
    busy_before = busy_seconds()
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    # Wait without reaping: the counters of /proc/PID/io are gone once the process is.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    read_bytes = _io_counter(process.pid, "rchar")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise CommandFailed(f"exit status {process.returncode}: {' '.join(command)}")
    if out is not None:
        flush(out)
    seconds = time.perf_counter() - start
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Cost(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_bytes=usage.ru_maxrss * 1024,
        read_bytes=read_bytes,
        disk_read_bytes=usage.ru_inblock * BLOCK,
        disk_written_bytes=usage.ru_oublock * BLOCK,
        others_cores=max(0.0, busy_seconds() - busy_before - cpu_seconds) / seconds,
    )


def flush(folder: Path) -> None:
    """fsync every file of ``folder`` and the folder."""
    for path in [*(path for path in folder.rglob("*") if path.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def evict(paths: Sequence[Path]) -> None:
    """Drop files from the page cache (they must have been flushed): the next reader meets the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def warm(paths: Sequence[Path]) -> None:
    """Read files once, so that they are in the page cache as far as it reaches."""
    subprocess.run(["cat", *map(str, paths)], stdout=subprocess.DEVNULL, check=True)


def _io_counter(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value)
    raise AssertionError(f"/proc/{pid}/io has no {name}")


def busy_seconds() -> float:
    """Processor seconds spent by the whole machine since it started, idling and waiting left out."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _wait, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
