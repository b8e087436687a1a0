"""The whole command on a base with LoRA adapters: the same bytes as from checkpoints that hold the changed weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ..adapters import product, write_adapter
from ..merging import load_output, write_checkpoint, write_recipe
from .conftest import CONFIG, Command, llama_shapes

RANK = 4


class Adapted:
    """A bf16 base in two shards, two adapters, and the models that they make of it, in fp32."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        generator = torch.Generator().manual_seed(11)
        shapes = llama_shapes()
        self.base = {n: (torch.randn(shape, generator=generator) * 0.05).bfloat16() for n, shape in shapes.items()}
        write_checkpoint(folder / "base", self.base, 2, CONFIG)
        for i in range(2):
            whole = {name: tensor.float() for name, tensor in self.base.items()}
            stored = {}
            for name, shape in shapes.items():
                if "_proj" not in name:
                    continue
                a = torch.randn(RANK, shape[1], generator=generator).bfloat16() * 0.1
                b = torch.randn(shape[0], RANK, generator=generator) * 0.1
                stored |= {name.replace(".weight", ".lora_A.weight"): a, name.replace(".weight", ".lora_B.weight"): b}
                whole[name] = whole[name] + product(a, b, 6 / RANK)
            write_adapter(folder / f"adapter{i}", stored)
            write_checkpoint(folder / f"whole{i}", whole, 1, CONFIG)

    def recipe(self, name: str, models: list[Any], **keys: Any) -> Path:
        content = {"base_model": str(self.folder / "base"), "models": models, "output": {"shard_size": "20KB"}}
        return write_recipe(self.folder / f"{name}.yml", content | keys)

    def whole(self) -> list[Any]:
        return [{"model": str(self.folder / f"whole{i}")} for i in range(2)]

    def adapted(self) -> list[Any]:
        """Both forms."""
        base, first, second = (str(self.folder / name) for name in ("base", "adapter0", "adapter1"))
        return [{"model": f"{base}+{first}"}, {"model": base, "adapter": second}]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return Adapted(tmp_path_factory.mktemp("adapted"))


@pytest.mark.parametrize(
    "keys",
    [
        {"merge_method": "task_arithmetic", "parameters": {"lambda": 0.7}},
        {"merge_method": "cabs", "parameters": {"density": 0.25, "block": 32}},
        {"merge_method": "ties", "parameters": {"density": 0.3}},
        {"merge_method": "dare_ties", "parameters": {"density": 0.5}},
        {"merge_method": "magnitude", "parameters": {"density": {"tadrop": {"mean": 0.3}}}},
    ],
    ids=lambda keys: keys["merge_method"],
)
def test_adapters_merge_as_the_models_they_make(
    adapted: Adapted, keys: dict[str, Any], anabranch: Command, tmp_path: Path
) -> None:
    for name, models in (("adapted", adapted.adapted()), ("whole", adapted.whole())):
        result = anabranch("merge", adapted.recipe(f"{keys['merge_method']}-{name}", models, **keys), tmp_path / name)
        assert result.exit_code == 0, result.output
    shards = sorted(path.name for path in (tmp_path / "whole").glob("*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        assert (tmp_path / "adapted" / shard).read_bytes() == (tmp_path / "whole" / shard).read_bytes()
    result = anabranch("verify", tmp_path / "adapted")
    assert result.exit_code == 0, result.output


def test_one_adapter_alone_keeps_the_base_s_dtype(adapted: Adapted, anabranch: Command, tmp_path: Path) -> None:
    models = [{"model": f"{adapted.folder}/base+{adapted.folder}/adapter0"}]
    recipe = write_recipe(tmp_path / "r.yml", {"merge_method": "linear", "models": models})
    result = anabranch("merge", recipe, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "the adapter changes 14 matrices and replaces 0 tensors" in result.output
    name = "model.layers.1.mlp.up_proj.weight"
    found, whole = load_output(tmp_path / "out"), load_output(adapted.folder / "whole0")
    assert torch.equal(found[name], whole[name].bfloat16())
    assert torch.equal(found["lm_head.weight"], adapted.base["lm_head.weight"])
    manifest = json.loads((tmp_path / "out" / "anabranch.manifest.json").read_text())
    files = [file["name"] for entry in manifest["inputs"] for file in entry.get("files", ())]
    assert f"{adapted.folder}/adapter0/adapter_model.safetensors" in files


def test_another_alpha_is_another_plan(adapted: Adapted, anabranch: Command, tmp_path: Path) -> None:
    recipe = adapted.recipe("alpha", adapted.adapted(), merge_method="task_arithmetic")
    config = adapted.folder / "adapter0" / "adapter_config.json"
    before = config.read_text()
    assert anabranch("merge", recipe, tmp_path / "out").exit_code == 0
    try:
        config.write_text(before.replace('"lora_alpha": 6', '"lora_alpha": 7'))
        result = anabranch("merge", recipe, tmp_path / "out")
    finally:
        config.write_text(before)
    assert result.exit_code == 5, result.output
    assert anabranch("merge", recipe, tmp_path / "out").exit_code == 0


def test_an_adapter_of_another_model(adapted: Adapted, anabranch: Command, tmp_path: Path) -> None:
    write_adapter(tmp_path / "other", {"model.layers.9.x.lora_A.weight": torch.zeros(4, 2)})
    recipe = adapted.recipe("other", [{"model": f"{adapted.folder}/base+{tmp_path}/other"}], merge_method="ties")
    result = anabranch("merge", recipe, tmp_path / "out")
    assert result.exit_code == 3
    assert "match nothing" in result.stderr
    assert "model.layers.9.x.weight" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_adapter_alone_is_no_model(adapted: Adapted, anabranch: Command, tmp_path: Path) -> None:
    recipe = adapted.recipe("alone", [{"model": str(adapted.folder / "adapter0")}], merge_method="ties")
    result = anabranch("merge", recipe, tmp_path / "out")
    assert result.exit_code == 3
    assert "BASE+ADAPTER" in result.stderr
