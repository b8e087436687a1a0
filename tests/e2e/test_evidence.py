"""The evidence on models that learn for a moment: the same numbers again, nothing twice, and those of the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anabranch.cluster.demo.factors import Method
from anabranch.cluster.demo.models import Judge, Training, load_tensors
from anabranch.cluster.demo.texts import Sizes
from benchmarks.quality import run
from benchmarks.quality.cells import LOWER, Cell, tadrop
from benchmarks.quality.sets import SETS

from ..merging import merge, write_recipe
from .texts import write_more_texts, write_texts

PAIR = ("movies", "spam")
FEW = Sizes(16, 8, 8)
CELLS = (
    Cell("main", "task arithmetic", "task_arithmetic", models=PAIR),
    Cell("main", "CABS 0.1", "cabs", {"density": 0.1}, PAIR),
    Cell("ablation", "BS only 0.1", "cabs", {"density": 0.1}, PAIR, alone=True),
    Cell("tadrop", "CABS + TADrop 0.1, gini", "cabs", tadrop(mean=0.1, statistic="gini"), PAIR),
    Cell("equal norms", "CABS 0.1", "cabs", {"density": 0.1}, PAIR, energy=True),
    Cell("other", "CABS 0.1, weights by suggest", "cabs", {"density": 0.1}, PAIR, suggested=True),
    Cell("bf16", "CABS 0.1", "cabs", {"density": 0.1}, PAIR, dtype="bfloat16"),
    Cell("emr", "EMR", "emr", models=PAIR),
)


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few texts, one layer, four steps; torch's settings are those of the process, and are put back."""
    write_texts(tmp_path)
    write_more_texts(tmp_path)
    monkeypatch.setattr(run, "DATA", tmp_path)
    brief = {LOWER: Training(layers=1, steps=4, batch=8)}
    monkeypatch.setitem(SETS, "texts", replace(SETS["texts"], training=brief, sizes=FEW))
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    run._models.cache_clear()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def measured(folder: Path) -> dict[str, dict[str, Any]]:
    with ThreadPoolExecutor(1) as pool:
        run.do_block(pool, "texts", [0], CELLS, folder)
    rows = [json.loads(file.read_text()) for file in sorted(folder.glob("*/cells/*.json"))]
    for row in rows:
        del row["cpu_seconds"]
    return {f"{row['group']} {row['title']}": row for row in rows}


def test_numbers_are_the_same_again_and_those_of_the_command(tmp_path: Path) -> None:
    rows = measured(tmp_path / "first")
    assert len(rows) == len(CELLS)
    assert measured(tmp_path / "second") == rows
    (seed,) = (tmp_path / "first").iterdir()
    written = {file: file.stat().st_mtime_ns for file in seed.rglob("*") if file.name != "specialists.json"}
    assert measured(tmp_path / "first") == rows
    assert {file: file.stat().st_mtime_ns for file in written} == written
    judge = Judge(seed / "base", seed / "heads", [SETS["texts"].load(tmp_path, 0, FEW)[name] for name in PAIR], "test")
    for cell in CELLS[:2]:
        row = rows[f"{cell.group} {cell.title}"]
        method = Method(cell.title, cell.method, cell.parameters)
        recipe = method.recipe(str(seed / "base"), [str(seed / name) for name in PAIR], row["factor"])
        out = tmp_path / method.name
        merge(write_recipe(tmp_path / f"{method.name}.yml", recipe), out)
        assert judge.accuracies(load_tensors(out)) == row["accuracy"]
