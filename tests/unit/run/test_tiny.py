"""Many tiny tensors go through the pipeline together, and nothing of what comes out shows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from anabranch.engine.errors import InputError
from anabranch.engine.run import tiny
from anabranch.engine.storage.local import LocalStore

from ...merging import merge, write_checkpoint, write_recipe

TADROP = {"density": {"tadrop": {"mean": 0.4}}, "block": 16}
RECIPES: Mapping[str, dict[str, Any]] = {
    "task_arithmetic": {"merge_method": "task_arithmetic"},
    "ties": {"merge_method": "ties", "parameters": {"density": 0.3}},
    "ties over the model": {"merge_method": "ties", "parameters": {"density": 0.3, "scope": "model"}},
    "cabs": {"merge_method": "cabs", "parameters": TADROP},
    "dare": {"merge_method": "dare_ties", "parameters": {"density": 0.5}},
    "della": {"merge_method": "della", "parameters": {"density": 0.5}},
    "sce": {"merge_method": "sce", "parameters": {"select_topk": 0.5}},
    "stock": {"merge_method": "model_stock"},
}
SHAPES = [(), (0,), (1,), (3, 5), (64,), (7, 33), (128, 64), (4096 + 3,)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny tensors of several dtypes and shapes, and between them some that are not tiny."""
    folder = tmp_path_factory.mktemp("tiny")
    generator = torch.Generator().manual_seed(5)
    shapes = {f"layers.{i}.weight": SHAPES[i % len(SHAPES)] for i in range(160)}
    shapes |= {f"layers.{i}.large": (300, 700) for i in (0, 7)}
    for model in ("base", "a", "b"):
        tensors = {}
        for number, (name, shape) in enumerate(shapes.items()):
            dtype = (torch.bfloat16, torch.float32, torch.float16)[number % 5 % 3]
            tensors[name] = torch.randn(shape, generator=generator).to(dtype)
        write_checkpoint(folder / model, tensors, shards=1 + (model == "b"))
    return folder


def merged(folder: Path, out: Path, name: str) -> dict[str, bytes]:
    models = [{"model": str(folder / model)} for model in ("a", "b")]
    content = {"base_model": str(folder / "base"), "models": models, "output": {"shard_size": "300KB"}}
    merge(write_recipe(out.parent / f"{out.name}.yml", content | RECIPES[name]), out)
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_shows_that_tensors_went_together(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    together = merged(folder, tmp_path / "together", name)
    monkeypatch.setattr(tiny, "BATCH_TENSORS", 0)
    alone = merged(folder, tmp_path / "alone", name)
    assert [*together] == [*alone]
    assert [file for file in together if together[file] != alone[file]] == []


def test_what_lies_side_by_side_is_read_at_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read_into = LocalStore.read_into

    def counted(store: LocalStore, name: str, offset: int, into: memoryview, version: str | None = None) -> None:
        if offset:  # no header
            reads.append(name)
        read_into(store, name, offset, into, version)

    monkeypatch.setattr(LocalStore, "read_into", counted)
    merged(folder, tmp_path / "together", "task_arithmetic")
    together = len(reads)
    reads.clear()
    monkeypatch.setattr(tiny, "BATCH_TENSORS", 0)
    merged(folder, tmp_path / "alone", "task_arithmetic")
    assert together < len(reads) / 3


def test_a_bad_value_in_one_of_many_stops_the_merge_and_names_it(folder: Path, tmp_path: Path) -> None:
    for model, value in (("base", 0.0), ("a", float("nan"))):
        tensors = {f"w{i}": torch.full((16,), value if i == 77 else 0.5) for i in range(200)}
        write_checkpoint(tmp_path / model, tensors)
    content = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base")}
    recipe = write_recipe(tmp_path / "r.yml", content | {"models": [{"model": str(tmp_path / "a")}]})
    with pytest.raises(InputError, match=r"tensor 'w77'.* NaN or Inf"):
        merge(recipe, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))
