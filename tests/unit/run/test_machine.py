"""What this process may use of its machine, and what it has used."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from anabranch.engine.run import machine


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8)]
)
def test_a_containers_quota_limits_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(machine, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    assert machine.available_cores() == cores


def test_peak_memory_is_at_least_what_is_used_now() -> None:
    block = bytearray(b"x") * (100 << 20)
    used = psutil.Process().memory_info().rss
    assert len(block) < used <= machine.peak_rss_bytes() < 1000 * used
