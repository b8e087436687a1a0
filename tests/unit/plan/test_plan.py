"""The plan: which shards, what happens to every tensor, what identifies it, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from anabranch.engine.errors import InputError, RecipeError
from anabranch.engine.json_text import canonical_json
from anabranch.engine.plan.demands import passes_over
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.plan.layout import cut_shards
from anabranch.engine.plan.plan import NUMERICS, Plan
from anabranch.engine.recipe.parse import load_recipe

from ...merging import write_checkpoint, write_recipe

# -- shards ------------------------------------------------------------------------------------------------------------


def tensors_of(*sizes: int) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(f"t{i}", "U8", (size,)) for i, size in enumerate(sizes)]


def test_shards_are_filled_in_order() -> None:
    assert cut_shards(tensors_of(4, 4, 4, 4, 4), 10) == [[0, 1], [2, 3], [4]]
    assert cut_shards(tensors_of(5, 5, 1, 9, 1), 10) == [[0, 1], [2, 3], [4]]
    assert cut_shards(tensors_of(1, 2, 3), 6) == [[0, 1, 2]]


def test_a_tensor_larger_than_a_shard_has_one_of_its_own() -> None:
    assert cut_shards(tensors_of(3, 50, 3, 3), 10) == [[0], [1], [2, 3]]
    assert cut_shards(tensors_of(50), 10) == [[0]]
    assert cut_shards(tensors_of(50, 60), 10) == [[0], [1]]


def test_empty_tensors_take_no_room() -> None:
    assert cut_shards(tensors_of(10, 0, 0, 1), 10) == [[0, 1, 2], [3]]
    assert cut_shards(tensors_of(0), 10) == [[0]]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(1, 60))
def test_every_tensor_is_in_one_shard_in_order_and_no_shard_is_too_large(sizes: list[int], limit: int) -> None:
    shards = cut_shards(tensors_of(*sizes), limit)
    assert [i for shard in shards for i in shard] == list(range(len(sizes)))
    for shard, following in zip(shards, [*shards[1:], None], strict=True):
        size = sum(sizes[i] for i in shard)
        assert size <= limit or [sizes[i] for i in shard].count(0) == len(shard) - 1
        if following is not None:
            assert size + sizes[following[0]] > limit, "filled greedily"


# -- tasks -------------------------------------------------------------------------------------------------------------


class Place:
    """A folder with a base, two models and a recipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = {
            "model.embed.weight": torch.randn(8, 4),
            "model.layers.0.w": torch.randn(6, 4).bfloat16(),
            "model.layers.1.w": torch.randn(6, 4).bfloat16(),
            "model.lookup": torch.arange(4),
            "model.norm": torch.randn(4),
        }
        self.models = [{n: t.clone() for n, t in self.base.items()} for _ in range(2)]
        self.recipe: dict[str, Any] = {"merge_method": "ties", "parameters": {"density": 0.5}}

    def plan(self, **changes: Any) -> Plan:
        if not (self.folder / "base").exists():
            self.write()
        whole = {"base_model": "base", "models": [{"model": "model0"}, {"model": "model1"}]} | self.recipe | changes
        path = write_recipe(self.folder / "recipe.yml", whole)
        return open_inputs(load_recipe(path), self.folder).plan

    def write(self) -> None:
        write_checkpoint(self.folder / "base", self.base)
        for i, tensors in enumerate(self.models):
            write_checkpoint(self.folder / f"model{i}", tensors)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    torch.manual_seed(0)
    monkeypatch.chdir("/")
    return Place(tmp_path)


def test_every_tensor_of_the_base_has_one_task_that_says_what_happens(place: Place) -> None:
    del place.models[0]["model.norm"], place.models[1]["model.norm"]
    plan = place.plan(exclude=["*.embed.*"])
    assert {task.name: task.reason for task in plan.tasks} == {
        "model.embed.weight": "excluded",
        "model.layers.0.w": "",
        "model.layers.1.w": "",
        "model.lookup": "I64, identical in all models",
        "model.norm": "in no model",
    }
    assert sorted(i for shard in plan.shards for i in shard.tasks) == list(range(len(plan.tasks)))


def test_bytes_are_counted_as_they_will_be_read_and_written(place: Place) -> None:
    plan = place.plan(exclude=["*.embed.*"])
    sizes = {task.name: (task.read_bytes, task.write_bytes) for task in plan.tasks}
    assert sizes["model.embed.weight"] == (8 * 4 * 4, 8 * 4 * 4)
    assert sizes["model.layers.0.w"] == (3 * 48, 48)
    assert sizes["model.lookup"] == (3 * 32, 32)
    assert plan.read_bytes == sum(read for read, _ in sizes.values())
    assert plan.write_bytes == sum(shard.size for shard in plan.shards)
    assert plan.shards[0].size == len(plan.shards[0].header) + sum(written for _, written in sizes.values())


def test_the_output_dtype_is_for_floats_only(place: Place) -> None:
    plan = place.plan(out_dtype="float16")
    assert {task.name: task.out_dtype for task in plan.tasks} == {
        name: "I64" if name == "model.lookup" else "F16" for name in place.base
    }
    assert {task.out_dtype for task in place.plan().tasks} == {"F32", "BF16", "I64"}


def test_a_linear_merge_reads_the_reference_only_as_a_model(place: Place) -> None:
    models = [{"model": "base"}, {"model": "model0"}]
    place.recipe = {"merge_method": "linear", "models": models, "exclude": ["model.embed.*"]}
    place.write()
    path = write_recipe(place.folder / "recipe.yml", place.recipe)
    plan = open_inputs(load_recipe(path), place.folder).plan
    read = {task.name: task.read_bytes for task in plan.tasks}
    assert read["model.layers.0.w"] == 2 * 48
    assert read["model.embed.weight"] == 8 * 4 * 4


@pytest.mark.parametrize(
    ("recipe", "passes"),
    [
        ({"merge_method": "task_arithmetic", "parameters": {}}, 1),
        ({"merge_method": "cabs", "parameters": {"density": 0.5}}, 1),
        ({"merge_method": "dare_ties", "parameters": {"density": 0.5}}, 1),
        ({"merge_method": "ties", "parameters": {"density": 0.5}}, 3),
        ({"merge_method": "breadcrumbs", "parameters": {"density": 0.5}}, 3),
        ({"merge_method": "della", "parameters": {"density": 0.5}}, 1),
        ({"merge_method": "sce", "parameters": {"select_topk": 0.5}}, 4),
        ({"merge_method": "sce", "parameters": {}}, 2),
        ({"merge_method": "ram", "parameters": {}}, 1),
        ({"merge_method": "ramplus_tl", "parameters": {}}, 2),
        ({"merge_method": "ramplus_tl", "parameters": {"r": 0}}, 1),
        ({"merge_method": "karcher", "parameters": {}, "base_model": None}, 2),
        ({"merge_method": "model_stock", "parameters": {}}, 2),
        ({"merge_method": "model_stock", "parameters": {"filter_wise": True}}, 1),
        ({"merge_method": "nuslerp", "parameters": {"nuslerp_flatten": False}}, 1),
        ({"merge_method": "nuslerp", "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True}}, 2),
        ({"merge_method": "ties", "parameters": {"density": 0.5, "scope": "model"}}, 1),
        ({"merge_method": "ties", "parameters": {"density": {"tadrop": {}}}}, 4),
        ({"merge_method": "cabs", "parameters": {"density": {"tadrop": {"statistic": "quantile"}}}}, 3),
        ({"merge_method": "cabs", "parameters": {"density": {"tadrop": {"mean": 0.5}}}}, 1),
        ({"merge_method": "magnitude", "parameters": {"density": 0.5, "conflict": "sequential"}}, 5),
        ({"merge_method": "cabs", "parameters": {"density": 0.5, "rescale": True, "rescale_norm": "l1"}}, 3),
    ],
)
def test_how_often_inputs_are_looked_at(place: Place, recipe: dict[str, Any], passes: int) -> None:
    task = next(t for t in place.plan(**recipe).tasks if t.method is not None)
    assert passes_over(task.method, task.is_double) == passes


@pytest.mark.parametrize(
    ("density", "epsilon", "fits"),
    [
        (0.5, 0.15, True),
        (1.0, 0.15, True),
        (0.0, 0.15, True),
        (0.15, 0.15, False),
        (0.9, 0.1, False),
        (0.9, 0.09, True),
    ],
)
def test_probabilities_of_ranked_elements_lie_between_0_and_1(
    place: Place, density: float, epsilon: float, fits: bool
) -> None:
    recipe = {"merge_method": "della", "parameters": {"density": density, "epsilon": epsilon}}
    if fits:
        place.plan(**recipe)
        return
    with pytest.raises(RecipeError, match=r"tensor 'model.* of .*model0: density 0.\d+ \+- epsilon 0.\d+ must lie"):
        place.plan(**recipe)


@pytest.mark.parametrize(
    ("density", "scope", "kind"),
    [
        (0.5, "tensor", ""),
        (0.5, "model", "threshold"),
        ({"tadrop": {}}, "tensor", ""),
        ({"tadrop": {"mean": 0.3}}, "tensor", "moments"),
        ({"tadrop": {"mean": 0.3, "statistic": "quantile"}}, "tensor", "quantiles"),
    ],
)
def test_what_must_be_known_of_whole_models(place: Place, density: Any, scope: str, kind: str) -> None:
    assert place.plan(parameters={"density": density, "scope": scope}).survey_kind == kind


# -- identity ----------------------------------------------------------------------------------------------------------


def test_the_plan_id_is_the_digest_of_what_the_plan_file_says(place: Place) -> None:
    described = place.plan().describe()
    plan_id = described.pop("plan_id")
    assert described.keys() == {"numerics", "recipe", "inputs", "layout"}
    assert hashlib.sha256(canonical_json(described)).hexdigest() == plan_id
    assert described["numerics"] == NUMERICS


def test_the_same_recipe_in_other_words_has_the_same_id(place: Place) -> None:
    plan_id = place.plan().plan_id
    assert place.plan().plan_id == plan_id
    place.recipe["parameters"] = {"density": 0.5, "lambda": 1, "int8_mask": True}
    assert place.plan(name="another-label", seed=0).plan_id == plan_id
    absolute = [{"model": str(place.folder / "model0")}, {"model": f"{place.folder}/../{place.folder.name}/model1/"}]
    assert place.plan(models=absolute, base_model=f"file://{place.folder}/base").plan_id == plan_id
    assert place.plan(output={"shard_size": "2GB"}).plan_id == plan_id


def test_what_decides_bytes_decides_the_id(place: Place) -> None:
    ids = {place.plan().plan_id}
    for change in (
        {"parameters": {"density": 0.25}},
        {"models": [{"model": "model1"}, {"model": "model0"}]},
        {"models": [{"model": "model0"}, {"model": "model1", "parameters": {"weight": 0.5}}]},
        {"out_dtype": "float32"},
        {"exclude": ["*.norm"]},
        {"seed": 1},
        {"output": {"shard_size": 100}},
        {"overflow": "saturate"},
    ):
        plan_id = place.plan(**change).plan_id
        assert plan_id not in ids, change
        ids.add(plan_id)


def test_inputs_that_changed_make_another_plan(place: Place) -> None:
    ids = {place.plan().plan_id}
    file = place.folder / "model0" / "model.safetensors"
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    ids.add(place.plan().plan_id)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert place.plan().plan_id in ids
    (place.folder / "base" / "config.json").write_text('{"model_type": "other"}')
    ids.add(place.plan().plan_id)
    save_file({n: t + 1 for n, t in place.models[0].items()}, file)
    ids.add(place.plan().plan_id)
    assert len(ids) == 4


def test_the_plan_knows_nothing_of_output_hosts_or_times(place: Place) -> None:
    text = json.dumps(place.plan().describe())
    assert "recipe.yml" not in text
    assert os.uname().nodename not in text
    assert "threads" not in text


# -- warnings and refusals ---------------------------------------------------------------------------------------------


def test_missing_tensors_are_a_warning_once_per_model_or_an_error(place: Place) -> None:
    del place.models[1]["model.norm"], place.models[1]["model.layers.1.w"]
    [warning] = place.plan().warnings
    assert "model1 lacks 2 of the reference's tensors: model.norm, model.layers.1.w" in warning
    assert place.plan(exclude=["model.norm", "model.layers.1.*"]).warnings == ()
    with pytest.raises(InputError, match="model1 lacks 2"):
        place.plan(strict=True)


def test_long_lists_are_cut(place: Place) -> None:
    place.base |= {f"extra.{i}": torch.zeros(1) for i in range(40)}
    [first, _] = place.plan().warnings
    assert "lacks 40" in first
    assert "and 37 more" in first


def test_extra_tensors_are_an_error_or_left_out(place: Place) -> None:
    place.models[0]["lm_head.weight"] = torch.zeros(3)
    with pytest.raises(InputError, match=r"model0 has 1 tensors that .*base does not have: lm_head.weight"):
        place.plan()
    plan = place.plan(extra_tensors="ignore")
    assert "lm_head.weight" not in {task.name for task in plan.tasks}
    assert "they are left out" in plan.warnings[0]
    assert place.plan(exclude=["lm_head.*"]).warnings == ()


def test_buffers_that_code_computes_are_left_out_without_being_asked(place: Place) -> None:
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    place.models[0] |= {buffer: torch.ones(2), "lm_head.weight": torch.zeros(3)}
    with pytest.raises(InputError, match=r"model0 has 1 tensors that .*base does not have: lm_head.weight"):
        place.plan()
    plan = place.plan(exclude=["lm_head.*"])
    assert buffer not in {task.name for task in plan.tasks}
    assert [w for w in plan.warnings if "left out" in w and buffer in w and "model0" in w] == list(plan.warnings)


def test_all_shapes_that_do_not_fit_are_listed_with_both_sides(place: Place) -> None:
    place.models[0]["model.norm"] = torch.zeros(5)
    place.models[1]["model.layers.0.w"] = torch.zeros(4, 6)
    with pytest.raises(InputError) as raised:
        place.plan()
    said = str(raised.value)
    assert "2 tensors cannot be merged" in said
    assert "model0: 'model.norm' has shape [5], the reference has [4]" in said
    assert "model1: 'model.layers.0.w' has shape [4, 6], the reference has [6, 4]" in said


def test_other_numbers_of_rows_need_a_word_in_the_recipe(place: Place) -> None:
    place.models[0]["model.embed.weight"] = torch.zeros(10, 4)
    with pytest.raises(InputError, match="vocab: intersect"):
        place.plan()
    [warning] = place.plan(vocab="intersect").warnings
    assert "model.embed.weight" in warning
    assert place.plan(exclude=["*.embed.*"]).warnings == ()


@pytest.mark.parametrize("vocab", ["error", "intersect"])
def test_other_columns_or_vectors_are_never_intersected(place: Place, vocab: str) -> None:
    place.models[0]["model.embed.weight"] = torch.zeros(8, 5)
    place.models[1]["model.norm"] = torch.zeros(3)
    with pytest.raises(InputError, match="2 tensors cannot be merged"):
        place.plan(vocab=vocab)


def test_kinds_of_numbers_do_not_mix(place: Place) -> None:
    place.models[0]["model.lookup"] = torch.arange(4).int()
    place.models[1]["model.norm"] = torch.arange(4)
    with pytest.raises(InputError) as raised:
        place.plan()
    assert "'model.lookup' is I32, the reference has I64" in str(raised.value)
    assert "'model.norm' is I64, the reference has F32" in str(raised.value)


def test_a_threshold_over_the_whole_model_takes_no_f64(place: Place) -> None:
    place.models[0]["model.norm"] = torch.zeros(4, dtype=torch.float64)
    with pytest.raises(InputError, match=r"'model.norm' is F64"):
        place.plan(parameters={"density": 0.5, "scope": "model"})
    assert place.plan(parameters={"density": 0.5}).tasks


def test_an_empty_tensor_of_another_shape_is_refused_too(place: Place) -> None:
    place.base["empty"] = torch.zeros(0, 4)
    place.models[0]["empty"] = torch.zeros(2, 4)
    place.models[1]["empty"] = torch.zeros(0, 4)
    with pytest.raises(InputError, match="'empty' has shape"):
        place.plan()


def test_a_parameter_without_a_value_for_some_tensor_is_refused_with_its_name(place: Place) -> None:
    with pytest.raises(RecipeError, match=r"'model\.embed\.weight'"):
        place.plan(merge_method="magnitude", parameters={"density": [{"filter": "layers", "value": 0.5}]})


def test_the_order_of_the_base_is_kept_whatever_order_models_have(place: Place) -> None:
    names = list(place.base)
    random.Random(0).shuffle(names)
    place.models[0] = {name: place.models[0][name] for name in names}
    first = place.plan()
    # One file lies by dtype size, then by name, as the library writes it.
    assert [task.name for task in first.tasks] == [
        "model.lookup",
        "model.embed.weight",
        "model.norm",
        "model.layers.0.w",
        "model.layers.1.w",
    ]
