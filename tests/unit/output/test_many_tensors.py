"""Own files of a merge of very many tensors stay small enough to be read again, so that it resumes and verifies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anabranch.engine.output.commit import OutputDirectory
from anabranch.engine.output.manifest import MANIFEST_NAME
from anabranch.engine.output.receipts import rows_limit
from anabranch.engine.output.verify import verify
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.plan.survey import Round
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.storage import DEFAULT_READ_LIMIT_BYTES
from anabranch.engine.storage.local import LocalStore

from ...merging import merge, write_checkpoint, write_recipe

MODELS = 8
FEW, MANY = 100, 300
PROMISED = 100_000
"""Tensors that a merge of eight models may have."""


def merged(folder: Path, count: int, parameters: dict[str, object]) -> Path:
    """An output of so many tensors in one shard."""
    generator = torch.Generator().manual_seed(count)
    names = [f"model.layers.{i // 100}.mlp.experts.{i % 100}.down_proj.weight" for i in range(count)]
    for model in range(MODELS + 1):
        tensors = {name: torch.randn(16, generator=generator).bfloat16() for name in names}
        write_checkpoint(folder / str(model), tensors)
    models = [{"model": str(folder / str(1 + model))} for model in range(MODELS)]
    content = {"base_model": str(folder / "0"), "models": models, **parameters}
    merge(write_recipe(folder / "recipe.yml", content), folder / "out")
    return folder / "out"


@pytest.fixture(scope="module", params=["surveyed", "plain"])
def outputs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """The same merge of few and of more tensors, by a method with a survey and by one without."""
    parameters: dict[str, object] = {"merge_method": "task_arithmetic"}
    if request.param == "surveyed":
        density = {"tadrop": {"mean": 0.3}}
        parameters = {"merge_method": "cabs", "parameters": {"density": density, "block": 16}}
    folder = tmp_path_factory.mktemp(request.param)
    few, many = (merged(folder / str(count), count, parameters) for count in (FEW, MANY))
    return few, many


def test_records_of_100000_tensors_are_read_again(outputs: tuple[Path, Path]) -> None:
    _, many = outputs
    records = sorted(path.relative_to(many) for path in many.rglob("*.json") if path.parent.name != "out")
    for name in [*records, Path(MANIFEST_NAME)]:
        small, large = (out.joinpath(name).stat().st_size for out in outputs)
        grown = max(0, large - small) / (MANY - FEW)
        assert large + grown * PROMISED < DEFAULT_READ_LIMIT_BYTES / 8, f"{name}: {grown} bytes for each tensor"
    assert len(records) >= 3


def test_tables_of_rows_stay_below_the_limit_that_they_are_read_with(outputs: tuple[Path, Path]) -> None:
    few, many = outputs
    recipe = many.parent / "recipe.yml"
    plan = open_inputs(load_recipe(recipe), recipe.parent).plan
    folders = [many / ".anabranch" / "receipts", many / ".anabranch" / "survey"]
    tables = [path for folder in folders for path in folder.glob("*.parquet")]
    assert tables
    for table in tables:
        small = few.joinpath(table.relative_to(many)).stat().st_size
        grown = (table.stat().st_size - small) / (MANY - FEW)
        assert grown * PROMISED < rows_limit(plan, 0) / MANY * PROMISED / 4


def test_a_run_that_was_stopped_believes_all_of_them(outputs: tuple[Path, Path]) -> None:
    _, many = outputs
    recipe, notes = many.parent / "recipe.yml", list[str]()
    plan = open_inputs(load_recipe(recipe), recipe.parent).plan
    output = OutputDirectory(plan, LocalStore(str(many), own=True), notes.append)
    assert [*output.receipts()] == [0]
    if plan.survey_kind:
        assert len(output.survey_parts(Round(plan.survey_kind), 0) or []) == MODELS
    assert output.finished() is not None
    assert not notes
    assert not verify(LocalStore(str(many)), 1).problems
