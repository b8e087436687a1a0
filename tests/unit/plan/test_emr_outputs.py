"""EMR-Merging by hand, and what its parts refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from anabranch.engine.errors import InputError, RecipeError
from anabranch.engine.plan.inputs import inputs_of_parts, open_inputs
from anabranch.engine.recipe.parse import load_recipe, parse_recipe
from anabranch.engine.recipe.schema import task_name

from ...adapters import write_adapter
from ...merging import Tensors, load_output, merge, merge_parts, write_checkpoint, write_recipe

BASE = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0]), "other": torch.ones(2, 5)}


def write(folder: Path, base: Tensors, models: dict[str, Tensors], **keys: Any) -> Path:
    for name, tensors in {"base": base, **models}.items():
        write_checkpoint(folder / name, tensors)
    content = {"merge_method": "emr", "base_model": str(folder / "base")}
    entries = [{"model": str(folder / name)} for name in models]
    return write_recipe(folder / "emr.yml", content | {"models": entries} | keys)


def two_tasks(folder: Path, **keys: Any) -> Path:
    """Differences that agree, outvote each other, cancel each other, or are 0."""
    math = {"w": BASE["w"] + torch.tensor([2.0, 3.0, -1.0, 1.0, 0.0, 0.0]), "other": BASE["other"]}
    code = {"w": BASE["w"] + torch.tensor([4.0, -1.0, -2.0, -1.0, 0.0, 5.0]), "other": BASE["other"]}
    return write(folder, BASE, {"math": math, "code": code}, **keys)


def model_of(folder: Path, task: str, base: str = "base", out: str = "full", **keys: Any) -> dict[str, torch.Tensor]:
    content = {"merge_method": "passthrough", "models": [{"model": f"{folder / base}+{folder / 'out' / task}"}]}
    merge(write_recipe(folder / "task.yml", content | keys), folder / out)
    return load_output(folder / out)


def test_two_tasks_by_hand(tmp_path: Path) -> None:
    outcomes = merge_parts(two_tasks(tmp_path), tmp_path / "out")
    assert list(outcomes) == ["unified", "math", "code"]
    unified = load_output(tmp_path / "out" / "unified")
    # Where the sum is 0, as in the fourth place, - is elected.
    assert unified["w"].tolist() == [4.0, 3.0, -2.0, -1.0, 0.0, 5.0]
    assert unified["other"].tolist() == torch.zeros(2, 5).tolist()
    math, code = (load_output(tmp_path / "out" / task) for task in ("math", "code"))
    assert math["w"].tolist() == [0b000111] and code["w"].tolist() == [0b101101]
    assert math["other"].tolist() == [0, 0]
    # 2 + 3 + 1 + 1 changes to 4 + 3 + 2 that the mask keeps; 4 + 1 + 2 + 1 + 5 to 4 + 2 + 1 + 5.
    said = [json.loads((tmp_path / "out" / task / "anabranch.emr.json").read_text()) for task in ("math", "code")]
    assert [(each["changes"], each["selected"]) for each in said] == [(7.0, 9.0), (13.0, 12.0)]
    assert [each["scale"] for each in said] == [7 / 9, 13 / 12]
    assert [row["model"] for row in outcomes["code"].manifest.summary] == [1]
    assert outcomes["code"].manifest.summary[0]["scale"] == 13 / 12
    made = model_of(tmp_path, "math")
    scale = torch.tensor(7 / 9)
    assert torch.equal(made["w"], 1 + torch.tensor([4.0, 3.0, -2.0, 0.0, 0.0, 0.0]) * scale)
    assert torch.equal(made["other"], BASE["other"])


def test_one_task_keeps_its_own_values(tmp_path: Path) -> None:
    tuned = {name: tensor + 0.25 for name, tensor in BASE.items()}
    merge_parts(write(tmp_path, BASE, {"only": tuned}), tmp_path / "out")
    made = model_of(tmp_path, "only")
    assert all(torch.equal(made[name], tensor) for name, tensor in tuned.items())


def test_a_task_without_changes_is_its_base(tmp_path: Path) -> None:
    models = {"none": BASE, "some": {"w": BASE["w"] + 1}}
    merge_parts(write(tmp_path, BASE, models, allow_unchanged=True), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "none" / "anabranch.emr.json").read_text())["scale"] == 1.0
    made = model_of(tmp_path, "none")
    assert all(torch.equal(made[name], tensor) for name, tensor in BASE.items())


def test_what_is_not_merged_stays_with_the_base(tmp_path: Path) -> None:
    base = {**BASE, "ids": torch.arange(4), "head": torch.ones(3), "empty": torch.zeros(0, 2)}
    tuned = {**base, "w": BASE["w"] + 1, "head": torch.zeros(3)}
    merge_parts(write(tmp_path, base, {"a": tuned}, exclude=["head"], out_dtype="bfloat16"), tmp_path / "out")
    for part in ("unified", "a"):
        folder = tmp_path / "out" / part
        assert load_output(folder).keys() == {"w", "other"}
        assert {path.name for path in folder.iterdir() if path.is_file()} == {
            "README.md",
            "anabranch.emr.json",
            "anabranch.inputs.parquet",
            "anabranch.manifest.json",
            "anabranch.tensors.parquet",
            "model.safetensors",
        }
        assert "no model" in (folder / "README.md").read_text()
    with safe_open(tmp_path / "out" / "a" / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["shapes"]) == {"w": [6], "other": [2, 5]}
    made = model_of(tmp_path, "a", out_dtype="float16")
    assert made.keys() == base.keys()
    assert torch.equal(made["head"], torch.ones(3).half()) and torch.equal(made["ids"], base["ids"])
    assert torch.equal(made["w"], (BASE["w"] + 1).half())


def test_integers_that_differ_are_found(tmp_path: Path) -> None:
    base = {**BASE, "ids": torch.arange(4)}
    with pytest.raises(InputError, match="'ids' differs from the base"):
        merge_parts(write(tmp_path, base, {"a": {**base, "ids": torch.zeros(4).long()}}), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*/anabranch.manifest.json"))


def test_rows_that_only_one_side_has(tmp_path: Path) -> None:
    tuned = {"w": BASE["w"], "other": torch.full((1, 5), 3.0)}
    merge_parts(write(tmp_path, BASE, {"short": tuned}, vocab="intersect"), tmp_path / "out")
    assert load_output(tmp_path / "out" / "unified")["other"].tolist() == [[2.0] * 5, [0.0] * 5]
    assert load_output(tmp_path / "out" / "short")["other"].tolist() == [0b00011111, 0]


def test_tasks_that_were_trained_as_adapters(tmp_path: Path) -> None:
    base = {"layer.weight": torch.ones(2, 5)}
    write_checkpoint(tmp_path / "base", base)
    rows = {"up": torch.tensor([[1.0], [0.0]]), "down": torch.tensor([[-3.0], [2.0]])}
    for name, b in rows.items():
        factors = {"layer.lora_A.weight": torch.ones(1, 5), "layer.lora_B.weight": b}
        write_adapter(tmp_path / name, factors, r=1, lora_alpha=1)
    entries = [{"model": str(tmp_path / "base"), "adapter": str(tmp_path / name)} for name in rows]
    content = {"merge_method": "emr", "base_model": str(tmp_path / "base"), "models": entries}
    assert list(merge_parts(write_recipe(tmp_path / "emr.yml", content), tmp_path / "out")) == ["unified", *rows]
    unified = load_output(tmp_path / "out" / "unified")["layer.weight"]
    assert unified.tolist() == [[-3.0] * 5, [2.0] * 5]
    assert torch.equal(model_of(tmp_path, "down")["layer.weight"], base["layer.weight"] + unified)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    merge_parts(two_tasks(tmp_path), tmp_path / "out")
    return tmp_path


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("out/unified", "the unified task vector of EMR-Merging, which is no model"),
        ("out/math", "the masks of the task 'math' of EMR-Merging, which need their base"),
        ("base+out/unified", "the unified task vector of EMR-Merging, which is no model"),
        ("math+out/math", "the masks of the task 'math' belong to another base"),
    ],
)
def test_parts_are_no_models(merged: Path, model: str, said: str) -> None:
    write_checkpoint(merged / "math", {"w": BASE["w"]})
    named = "+".join(str(merged / part) for part in model.split("+"))
    recipe = write_recipe(merged / "r.yml", {"merge_method": "linear", "models": [{"model": named}]})
    with pytest.raises(InputError, match=said):
        open_inputs(load_recipe(recipe), merged)


def test_a_copy_of_the_base_will_do(merged: Path) -> None:
    shutil.copytree(merged / "base", merged / "copy")
    shutil.rmtree(merged / "out" / "code")
    expected = model_of(merged, "math", out="first")
    found = model_of(merged, "math", base="copy", out="second")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_unified_vector_of_another_merge(merged: Path) -> None:
    merge_parts(two_tasks(merged, out_dtype="float16"), merged / "other")
    shutil.rmtree(merged / "out" / "unified")
    with pytest.raises(InputError, match=r"no unified task vector, which .*/out/math needs"):
        model_of(merged, "math")
    shutil.copytree(merged / "other" / "unified", merged / "out" / "unified")
    with pytest.raises(InputError, match=r"not the unified task vector that .*/out/math belongs to"):
        model_of(merged, "math")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scale": "1"}, "is damaged"),
        ({"scale": 10**400}, "is damaged"),
        ({"bits": "most significant first"}, "is damaged"),
        ({"base": {}}, "is damaged"),
        ({"version": 2}, "is not what this version writes"),
    ],
)
def test_a_damaged_description(merged: Path, change: dict[str, Any], said: str) -> None:
    path = merged / "out" / "math" / "anabranch.emr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=said):
        model_of(merged, "math")


def test_masks_that_do_not_fit(merged: Path) -> None:
    path = merged / "out" / "math" / "model.safetensors"
    save_file({"w": torch.zeros(2, dtype=torch.uint8), "other": torch.zeros(2, dtype=torch.uint8)}, path)
    with pytest.raises(InputError, match=r"'w' has \[2\] bytes of bits"):
        model_of(merged, "math")
    save_file({"unknown": torch.zeros(1, dtype=torch.uint8)}, path)
    with pytest.raises(InputError, match=r"'unknown' has a mask, and .*base lacks it"):
        model_of(merged, "math")


def parts(recipe: Path) -> None:
    inputs_of_parts(open_inputs(load_recipe(recipe), recipe.parent))


def test_tensors_that_cannot_be_merged(tmp_path: Path) -> None:
    double = {name: tensor.double() for name, tensor in BASE.items()}
    with pytest.raises(InputError, match="'other' is F64 in one of the models, which emr does not take"):
        parts(write(tmp_path, BASE, {"a": double}))
    with pytest.raises(InputError, match="emr has no tensor to merge"):
        parts(write(tmp_path, BASE, {"a": BASE}, exclude=["*"]))


def test_a_base_on_which_no_masks_can_be_named(merged: Path) -> None:
    """BASE+ADAPTER+TASK is no model: what such a merge wrote could never be used."""
    factors = {"w.lora_A.weight": torch.ones(1, 5), "w.lora_B.weight": torch.ones(2, 1)}
    write_checkpoint(merged / "matrix", {"w.weight": torch.ones(2, 5)})
    write_adapter(merged / "adapter", factors, r=1, lora_alpha=1)
    for base, model in (("base+out/math", "math"), ("matrix+adapter", "matrix")):
        first, _, second = base.partition("+")
        content = {"merge_method": "emr", "base_model": f"{merged / first}+{merged / second}"}
        recipe = write_recipe(merged / "again.yml", content | {"models": [{"model": str(merged / model)}]})
        with pytest.raises(InputError, match="is a model with an adapter or masks"):
            parts(recipe)


def test_names_of_tasks() -> None:
    text = "merge_method: emr\nbase_model: b\nmodels: [{model: org/a@v2}, {model: s3://x/c/}, {model: d, name: e}]"
    assert [task_name(entry) for entry in parse_recipe(text, "r").models] == ["a", "c", "e"]
    with pytest.raises(RecipeError, match=r"models\[1\].name: the task's folder would be called 'A'"):
        parse_recipe("merge_method: emr\nbase_model: b\nmodels: [{model: a}, {model: x/A}]", "r")


def test_changes_that_fp32_does_not_hold(tmp_path: Path) -> None:
    """With `overflow: saturate`, too: nothing scales a difference that is infinite."""
    huge = {"w": torch.full((4,), -3e38)}
    for number, keys in enumerate(({}, {"overflow": "saturate"})):
        recipe = write(tmp_path / str(number), huge, {"a": {"w": -huge["w"]}}, **keys)
        with pytest.raises(InputError, match="'w' has changes that are not finite in fp32"):
            merge_parts(recipe, tmp_path / "out" / str(number))


def test_bad_values_stop_the_merge(tmp_path: Path) -> None:
    bad = {"w": torch.tensor([1.0, torch.nan]), "v": torch.ones(2)}
    recipe = write(tmp_path, {"w": torch.ones(2), "v": torch.ones(2)}, {"a": bad})
    with pytest.raises(InputError, match="'w' holds 1 NaN or Inf values"):
        merge_parts(recipe, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*/anabranch.manifest.json"))
