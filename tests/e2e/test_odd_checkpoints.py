"""The whole command on checkpoints as people have them: odd file names, padded vocabularies, tied and missing tensors,
stacked experts. Each merges to what the plain formula says, or is refused in words.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file

from ..adapters import write_adapter
from ..merging import load_output, write_checkpoint, write_recipe
from .conftest import Command

Tensors = dict[str, torch.Tensor]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PROJECTION = "model.layers.0.mlp.up_proj.weight"
SHAPES = {EMBEDDING: (20, 8), PROJECTION: (12, 8), "model.norm.weight": (8,), HEAD: (20, 8)}


class Place:
    """A base and two fine-tunes in memory, written when a test has changed what it wants to change."""

    def __init__(self, folder: Path, anabranch: Command) -> None:
        self.folder = folder
        self._anabranch = anabranch
        generator = torch.Generator().manual_seed(6)
        self.base: Tensors = {n: torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}
        self.models: list[Tensors] = [
            {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in self.base.items()} for _ in range(2)
        ]
        self.configs: list[dict[str, Any]] = [{"model_type": "test"} for _ in range(3)]

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def folders(self) -> list[Path]:
        return [self.folder / name for name in ("base", "model0", "model1")]

    def write(self) -> None:
        for folder, tensors, config in zip(self.folders(), [self.base, *self.models], self.configs, strict=True):
            write_checkpoint(folder, tensors, 1, config)

    def run(self, **keys: Any) -> Result:
        base, *models = map(str, self.folders())
        content = {"merge_method": "task_arithmetic", "base_model": base, "models": [{"model": m} for m in models]}
        content |= keys
        content = {key: value for key, value in content.items() if value is not None}
        return self._anabranch("merge", write_recipe(self.folder / "recipe.yml", content), self.out)

    def merged(self, **keys: Any) -> Tensors:
        result = self.run(**keys)
        assert result.exit_code == 0, result.output
        self.said = result.output
        return load_output(self.out)

    def refused(self, *said: str, **keys: Any) -> None:
        result = self.run(**keys)
        assert result.exit_code == 3, result.output
        for words in said:
            assert words in result.stderr
        assert not self.out.exists()


@pytest.fixture
def place(tmp_path: Path, anabranch: Command) -> Place:
    return Place(tmp_path, anabranch)


def total(base: torch.Tensor, *models: torch.Tensor) -> torch.Tensor:
    """Task arithmetic with weights of 1, in its order."""
    change = torch.zeros_like(base)
    for model in models:
        change = change + (model - base)
    return base + change


def check(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def plain(place: Place) -> Tensors:
    return {name: total(place.base[name], *(model[name] for model in place.models)) for name in place.base}


# -- names of files ----------------------------------------------------------------------------------------------------


def one_file(name: str) -> Callable[[Path, Tensors], None]:
    def write(folder: Path, tensors: Tensors) -> None:
        save_file(tensors, folder / name)

    return write


def shards(pattern: str, index: str | None) -> Callable[[Path, Tensors], None]:
    def write(folder: Path, tensors: Tensors) -> None:
        names = sorted(tensors)
        where = {}
        for i, part in enumerate((names[:2], names[2:])):
            file = pattern.format(i + 1)
            save_file({name: tensors[name] for name in part}, folder / file)
            where.update(dict.fromkeys(part, file))
        if index is not None:
            (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))

    return write


@pytest.mark.parametrize(
    "write",
    [
        one_file("pytorch_model.safetensors"),
        one_file("model.fp16.safetensors"),
        one_file("consolidated.safetensors"),
        one_file("consolidated.00.safetensors"),
        shards("pytorch_model-{:05d}-of-00002.safetensors", "pytorch_model.safetensors.index.json"),
        shards("model.fp16-{:05d}-of-00002.safetensors", "model.safetensors.index.fp16.json"),
        shards("model-{:05d}-of-00002.safetensors", None),
        shards("consolidated.{:02d}.safetensors", None),
        shards("weights_{}.safetensors", None),
    ],
)
def test_other_names_of_files(place: Place, write: Callable[[Path, Tensors], None]) -> None:
    place.write()
    for folder, tensors in zip(place.folders()[1:], place.models, strict=True):
        (folder / "model.safetensors").unlink()
        write(folder, tensors)
    check(place.merged(), plain(place))


@pytest.mark.parametrize("name", ["consolidated.safetensors", "model.fp16.safetensors", "adapter_model.safetensors"])
def test_weights_beside_the_checkpoint_are_reported(place: Place, name: str) -> None:
    place.write()
    save_file({"other": torch.ones(3)}, place.folder / "model0" / name)
    check(place.merged(), plain(place))
    assert f"model0: not part of the checkpoint and not read: {name}" in place.said


def test_several_indexes(place: Place) -> None:
    place.write()
    folder = place.folder / "model0"
    (folder / "model.safetensors").unlink()
    shards("a-{}.safetensors", "a.safetensors.index.json")(folder, place.models[0])
    shards("b-{}.safetensors", "b.safetensors.index.json")(folder, place.models[0])
    place.refused("several indexes: a.safetensors.index.json, b.safetensors.index.json")


def test_the_same_tensors_in_two_files(place: Place) -> None:
    place.write()
    (place.folder / "model0" / "model.safetensors").unlink()
    for name in ("model.fp16.safetensors", "model.fp32.safetensors"):
        save_file(place.models[0], place.folder / "model0" / name)
    place.refused("is in model.fp16.safetensors and again in model.fp32.safetensors", "Keep one of the files")


def test_numbered_files_of_which_one_is_missing(place: Place) -> None:
    place.write()
    (place.folder / "model1" / "model.safetensors").unlink()
    save_file(place.models[1], place.folder / "model1" / "pytorch_model-00001-of-00002.safetensors")
    place.refused("1 of 2 shards of 'pytorch_model' are there")


# -- vocabularies ------------------------------------------------------------------------------------------------------


def resize(tensors: Tensors, rows: int) -> None:
    for name in (EMBEDDING, HEAD):
        more = torch.full((max(0, rows - 20), 8), 7.0)
        tensors[name] = torch.cat([tensors[name], more])[:rows]


@pytest.mark.parametrize("rows", [17, 24])
@pytest.mark.parametrize("method", ["task_arithmetic", "cabs", "ties", "dare_linear", "magnitude"])
def test_a_fine_tune_with_another_vocabulary(place: Place, rows: int, method: str) -> None:
    """Rows that the fine-tune lacks have no change; rows that the base lacks are left out."""
    unpadded = {name: tensor.clone() for name, tensor in place.models[0].items()}
    for name in (EMBEDDING, HEAD):
        unpadded[name][rows:] = place.base[name][rows:]
    resize(place.models[0], rows)
    place.write()
    parameters = {} if method == "task_arithmetic" else {"density": 0.5}
    keys = {"merge_method": method, "parameters": parameters, "vocab": "intersect"}
    found = place.merged(**keys)
    assert "rows that only one side has keep the base's values" in place.said
    place.models[0] = unpadded
    place.write()
    place.folder /= "again"
    place.folder.mkdir()
    place.write()
    check(found, place.merged(**keys))


def test_another_vocabulary_is_an_error_that_says_what_to_do(place: Place) -> None:
    resize(place.models[1], 24)
    place.write()
    place.refused("'lm_head.weight' has shape [24, 8], the reference has [20, 8]; set `vocab: intersect`")


@pytest.mark.parametrize("method", ["linear", "slerp", "nuslerp", "karcher"])
def test_averages_have_no_rows_to_fall_back_to(place: Place, method: str) -> None:
    resize(place.models[1], 24)
    place.write()
    models = [{"model": str(folder)} for folder in place.folders()[1:]]
    parameters = {"t": 0.5} if method == "slerp" else {}
    keys = {"merge_method": method, "base_model": None, "models": models, "parameters": parameters}
    if method == "slerp":
        keys["base_model"] = str(place.folders()[1])
    place.refused("has shape [24, 8]", f"{method} has no base whose rows could be kept", vocab="intersect", **keys)


# -- tied weights ------------------------------------------------------------------------------------------------------


def test_models_that_store_one_matrix_under_either_name(place: Place) -> None:
    """The base as transformers saves it, a model as safetensors' save_model does."""
    for tensors in (place.base, place.models[1]):
        del tensors[HEAD]
    del place.models[0][EMBEDDING]
    place.write()
    expected = {n: total(place.base[n], *(m[n] for m in place.models)) for n in (PROJECTION, "model.norm.weight")}
    expected[EMBEDDING] = total(place.base[EMBEDDING], place.models[0][HEAD], place.models[1][EMBEDDING])
    check(place.merged(), expected)
    assert f"model0: {HEAD} is tied and merged as {EMBEDDING}" in place.said


def test_a_tied_model_that_stores_its_matrix_twice(place: Place) -> None:
    del place.base[HEAD]
    del place.models[1][HEAD]
    place.models[0][HEAD] = place.models[0][EMBEDDING].clone()
    place.configs[0] = place.configs[1] = {"model_type": "test", "tie_word_embeddings": True}
    place.write()
    check(place.merged(), plain(place))
    assert f"model0: {HEAD} is a copy of {EMBEDDING}, to which it is tied, and is not read" in place.said


def test_a_base_that_stores_its_matrix_twice(place: Place) -> None:
    place.base[HEAD] = place.base[EMBEDDING].clone()
    for model in place.models:
        del model[HEAD]
    place.configs = [{"model_type": "test", "text_config": {"tie_word_embeddings": True}} for _ in range(3)]
    place.write()
    found = place.merged()
    assert torch.equal(found[HEAD], found[EMBEDDING])
    assert torch.equal(found[EMBEDDING], total(place.base[EMBEDDING], *(m[EMBEDDING] for m in place.models)))
    assert f"model1: {EMBEDDING} is tied and merged as {HEAD}, too" in place.said


def test_a_model_that_unties_its_head(place: Place) -> None:
    del place.base[HEAD]
    del place.models[1][HEAD]
    place.configs[0]["tie_word_embeddings"] = True
    place.configs[1]["tie_word_embeddings"] = False
    place.write()
    place.refused("model0 has 1 tensors", HEAD)


def test_a_model_that_lacks_its_head_and_is_not_tied(place: Place) -> None:
    del place.models[0][HEAD]
    place.configs = [{"model_type": "test", "tie_word_embeddings": False} for _ in range(3)]
    place.write()
    found = place.merged()
    assert torch.equal(found[HEAD], total(place.base[HEAD], place.models[1][HEAD]))
    assert "model0 lacks 1 of the reference's tensors: lm_head.weight" in place.said


def test_an_adapter_that_brings_a_head_of_its_own(place: Place) -> None:
    """As PEFT saves `modules_to_save: [lm_head]` of a tied model."""
    place.base = {name: tensor for name, tensor in place.base.items() if name != HEAD}
    place.configs[0]["tie_word_embeddings"] = True
    place.models = [place.base, place.base]
    place.write()
    projection = torch.randn(12, 8)
    head = {HEAD: torch.randn(20, 8), PROJECTION: projection}
    adapter = write_adapter(place.folder / "adapter", head, modules_to_save=["lm_head", "up_proj"])
    models = [{"model": str(place.folder / "base"), "adapter": str(adapter)}]
    place.refused("has 1 tensors that", HEAD, "extra_tensors: ignore", models=models)
    expected = place.base | {PROJECTION: total(place.base[PROJECTION], projection)}
    check(place.merged(models=models, extra_tensors="ignore"), expected)


# -- tensors that only some have ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["task_arithmetic", "cabs", "ties"])
def test_a_tensor_that_one_model_lacks_is_unchanged_there(place: Place, method: str) -> None:
    del place.models[0][PROJECTION]
    place.write()
    parameters = {} if method == "task_arithmetic" else {"density": 0.5}
    found = place.merged(merge_method=method, parameters=parameters)
    assert f"lacks 1 of the reference's tensors: {PROJECTION}" in place.said
    place.models[0][PROJECTION] = place.base[PROJECTION]
    place.folder /= "again"
    place.folder.mkdir()
    place.write()
    check(found, place.merged(merge_method=method, parameters=parameters))


def test_an_average_is_taken_over_the_models_that_have_the_tensor(place: Place) -> None:
    del place.models[1][PROJECTION]
    place.write()
    models = [{"model": str(folder), "parameters": {"weight": 0.3}} for folder in place.folders()]
    found = place.merged(merge_method="linear", base_model=None, models=models)
    weight = torch.tensor(0.3)
    expected = (place.base[PROJECTION] * weight + place.models[0][PROJECTION] * weight) / (weight + weight)
    assert torch.equal(found[PROJECTION], expected)


# -- experts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["task_arithmetic", "cabs", "ties", "dare_ties", "magnitude"])
def test_stacked_experts_merge_as_the_matrix_of_their_elements(place: Place, method: str) -> None:
    """A tensor [experts, rows, columns] is its elements in order, as a matrix [experts * rows, columns] is."""
    generator = torch.Generator().manual_seed(8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    stacked = [torch.randn(4, 6, 10, generator=generator) for _ in range(3)]
    parameters = {} if method == "task_arithmetic" else {"density": 0.3}
    outputs = []
    for shape in ((4, 6, 10), (24, 10)):
        for tensors, tensor in zip([place.base, *place.models], stacked, strict=True):
            tensors[name] = tensor.reshape(shape)
        place.folder /= f"{len(shape)}d"
        place.folder.mkdir()
        place.write()
        outputs.append(place.merged(merge_method=method, parameters=parameters)[name])
    assert outputs[0].shape == (4, 6, 10)
    assert torch.equal(outputs[0].reshape(24, 10), outputs[1])
    assert not torch.equal(outputs[0], stacked[0])


def test_another_number_of_experts(place: Place) -> None:
    for tensors, experts in ((place.base, 4), (place.models[0], 3), (place.models[1], 4)):
        tensors["model.layers.0.mlp.experts.gate_up_proj"] = torch.ones(experts, 6, 10)
    place.write()
    place.refused("has shape [3, 6, 10], the reference has [4, 6, 10]", vocab="intersect")
