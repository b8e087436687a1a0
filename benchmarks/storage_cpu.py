"""CPU seconds that a client of an S3 server needs for each GB, and the share of its busiest thread; see `storage`."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.s3.ceph import ceph_server
from tests.s3.certificates import write_certificate

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[1]


def compare_cpu(size_mib: int, repeats: int, before: Path | None) -> None:
    """Let all contenders take turns, and print a table of medians."""
    contenders = [("ours", ROOT), *([("before", before.resolve())] if before else []), ("obstore", ROOT)]
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        certificate, key = write_certificate(Path(name))
        (Path(name) / "ceph").mkdir()
        with ceph_server(Path(name) / "ceph", certificate, key) as running:
            bucket = running.bucket(running.client())
            for _ in range(repeats):
                for endpoint in (running.endpoint, running.secure_endpoint):
                    for action in ("read", "upload"):
                        for contender, tree in contenders:
                            task = {
                                "contender": contender, "action": action, "size": size_mib * MIB, "bucket": bucket,
                                "endpoint": endpoint, "certificate": str(certificate), "key": running.key,
                                "secret": running.secret, "config": running.config,
                            }  # fmt: skip
                            row = (f"{action}, {endpoint.partition(':')[0]}", contender)
                            found.setdefault(row, []).append(_turn(task, tree))
    print("| | | CPU s/GB | busiest thread | MB/s |\n|---|---|---:|---:|---:|")
    for (label, contender), turns in sorted(found.items()):
        cpu, share, rate = (statistics.median(turn[name] for turn in turns) for name in ("cpu", "share", "rate"))
        print(f"| {label} | {contender} | {cpu:.2f} | {share:.0%} | {rate:.0f} |")


def _turn(task: dict[str, Any], tree: Path) -> dict[str, float]:
    """One process, whose store is that of a tree."""
    command = [sys.executable, str(ROOT / "benchmarks" / "storage_turn.py"), json.dumps(task)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    answer: dict[str, float] = json.loads(done.stdout)
    return answer
