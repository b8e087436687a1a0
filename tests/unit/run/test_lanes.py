"""What is kept of who worked when: every second and byte, in a bounded number of stretches."""

from __future__ import annotations

from anabranch.engine.run.lanes import FIRST_GAP_SECONDS, MOST_STRETCHES, Lanes


def test_stretches_that_lie_close_together_are_one() -> None:
    lanes = Lanes()
    lanes.add("a", "read", 0.0, 1.0, 10)
    lanes.add("b", "read", 0.5, 1.0, 1)
    lanes.add("a", "read", 1.0 + FIRST_GAP_SECONDS / 2, 2.0, 20)
    lanes.add("a", "read", 3.0, 4.0, 30)
    found = [(s.who, s.begin_seconds, s.end_seconds, s.bytes) for s in lanes.stretches]
    assert found == [("a", 0.0, 2.0, 30), ("b", 0.5, 1.0, 1), ("a", 3.0, 4.0, 30)]


def test_any_run_has_few_stretches_and_nothing_is_lost() -> None:
    lanes = Lanes()
    for i in range(20_000):
        lanes.add(f"thread {i % 4}", "fold", i * 0.1, i * 0.1 + 0.05, 7)
    assert len(lanes.stretches) <= MOST_STRETCHES
    assert sum(s.bytes for s in lanes.stretches) == 140_000
    assert abs(sum(s.busy_seconds for s in lanes.stretches) - 1000.0) < 1e-6
