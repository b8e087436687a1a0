"""What a study says of its trials."""

from __future__ import annotations

from pathlib import Path

import pytest

from anabranch.cluster.search.evaluate import Outcome
from anabranch.cluster.search.objectives import read_objective
from anabranch.cluster.search.pictures import search_page
from anabranch.cluster.search.results import Results
from anabranch.cluster.search.study import Sampling, Study
from anabranch.engine.recipe import SearchSpace, load_search

RECIPE = """
merge_method: task_arithmetic
base_model: base
models:
  - {model: m0, parameters: {weight: {search: {from: 0.0, to: 1.0}}}}
  - {model: m1, parameters: {weight: {search: {from: 0.0, to: 1.0}}}}
"""
FIRST, SECOND = "models[0].parameters.weight", "models[1].parameters.weight"


@pytest.fixture
def space(tmp_path: Path) -> SearchSpace:
    (tmp_path / "recipe.yml").write_text(RECIPE)
    found = load_search(tmp_path / "recipe.yml")
    assert found is not None
    return found


def told(folder: Path, space: SearchSpace, trials: int) -> Study:
    """The first parameter makes trials good, the second one makes them bad."""
    study = Study(folder, space, Sampling("random", 1, trials), 1, {})
    for tried in study.batch(range(trials)):
        value = tried.point[FIRST] if tried.point[FIRST] > 0.8 else -10 * tried.point[SECOND]
        study.record(tried.number, Outcome({"a": float(value)}))
        study.tell(tried.number, [float(value)])
    return study


def test_importance_tells_what_makes_trials_good(tmp_path: Path, space: SearchSpace) -> None:
    found = told(tmp_path, space, 60).importances(0)
    assert found[FIRST] > 3 * found[SECOND]
    assert sum(found.values()) == pytest.approx(1.0)


def test_trials_that_are_few_or_alike_have_no_importance(tmp_path: Path, space: SearchSpace) -> None:
    assert told(tmp_path, space, 1).importances(0) == {}
    study = Study(tmp_path / "", space, Sampling("random", 1, 1), 1, {})
    for tried in study.batch(range(1, 4)):
        study.tell(tried.number, None)
    assert study.importances(0) == {}


def test_the_page_of_a_search_has_history_importance_and_slices(tmp_path: Path, space: SearchSpace) -> None:
    study = told(tmp_path, space, 12)
    results = Results(tmp_path, [read_objective("mean")], space.parameters(), study.tried(), ())
    page = search_page(results, [study.importances(0)])
    history, importance, slices = page.figures
    assert [figure.name for figure in page.figures] == ["history", "importance", "slices"]
    rows = history.panels[0].picture.rows
    points = [row["value"] for row in rows]
    assert points == [results.values[number][0] for number in range(12)]
    assert [row["best"] for row in rows] == [max(points[: i + 1]) for i in range(12)]
    layers = history.panels[0].picture.spec()["layer"]
    assert len(layers) == 2 and not any("data" in layer for layer in layers), "both draw the picture's rows"
    assert [panel.title for panel in slices.panels] == [FIRST, SECOND]
    assert {row[1] for row in importance.table.rows} == {FIRST, SECOND}
