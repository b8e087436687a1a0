"""What this process may use of its machine, and what it has used."""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import time
from pathlib import Path

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Quota and period in microseconds; how containers limit processor time without hiding cores."""
STATUS = Path("/proc/self/status")
STAT = Path("/proc/self/stat")


def available_cores() -> int:
    """Cores that this process may run on, at least 1; a container's quota counts, rounded up."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, -(-int(quota) // int(period))))


def process_began() -> float:
    """When this process was started, on the clock of `time.perf_counter`, to a hundredth of a second."""
    began = time.perf_counter()
    try:
        fields = STAT.read_text().rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return began
    return began - max(age, 0.0)


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far.

    Linux's own count for this program comes first: what getrusage gives starts at the size of the process that started
    this one.
    """
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def host_id() -> str:
    """The same for all processes of a host, or of a container, and another elsewhere; tells nothing else of it."""
    try:
        machine = Path("/etc/machine-id").read_text()
    except OSError:
        machine = ""
    return hashlib.sha256(f"{machine.strip()} {socket.gethostname()}".encode()).hexdigest()[:16]
