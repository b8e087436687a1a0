"""A recipe with several outputs on real Ray nodes: every part has the bytes of one process, whatever is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..merging import merge, merge_parts, write_recipe
from .conftest import COLUMNS, ROWS, Case, Nodes, When, assert_same_output

pytestmark = pytest.mark.ray


@pytest.mark.slow
def test_parts_and_a_task_model_survive_the_loss_of_a_node(nodes: Nodes, checkpoints: Path, tmp_path: Path) -> None:
    base, models = str(checkpoints / "base"), [{"model": str(checkpoints / f"model{i}")} for i in range(2)]
    recipe = {"merge_method": "emr", "base_model": base, "models": models, "output": {"shard_size": 2 * ROWS * COLUMNS}}
    path, out, expected = write_recipe(tmp_path / "emr.yml", recipe), tmp_path / "out", tmp_path / "expected"
    parts = merge_parts(path, expected)
    nodes.resize(2)
    watch = When(out / "model1", 3, nodes.remove)
    done = Case(path, expected).run(out, nodes.address, "--json")
    watch.join()
    assert done.returncode == 0, done.stderr
    assert watch.happened
    assert [Path(report["out"]).name for report in json.loads(done.stdout)["merges"]] == list(parts)
    for part in parts:
        assert_same_output(out / part, expected / part)
    task = {"merge_method": "passthrough", "models": [{"model": f"{base}+{out / 'model1'}"}]}
    path = write_recipe(tmp_path / "task.yml", task)
    merge(path, tmp_path / "alone")
    done = Case(path, tmp_path / "alone").run(tmp_path / "full", nodes.address)
    assert done.returncode == 0, done.stderr
    assert_same_output(tmp_path / "full", tmp_path / "alone")
