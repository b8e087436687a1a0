"""Sliced recipes through the command: what the plan says, config.json, loading, verifying, a kill in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer

from ..merging import load_output, write_checkpoint, write_recipe
from .conftest import CONFIG, Command, Workplace
from .test_adapters import Adapted
from .vocabularies import TEXTS, bpe, with_added, write_model


def deeper(workplace: Workplace, llamas: Path, **changes: Any) -> Path:
    """Both layers of model0, then the second of model1: three layers."""
    slices = [
        {"sources": [{"model": str(llamas / "model0"), "layer_range": [0, 2]}]},
        {"sources": [{"model": str(llamas / "model1"), "layer_range": [1, 2]}]},
    ]
    workplace.recipe = {"merge_method": "passthrough", "slices": slices, "output": {"shard_size": "12KB"}}
    return workplace.write(**changes)


def test_the_plan_says_what_is_put_together_and_what_is_left_out(
    anabranch: Command, workplace: Workplace, llamas: Path
) -> None:
    recipe = deeper(workplace, llamas)
    result = anabranch("plan", recipe, workplace.out)
    assert result.exit_code == 0, result.stderr
    assert "slices      2 slices with 3 layers" in result.stdout
    model1 = llamas / "model1"
    assert f"note        {model1}: layers that no slice uses are left out: 0" in result.stdout
    assert f"{model1}: left out, because another slice gives them: model.embed_tokens.weight" in result.stdout
    planned = json.loads(anabranch("plan", recipe, workplace.out, "--json").stdout)
    assert (planned["slices"], planned["layers"], planned["tensors"]) == (2, 3, 30)
    assert [entry["role"] for entry in planned["inputs"]] == ["model 0", "model 1"]


def test_the_plan_lists_how_models_differ_from_what_slices_ask_of_them(
    anabranch: Command, workplace: Workplace, tmp_path: Path
) -> None:
    base = {f"model.layers.{i}.{name}": torch.zeros(4, 2) for i in range(3) for name in ("w", "v")}
    other = {name: tensor.bfloat16() if name.endswith("0.w") else tensor for name, tensor in base.items()}
    del other["model.layers.2.v"]
    other |= {"model.layers.0.extra": torch.zeros(1), "model.layers.1.extra": torch.zeros(1)}
    for name, tensors in (("base", base), ("same", base), ("other", other)):
        write_checkpoint(tmp_path / name, tensors)
    cuts = [
        [{"model": str(tmp_path / name), "layer_range": layers} for name in ("base", "same", "other")]
        for layers in ([2, 3], [0, 1])
    ]
    recipe = write_recipe(
        tmp_path / "recipe.yml",
        {
            "merge_method": "task_arithmetic",
            "base_model": str(tmp_path / "base"),
            "slices": [{"sources": sources} for sources in cuts],
            "extra_tensors": "ignore",
        },
    )
    planned = json.loads(anabranch("plan", recipe, workplace.out, "--json").stdout)
    none: dict[str, list[str]] = {"missing": [], "extra": [], "shape": [], "dtype": []}
    same, found = (none | {"url": str(tmp_path / name)} for name in ("same", "other"))
    # Layer 2 of the models is layer 0 of the output, layer 0 is layer 1.
    found |= {"missing": ["model.layers.0.v"], "extra": ["model.layers.0.extra"], "dtype": ["model.layers.1.w"]}
    assert planned["differences"] == [same, found]
    assert [note for note in planned["notes"] if "layers that no slice uses are left out: 1" in note]
    text = anabranch("plan", recipe, workplace.out).stdout
    assert "lacks 1 of the reference's tensors, which count as unchanged: model.layers.0.v" in text


def test_a_frankenmerge_has_the_layers_that_the_recipe_says(
    anabranch: Command, workplace: Workplace, llamas: Path
) -> None:
    result = anabranch("merge", deeper(workplace, llamas), workplace.out)
    assert result.exit_code == 0, result.stderr
    assert f"  note: {llamas / 'model1'}: layers that no slice uses are left out: 0" in result.stdout
    merged = load_output(workplace.out)
    first, second = (load_output(llamas / name) for name in ("model0", "model1"))
    assert len(merged) == 30
    for name, tensor in merged.items():
        ours, source = first, name
        if name.startswith("model.layers.2."):
            ours, source = second, name.replace("layers.2", "layers.1")
        elif name in ("lm_head.weight", "model.norm.weight"):
            ours = second
        assert torch.equal(tensor, ours[source]), name
    assert json.loads((workplace.out / "config.json").read_text()) == CONFIG | {"num_hidden_layers": 3}
    assert anabranch("verify", workplace.out).exit_code == 0
    manifest = json.loads((workplace.out / "anabranch.manifest.json").read_text())
    assert [part["sources"][0]["layer_range"] for part in manifest["recipe"]["slices"]] == [[0, 2], [1, 2]]
    assert any("no slice uses" in note for note in manifest["notes"])


def test_the_recipe_of_the_manifest_makes_the_same_output(
    anabranch: Command, workplace: Workplace, llamas: Path
) -> None:
    recipe = deeper(workplace, llamas, parameters={"scale": [{"filter": "mlp", "value": [1, 0.5]}]})
    assert anabranch("merge", recipe, workplace.out).exit_code == 0
    manifest = json.loads((workplace.out / "anabranch.manifest.json").read_text())
    again = workplace.folder / "again.json"
    again.write_text(json.dumps(manifest["recipe"]))
    assert anabranch("merge", again, workplace.folder / "again").exit_code == 0
    assert workplace.files(workplace.folder / "again") == workplace.files()


def test_slices_of_a_method_with_a_base(anabranch: Command, workplace: Workplace, llamas: Path) -> None:
    names = ("base", "model0", "model1")
    halves = [
        {"sources": [{"model": str(llamas / name), "layer_range": [i, i + 1]} for name in names]} for i in range(2)
    ]
    halves[1]["parameters"] = {"lambda": 0.5}  # type: ignore[assignment]
    recipe = workplace.write(merge_method="task_arithmetic", models=None, slices=halves, parameters={}, exclude=[])
    assert anabranch("merge", recipe, workplace.out).exit_code == 0
    base, first, second = (load_output(llamas / name) for name in names)
    for name, tensor in load_output(workplace.out).items():
        b, one, two = (source[name].float() for source in (base, first, second))
        change = (one - b) + (two - b)
        last = name.startswith("model.layers.1.") or name in ("lm_head.weight", "model.norm.weight")
        assert torch.equal(tensor, (b + (change * 0.5 if last else change)).bfloat16()), name
    assert (workplace.out / "config.json").read_bytes() == (llamas / "base" / "config.json").read_bytes()


def test_sliced_recipes_read_together_give_the_bytes_that_each_gives_alone(
    anabranch: Command, workplace: Workplace, llamas: Path
) -> None:
    deeper(workplace, llamas)
    sources = [{"model": str(llamas / f"model{i}"), "layer_range": [1 - i, 2 - i]} for i in range(2)]
    slices = [{"sources": [{"model": str(llamas / "model1"), "layer_range": [0, 2]}]}, {"sources": sources}]
    recipes = [workplace.write("copied.yml"), workplace.write("mean.yml", merge_method="linear", slices=slices)]
    result = anabranch("merge", *recipes, workplace.out)
    assert result.exit_code == 0, result.stderr
    assert "read together: " in result.stdout
    for recipe in recipes:
        alone = workplace.folder / "alone" / recipe.stem
        assert anabranch("merge", recipe, alone).exit_code == 0
        assert workplace.files(alone) == workplace.files(workplace.out / recipe.stem)


def test_layers_of_a_model_with_an_adapter(anabranch: Command, tmp_path: Path) -> None:
    adapted = Adapted(tmp_path)
    base = {"model": str(tmp_path / "base"), "layer_range": [0, 2]}
    outputs = []
    for name, model in (("adapter", {"model": base["model"], "adapter": str(tmp_path / "adapter0")}), ("whole", {})):
        second = {"model": str(tmp_path / "whole0")} | model | {"layer_range": [1, 2]}
        recipe = {"merge_method": "passthrough", "slices": [{"sources": [base]}, {"sources": [second]}]}
        path = write_recipe(tmp_path / f"{name}.yml", recipe | {"out_dtype": "float32"})
        result = anabranch("merge", path, tmp_path / "out" / name)
        assert result.exit_code == 0, result.stderr
        outputs.append(load_output(tmp_path / "out" / name))
    assert all(torch.equal(tensor, outputs[1][name]) for name, tensor in outputs[0].items())
    changed = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(outputs[0][changed.replace("1", "2")], adapted.base[changed].float())


def test_slices_of_models_with_different_vocabularies(anabranch: Command, tmp_path: Path) -> None:
    """One slice of everything is the merge of whole models; embedding and head may come from different models."""
    first = bpe(TEXTS, 90)
    second = with_added(first, AddedToken("<|end|>", special=True))
    for name, tokenizer, seed in (("a", first, 1), ("b", second, 2)):
        write_model(tmp_path / name, tokenizer, tokenizer.get_vocab_size(), seed)
    layers = json.loads((tmp_path / "a" / "config.json").read_text())["num_hidden_layers"]
    sources = [{"model": str(tmp_path / name), "layer_range": [0, layers]} for name in "ab"]
    common = {"tokenizer_source": "union", "out_dtype": "float32"}
    recipes: dict[str, dict[str, Any]] = {
        "whole": {"merge_method": "linear", "models": [{"model": str(tmp_path / name)} for name in "ab"]},
        "sliced": {"merge_method": "linear", "slices": [{"sources": sources}]},
        "stacked": {"merge_method": "passthrough", "slices": [{"sources": [source]} for source in sources]},
    }
    for name, recipe in recipes.items():
        path = write_recipe(tmp_path / f"{name}.yml", common | recipe)
        result = anabranch("merge", path, tmp_path / "out" / name)
        assert result.exit_code == 0, result.stderr
    whole, sliced, stacked = (load_output(tmp_path / "out" / name) for name in recipes)
    assert all(torch.equal(tensor, sliced[name]) for name, tensor in whole.items())
    rows = second.get_vocab_size()
    assert {len(stacked[name]) for name in ("model.embed_tokens.weight", "lm_head.weight")} == {rows}
    head = load_output(tmp_path / "b")["lm_head.weight"].float()
    ids = Tokenizer.from_file(str(tmp_path / "out" / "stacked" / "tokenizer.json")).get_vocab()
    assert all(torch.equal(stacked["lm_head.weight"][ids[t]], head[i]) for t, i in second.get_vocab().items())
    config = json.loads((tmp_path / "out" / "stacked" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["vocab_size"]) == (2 * layers, rows)


def test_layers_that_are_not_there_are_exit_2_with_the_line(
    anabranch: Command, workplace: Workplace, llamas: Path
) -> None:
    recipe = deeper(workplace, llamas)
    recipe.write_text(recipe.read_text().replace("- 1\n    - 2", "- 1\n    - 9"))
    result = anabranch("plan", recipe, workplace.out)
    assert result.exit_code == 2
    line = next(i for i, text in enumerate(recipe.read_text().splitlines(), 1) if "layer_range" in text and i > 8)
    where = f"recipe.yml:{line}: slices[1].sources[0].layer_range: [1, 9] ends behind the last of the 2 layers of"
    assert where in result.stderr


def test_a_second_number_of_layers_in_the_inputs_is_another_plan(
    anabranch: Command, workplace: Workplace, llamas: Path
) -> None:
    """Configurations of models that give no file to the output decide bytes of its config.json."""
    for name, kinds in (("model0", ["a", "a"]), ("other", ["a", "b"])):
        tensors = load_output(llamas / "model1")
        write_checkpoint(workplace.folder / name, tensors, 1, CONFIG | {"layer_types": kinds})
    recipe = deeper(workplace, llamas)
    recipe.write_text(
        recipe.read_text().replace(str(llamas / "model0"), "model0").replace(str(llamas / "model1"), "other")
    )
    first = json.loads(anabranch("merge", recipe, workplace.out, "--json").stdout)
    assert json.loads((workplace.out / "config.json").read_text())["layer_types"] == ["a", "a", "b"]
    config = workplace.folder / "other" / "config.json"
    config.write_text(json.dumps(CONFIG | {"layer_types": ["a", "c"]}))
    second = json.loads(anabranch("plan", recipe, workplace.folder / "out2", "--json").stdout)
    assert first["plan_id"] != second["plan_id"]


def test_a_killed_sliced_merge_goes_on_to_the_same_bytes(
    anabranch: Command, workplace: Workplace, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        tensors = {f"model.layers.{i}.w": torch.randn(64, 64, generator=generator) for i in range(75)}
        write_checkpoint(tmp_path / name, tensors | {"model.norm": torch.ones(3)}, 3, {"num_hidden_layers": 75})
    slices = [
        {"sources": [{"model": str(tmp_path / name), "layer_range": list(layers)} for name in ("a", "b")]}
        for layers in ((0, 75), (0, 75))
    ]
    recipe = workplace.write("many.yml", models=None, base_model=None, merge_method="linear", parameters={})
    text = recipe.read_text()
    recipe.write_text(text + f"slices: {json.dumps(slices)}\n")
    assert anabranch("merge", recipe, tmp_path / "undisturbed").exit_code == 0
    command = [sys.executable, "-m", "anabranch.cluster.cli", "merge", str(recipe), str(workplace.out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if " done" in line:  # the first of 151 shards; all may be folded by then, but hardly any is durable
                process.kill()
                break
    assert not (workplace.out / "anabranch.manifest.json").exists()
    resumed = json.loads(anabranch("merge", recipe, workplace.out, "--json").stdout)
    assert resumed["shards_resumed"] > 0
    assert resumed["shards_merged"] > 0
    assert workplace.files() == workplace.files(tmp_path / "undisturbed")


@pytest.mark.slow
def test_transformers_loads_a_frankenmerge(anabranch: Command, workplace: Workplace, llamas: Path) -> None:
    assert anabranch("merge", deeper(workplace, llamas), workplace.out).exit_code == 0
    result = anabranch("verify", workplace.out, "--load")
    assert result.exit_code == 0, result.output
    assert "LlamaForCausalLM loads all 30 tensors" in result.stdout
