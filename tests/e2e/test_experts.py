"""Experts in one tensor per layer or one by one: the same merge, whichever form base, models and output have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anabranch.engine.errors import InputError, RecipeError
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.recipe.parse import load_recipe

from ..adapters import write_adapter
from ..merging import load_output, merge, write_checkpoint, write_recipe

Tensors = dict[str, torch.Tensor]
EXPERTS, ROWS, COLUMNS = 5, 6, 4
QWEN = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}
MIXTRAL = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
UNKNOWN = {"architectures": ["NoSuchModel"], "model_type": "no_such_type"}
PACKED = "model.layers.{}.mlp.experts."
APART = {
    "qwen": ("model.layers.{}.mlp.experts.{}.{}.weight", ("gate_proj", "up_proj", "down_proj"), QWEN),
    "mixtral": ("model.layers.{}.block_sparse_moe.experts.{}.{}.weight", ("w1", "w3", "w2"), MIXTRAL),
    "unknown": ("model.layers.{}.mlp.experts.{}.{}.weight", ("gate_proj", "up_proj", "down_proj"), UNKNOWN),
}
kinds = pytest.mark.parametrize("kind", APART)


def make(kind: str, seed: int, rows: int = ROWS, columns: int = COLUMNS) -> tuple[Tensors, Tensors]:
    """One by one, and the same in one tensor per layer."""
    pattern, (gate, up, down), _ = APART[kind]
    generator = torch.Generator().manual_seed(seed)
    apart, packed = {}, {}
    for layer in range(2):
        for expert in range(EXPERTS):
            for matrix, shape in ((gate, (rows, columns)), (up, (rows, columns)), (down, (columns, rows))):
                apart[pattern.format(layer, expert, matrix)] = torch.randn(shape, generator=generator)

        def of(matrix: str, expert: int, layer: int = layer) -> torch.Tensor:
            return apart[pattern.format(layer, expert, matrix)]

        both = [torch.cat([of(gate, e), of(up, e)]) for e in range(EXPERTS)]
        packed[PACKED.format(layer) + "gate_up_proj"] = torch.stack(both)
        packed[PACKED.format(layer) + "down_proj"] = torch.stack([of(down, e) for e in range(EXPERTS)])
    norm = {"model.norm.weight": torch.randn(columns, generator=generator)}
    return apart | norm, packed | norm


def recipe_for(folder: Path, base: Tensors, models: list[Tensors], config: dict[str, Any], **keys: Any) -> Path:
    write_checkpoint(folder / "base", base, 1, config)
    for i, model in enumerate(models):
        write_checkpoint(folder / f"model{i}", model, 2, config)
    content = {"merge_method": "task_arithmetic", "base_model": str(folder / "base")}
    content |= {"models": [{"model": str(folder / f"model{i}")} for i in range(len(models))]}
    return write_recipe(folder / "recipe.yml", content | keys)


def merged(recipe: Path, **options: Any) -> Tensors:
    merge(recipe, recipe.parent / "out", **options)
    return load_output(recipe.parent / "out")


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)


@kinds
@pytest.mark.parametrize("base_is_packed", [False, True])
def test_models_take_the_form_that_the_base_has(tmp_path: Path, kind: str, base_is_packed: bool) -> None:
    forms = [make(kind, seed) for seed in range(3)]
    base = forms[0][base_is_packed]
    models = [forms[1][not base_is_packed], forms[2][base_is_packed]]
    recipe = recipe_for(tmp_path, base, models, APART[kind][2], parameters={"weight": 0.25})
    expected = {
        name: value + 0.25 * (forms[1][base_is_packed][name] - value) + 0.25 * (forms[2][base_is_packed][name] - value)
        for name, value in base.items()
    }
    assert_equal(merged(recipe), expected)
    notes = open_inputs(load_recipe(recipe), tmp_path).plan.notes
    assert sum("experts are merged" in note for note in notes) == 1


@pytest.mark.parametrize("kind", ["qwen", "mixtral"])
@pytest.mark.parametrize("base_is_packed", [False, True])
@pytest.mark.parametrize("form", ["packed", "apart"])
def test_the_output_has_the_form_that_the_recipe_wants(
    tmp_path: Path, kind: str, base_is_packed: bool, form: str
) -> None:
    base, model = make(kind, 0), make(kind, 1)
    keys = {"output": {"experts": form}, "exclude": ["*layers.1*"]}
    recipe = recipe_for(tmp_path, base[base_is_packed], [model[base_is_packed]], APART[kind][2], **keys)
    wanted = 1 if form == "packed" else 0
    expected = {n: base[wanted][n] if "layers.1" in n else model[wanted][n] for n in base[wanted]}
    found = merged(recipe)
    if kind == "mixtral" and form == "apart" and base_is_packed:  # as transformers names the module now
        expected = {n.replace("block_sparse_moe", "mlp"): t for n, t in expected.items()}
    assert_equal(found, expected)


def test_tensors_of_several_windows_and_dtypes_become_one(tmp_path: Path) -> None:
    """1.3 million elements per tensor of all experts; one of these is fp32, the others bf16."""
    base, model = make("qwen", 0, 512, 256), make("qwen", 1, 512, 256)
    stored = {n: t if ".3." in n else t.bfloat16() for n, t in model[0].items()}
    recipe = recipe_for(tmp_path, base[1], [stored], QWEN)
    packed = {n: t.clone() for n, t in model[1].items()}
    for name, tensor in packed.items():
        if "experts" in name:
            for expert in (0, 1, 2, 4):
                tensor[expert] = tensor[expert].bfloat16().float()
        else:
            packed[name] = tensor.bfloat16().float()
    assert_equal(merged(recipe, threads=3), packed)


def test_an_adapter_on_single_experts_reaches_the_tensor_of_all(tmp_path: Path) -> None:
    base = make("qwen", 0)
    module = "model.layers.1.mlp.experts.2.up_proj"
    a, b = torch.randn(2, COLUMNS), torch.randn(ROWS, 2)
    recipe = recipe_for(tmp_path, base[1], [base[0]], QWEN)
    own = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    write_adapter(tmp_path / "adapter", own, r=2, lora_alpha=2)
    content = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base")}
    content |= {"models": [{"model": str(tmp_path / "model0"), "adapter": str(tmp_path / "adapter")}]}
    expected = {n: t.clone() for n, t in base[1].items()}
    expected["model.layers.1.mlp.experts.gate_up_proj"][2, ROWS:] += b @ a
    assert_equal(merged(write_recipe(recipe, content)), expected)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    base, model = make("qwen", 0), make("qwen", 1)
    del model[0]["model.layers.1.mlp.experts.2.up_proj.weight"]
    with pytest.raises(InputError, match=r"gate_up_proj, expert 2 of 5 lacks its matrix 1"):
        open_inputs(load_recipe(recipe_for(tmp_path, base[1], [model[0]], QWEN)), tmp_path)


def test_experts_laid_out_in_another_way_are_refused(tmp_path: Path) -> None:
    base, model = make("qwen", 0), make("qwen", 1)
    turned = {n: t.transpose(-1, -2) if "experts" in n else t for n, t in model[1].items()}
    with pytest.raises(InputError, match=r"is F32 \[5, 4, 12\], expected experts \[5, 12, 4\]"):
        open_inputs(load_recipe(recipe_for(tmp_path, base[0], [turned], QWEN)), tmp_path)


def test_a_form_means_nothing_without_experts(tmp_path: Path) -> None:
    tensors = {"model.norm.weight": torch.randn(4)}
    with pytest.raises(RecipeError, match="no tensors are known as experts"):
        open_inputs(load_recipe(recipe_for(tmp_path, tensors, [tensors], QWEN, output={"experts": "apart"})), tmp_path)


def test_eight_bit_experts_without_scales_are_refused_in_either_form(tmp_path: Path) -> None:
    """Experts that become one tensor are asked for their scales one by one."""
    (base, packed), (tuned, _) = make("qwen", 0), make("qwen", 1)
    coded = {name: t.to(torch.float8_e4m3fn) if "experts" in name else t for name, t in tuned.items()}
    query = {"model.q.weight": torch.ones(ROWS, COLUMNS)}
    scaled = {"model.q.weight": query["model.q.weight"].to(torch.float8_e4m3fn), "model.q.weight_scale": torch.ones(1)}
    for form in (base, packed):
        recipe = recipe_for(tmp_path, form | query, [coded | scaled], QWEN)
        with pytest.raises(InputError, match="matrices of 8-bit floats have no scales of a known name"):
            open_inputs(load_recipe(recipe), recipe.parent)
