"""Progress counts what the threads report, never beyond the total, and prints as much as the place can take."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest
from rich.console import Console

from anabranch.cluster.progress import Tally, open_progress
from anabranch.cluster.progress_bar import BarProgress
from anabranch.cluster.progress_lines import Counter, LineProgress
from anabranch.engine.run.protocols import Silent

SHARDS = ["a.safetensors", "b.safetensors"]


def test_a_counter_starts_from_what_was_resumed() -> None:
    tally = Tally()
    tally.add(70)  # by an earlier phase
    counter = Counter(tally.read)
    counter.start("merge", total_bytes=1000, done_bytes=400)
    assert counter.done == 400
    tally.add(100)
    assert counter.done == 500
    tally.add(10_000)
    assert counter.done == 1000


def test_speed_is_that_of_this_run_and_gives_the_time_left() -> None:
    tally = Tally()
    counter = Counter(tally.read)
    counter.start("merge", total_bytes=1000, done_bytes=400)
    assert counter.remaining_seconds is None
    counter.began = time.monotonic() - 10
    tally.add(100)
    assert counter.bytes_per_second == pytest.approx(10, rel=0.01)
    assert counter.remaining_seconds == pytest.approx(50, rel=0.01)


def test_lines_say_phases_and_shards() -> None:
    stream, tally = io.StringIO(), Tally()
    with LineProgress(tally.read, SHARDS, stream, line_seconds=60) as progress:
        progress.phase("survey", 0, 0)
        progress.shard_done(1)
        progress.phase("merge", 4_000_000, 1_000_000)
        tally.add(1_000_000)
        progress.shard_done(0)
        progress.phase("commit", 0, 0)
    lines = stream.getvalue().splitlines()
    assert lines[:3] == ["survey", "survey b.safetensors done", "merge 4.0 MB, 1.0 MB done before"]
    assert re.fullmatch(r"merge a\.safetensors done: 50% of 4\.0 MB, \S+ \wB/s, \d+ \w+ left", lines[3])
    assert lines[4:] == ["commit"]


def test_notes_stand_between_the_lines_and_above_the_bar() -> None:
    text = "worker 2 was lost with a.safetensors: [red]its node died"
    stream, terminal = io.StringIO(), io.StringIO()
    with LineProgress(Tally().read, SHARDS, stream, line_seconds=60) as lines:
        lines.note(text)
    assert stream.getvalue() == text + "\n"
    with BarProgress(Tally().read, SHARDS, Console(file=terminal, force_terminal=True, width=120)) as bar:
        bar.phase("merge", 2_000_000, 0)
        bar.note(text)
    assert text in terminal.getvalue()


def test_lines_between_shards_come_at_their_pace_and_end_with_the_run() -> None:
    stream, tally = io.StringIO(), Tally()
    with LineProgress(tally.read, SHARDS, stream, line_seconds=0.05) as progress:
        progress.phase("merge", 1000, 0)
        time.sleep(0.3)
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 7
    assert all(line.startswith("merge") for line in lines)
    time.sleep(0.15)
    assert stream.getvalue().splitlines() == lines


def test_a_bar_follows_the_count_without_being_told() -> None:
    stream, tally = io.StringIO(), Tally()
    console = Console(file=stream, force_terminal=True, width=120)
    with BarProgress(tally.read, SHARDS, console) as progress:
        progress.phase("merge", 2_000_000, 0)
        tally.add(1_000_000)
        time.sleep(0.6)  # drawn four times a second
        half = stream.getvalue()
        progress.shard_done(1)
        progress.phase("commit", 0, 0)
    assert "1.0/2.0 MB" in half
    assert "2.0/2.0 MB" in stream.getvalue()
    assert "commit" in stream.getvalue()


def test_a_bar_of_a_failed_run_is_not_filled_up() -> None:
    stream, tally = io.StringIO(), Tally()
    console = Console(file=stream, force_terminal=True, width=120)

    def fail() -> None:
        with BarProgress(tally.read, SHARDS, console) as progress:
            progress.phase("merge", 2_000_000, 0)
            tally.add(1_000_000)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "2.0/2.0 MB" not in stream.getvalue()


def test_where_standard_error_goes_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_progress(Tally().read, silent=True) as progress:
        assert isinstance(progress, Silent)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with open_progress(Tally().read, silent=False) as progress:
        assert isinstance(progress, LineProgress)
    with open_progress(Tally().read, silent=True) as progress:
        progress.phase("merge", 1, 0)
        progress.shard_done(0)
    assert sys.stderr.getvalue() == ""
