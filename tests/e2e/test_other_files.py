"""The whole command: what lies beside merged weights describes them, and is complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ..adapters import write_adapter
from ..merging import load_output, write_checkpoint, write_recipe
from .conftest import Command

EMBEDDING, HEAD, PROJECTION = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"
CONFIG = {"model_type": "test", "vocab_size": 20, "torch_dtype": "float32", "tie_word_embeddings": False}


class Place:
    def __init__(self, folder: Path, anabranch: Command) -> None:
        self.folder, self._anabranch = folder, anabranch
        generator = torch.Generator().manual_seed(3)
        shapes = {EMBEDDING: (20, 8), PROJECTION: (12, 8), HEAD: (20, 8)}
        self.base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        self.tuned = {name: tensor + 0.1 for name, tensor in self.base.items()}

    def write(self, config: dict[str, Any] = CONFIG, files: dict[str, Any] | None = None) -> None:
        for name, tensors in (("base", self.base), ("m", self.tuned)):
            write_checkpoint(self.folder / name, tensors, 1, config)
            for file, content in (files or {}).items():
                path = self.folder / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content if isinstance(content, str) else json.dumps(content))

    def merge(self, **keys: Any) -> str:
        models = [{"model": str(self.folder / "m")}]
        content = {"merge_method": "task_arithmetic", "base_model": str(self.folder / "base"), "models": models} | keys
        content = {key: value for key, value in content.items() if value is not None}
        result = self._anabranch("merge", write_recipe(self.folder / "r.yml", content), self.out)
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    def verify(self) -> str:
        return self._anabranch("verify", self.out).output

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "config.json").read_text())
        return found

    def files(self) -> set[str]:
        found = (str(p.relative_to(self.out)) for p in self.out.rglob("*") if p.is_file())
        always = {"config.json", "model.safetensors", "README.md", "mergekit_config.yml"}
        return {name for name in found if "anabranch" not in name} - always


@pytest.fixture
def place(tmp_path: Path, anabranch: Command) -> Place:
    return Place(tmp_path, anabranch)


def test_files_in_folders_are_copied_and_verified(place: Place) -> None:
    files = {
        "modules.json": [{"path": ""}, {"path": "1_Pooling"}],
        "1_Pooling/config.json": {"a": 1},
        "additional_chat_templates/rag.jinja": "{{ messages }}",
        "preprocessor_config.json": {},
        "modeling_own.py": "",
        "onnx/config.json": {},
    }
    place.write(files=files)
    place.merge()
    assert place.files() == set(files) - {"onnx/config.json"}
    assert "are what was written" in place.verify()
    (place.out / "1_Pooling" / "config.json").write_text('{"a": 2}')
    (place.out / "1_Pooling" / "more.json").write_text("{}")
    said = place.verify()
    assert "1_Pooling/config.json: damaged" in said
    assert "1_Pooling/more.json: unexpected" in said


def test_an_adapter_beside_the_base_stays_behind(place: Place) -> None:
    index = {"metadata": {}, "weight_map": dict.fromkeys(place.base, "model.safetensors")}
    place.write(files={"adapter_config.json": {"peft_type": "LORA"}, "model.safetensors.index.json": index})
    save_file({"lora_A.weight": torch.zeros(2, 2)}, place.folder / "base" / "adapter_model.safetensors")
    said = place.merge()
    assert place.files() == set()
    assert "not in the output, whose weights are others: adapter_config.json" in said


def test_a_configuration_that_calls_plain_weights_quantised(place: Place) -> None:
    quantised = {"quant_method": "fp8"}
    config = CONFIG | {"quantization_config": quantised, "text_config": {"compression_config": quantised, "a": 1}}
    place.write(config, {"hf_quant_config.json": {}, "quantize_config.json": {}})
    place.merge()
    assert place.config == CONFIG | {"text_config": {"a": 1}}
    assert place.files() == set()


def test_a_part_that_stays_quantised_keeps_its_description(place: Place) -> None:
    place.base["model.experts_blocks"] = torch.zeros(4, 4, dtype=torch.uint8)
    config = CONFIG | {"quantization_config": {"quant_method": "mxfp4"}}
    place.write(config)
    place.merge(exclude=["*_blocks"])
    assert place.config == config


def test_scales_of_a_cache_go_with_the_description_of_quantised_weights(place: Place) -> None:
    weight = torch.full((12, 8), 2.0).to(torch.float8_e4m3fn)
    scales = {f"{PROJECTION}_scale": torch.tensor(0.5), "model.self_attn.k_scale": torch.ones(())}
    place.base |= {PROJECTION: weight} | scales
    place.write(CONFIG | {"quantization_config": {"quant_method": "fp8"}})
    said = place.merge(out_dtype="float32")
    found = load_output(place.out)
    assert found.keys() == {EMBEDDING, HEAD, PROJECTION}
    torch.testing.assert_close(found[PROJECTION], place.tuned[PROJECTION])
    assert place.config == CONFIG
    assert "1 scales of a quantised KV cache, which are no weights, are left out: model.self_attn.k_scale" in said


def test_an_adapter_with_more_tokens_sets_the_size_of_the_vocabulary(place: Place) -> None:
    place.write()
    rows = {EMBEDDING: torch.randn(23, 8), HEAD: torch.randn(23, 8)}
    write_adapter(place.folder / "adapter", rows, modules_to_save=["embed_tokens", "lm_head"])
    models = [{"model": f"{place.folder}/base+{place.folder}/adapter"}]
    said = place.merge(merge_method="passthrough", base_model=None, models=models)
    assert place.config == CONFIG | {"vocab_size": 23}
    assert "vocab_size does not fit the embedding and becomes 23" in said
    assert torch.equal(load_output(place.out)[HEAD], rows[HEAD])
