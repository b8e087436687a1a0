"""How a merge from S3 to S3 spreads over its threads: the share of the busiest one in the CPU of its process.

    python -m benchmarks.s3_threads --size 0.5b --method cabs

Inputs are made while they are read, and the output is hashed and forgotten (`benchmarks.synthetic`), so that disks have
no part in it. The kernel's counts of every thread are read until the process ends.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import tempfile
import time
from pathlib import Path

from .synthetic.server import BUCKET
from .thirty_billion import COMMAND, DENSITY, OUT, Site

LOOK_SECONDS = 0.1
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_by_thread(pid: int) -> dict[int, float]:
    """CPU seconds of each thread that lives, by its id."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            found[int(task.name)] = (int(fields[11]) + int(fields[12])) / TICKS
    return found


def watch(process: subprocess.Popen[bytes]) -> dict[int, float]:
    """CPU seconds of every thread that there was, until the process ends."""
    used: dict[int, float] = {}
    while process.poll() is None:
        with contextlib.suppress(OSError):
            used |= cpu_by_thread(process.pid)
        time.sleep(LOOK_SECONDS)
    return used


def measure(size: str, method: str, memory: str, folder: Path) -> None:
    """Merge once and print a row."""
    site = Site(size, folder)
    try:
        site.write_recipe(DENSITY, method)
        command = [*COMMAND, "merge", str(site.recipe), f"s3://{BUCKET}/{OUT}", "--memory", memory]
        began = time.perf_counter()
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | site.environment)
            used = watch(process)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit((folder / "log").read_text()[-2000:])
        report = site.report()
        total = sum(used.values())
        print("| method | GB read | GB uploaded | seconds | CPU s | threads | busiest thread |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        print(
            f"| {method} | {report['sent_bytes'] / 1e9:.2f} | {report['received_bytes'] / 1e9:.2f} | {seconds:.1f} | "
            f"{total:.1f} | {len(used)} | {max(used.values()) / total:.0%} |"
        )
    finally:
        site.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="0.5b")
    parser.add_argument("--method", default="cabs")
    parser.add_argument("--memory", default="2GiB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options.size, options.method, options.memory, Path(folder))


if __name__ == "__main__":
    main()
