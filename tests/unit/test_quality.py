"""Tables of benchmarks/quality: differences are paired by seed, and intervals are Student's."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks.quality.cells import Cell, picture_cells, text_cells
from benchmarks.quality.report import (
    PAGE,
    RESULTS,
    half_width,
    published_rows,
    read_cells,
    tables,
    with_interval,
    with_tables,
    write_results,
)
from benchmarks.quality.sets import PICTURES, SETS, TEXTS


def keep(folder: Path, seed: int, title: str, accuracy: float, group: str = "main", **more: Any) -> None:
    """A cell that is done, as a run keeps it; what tables call it may have changed since."""
    (key,) = (cell.key for cell in text_cells() if (cell.group, cell.title) == (group, title))
    row = {"seed": seed, "group": "old", "title": "old", "models": ["a", "b"], "dtype": "float32"}
    row |= {"accuracy": {"a": accuracy - 0.1, "b": accuracy + 0.1}, **more}
    file = folder / f"seed-{seed}" / "cells" / f"{key}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(row))


def test_intervals_are_those_of_student() -> None:
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(2.484, abs=1e-3)  # 4.303 / sqrt(3)
    assert with_interval([1.0, 2.0, 3.0], "{:.1f}") == "2.0 ± 2.5"
    assert with_interval([1.0], "{:+.1f}") == "+1.0"


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    for seed, level in enumerate((0.5, 0.7, 0.9)):  # seeds differ much, the methods in each by two points
        keep(tmp_path, seed, "CABS 0.1", level + 0.02, factor=1.41, kept=0.1, overlap=0.0, curve={"1.0": 0.5})
        keep(tmp_path, seed, "task arithmetic", level, factor=0.5, kept=1.0, overlap=1.0)
    keep(tmp_path, 3, "CABS 0.1", 0.6, factor=2.0, kept=0.1, overlap=0.0)  # without its reference
    lines = list(tables(read_cells(TEXTS, tmp_path)))
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][1:] == [
        "| task arithmetic (3 of 4 seeds)",
        "| CABS 0.1",
    ]
    assert lines[-1] == "| CABS 0.1 | 69.0 ± 27.7 | +2.0 ± 0.0 | 1.41 to 2 | 10.0 | 0.000 |"


def test_results_are_kept_per_seed_and_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(tmp_path / "run", 0, "task arithmetic", 0.5, factor=0.5, kept=1.0, overlap=1.0)
    write_results(TEXTS, tmp_path / "run", tmp_path / "results")
    assert "| task arithmetic | 50.0 |" in capsys.readouterr().out
    rows = pq.read_table(tmp_path / "results" / "cells.parquet").to_pylist()
    assert [(row["seed"], row["task"], row["accuracy"]) for row in rows] == [(0, "a", 0.4), (0, "b", 0.6)]


def test_tables_are_in_the_order_of_densities_and_an_ablation_between_its_ends(tmp_path: Path) -> None:
    for title in ("CABS 0.1", "CABS 0.5", "task arithmetic", "magnitude 0.1"):
        keep(tmp_path / "run", 0, title, 0.5)
    keep(tmp_path / "run", 0, "BS only 0.1", 0.5, group="ablation")
    write_results(TEXTS, tmp_path / "run", tmp_path / "results")
    page = "before\n<!-- table: main -->\n| old |\nafter\n<!-- table: ablation -->\n<!-- table: emr -->\n| kept |\n"
    made = with_tables(page, TEXTS, published_rows(TEXTS, tmp_path / "results"))
    titles = [line.split(" | ")[0] for line in made.splitlines() if line.startswith("| ") and "%" not in line]
    assert titles == [
        *("| task arithmetic", "| CABS 0.5", "| magnitude 0.1", "| CABS 0.1"),
        *("| neither: magnitude 0.1", "| BS only 0.1", "| both: CABS 0.1"),
        "| kept |",
    ]
    assert "| old |" not in made
    assert with_tables(made, TEXTS, published_rows(TEXTS, tmp_path / "results")) == made


def test_the_published_tables_follow_from_the_published_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- table: ") > 10
    for of in SETS.values():
        assert with_tables(page, of, published_rows(of, RESULTS)) == page


def test_cells_of_texts_keep_their_keys() -> None:
    """Results of long runs lie under these keys: after a change they would be measured again."""
    keys = " ".join(cell.key for cell in text_cells())
    assert hashlib.sha256(keys.encode()).hexdigest()[:16] == "bdd3d1eee7ff799e"


def test_sets_of_results_do_not_mix(tmp_path: Path) -> None:
    keep(tmp_path, 0, "task arithmetic", 0.5)
    assert len(read_cells(TEXTS, tmp_path)) == 1
    assert read_cells(PICTURES, tmp_path) == []


def test_cells_are_told_apart_by_what_they_do() -> None:
    every = [*text_cells(), *picture_cells()]
    assert len({cell.key for cell in every}) == len(every)
    assert Cell("a", "b", "cabs", {"density": 0.1}).key == Cell("c", "d", "cabs", {"density": 0.1}).key
    assert Cell("a", "b", "cabs", {"density": 0.1}).key != Cell("a", "b", "cabs", {"density": 0.2}).key
