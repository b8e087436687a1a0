"""Tiny Llama checkpoints and a recipe that merges them, for tests of the whole command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from anabranch.cluster.cli import cli

from ..merging import write_checkpoint, write_recipe

LAYERS, HIDDEN, INTERMEDIATE, VOCAB = 2, 32, 48, 64
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def llama_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        shapes |= {f"{layer}{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}


def write_llamas(folder: Path, models: int = 2) -> None:
    """folder/base, folder/model0, ...: bf16, two shards each; a fine-tune changes about half of the elements."""
    generator = torch.Generator().manual_seed(7)
    shapes = llama_shapes()
    base = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}
    write_checkpoint(folder / "base", {n: t.bfloat16() for n, t in base.items()}, 2, CONFIG)
    (folder / "base" / "tokenizer_config.json").write_text("{}")
    for i in range(models):
        tuned = {}
        for name, tensor in base.items():
            change = torch.randn(tensor.shape, generator=generator) * 0.01
            tuned[name] = (tensor + change * (torch.rand(tensor.shape, generator=generator) < 0.5)).bfloat16()
        write_checkpoint(folder / f"model{i}", tuned, 2, CONFIG)


@dataclass
class Workplace:
    """A folder with checkpoints and a recipe."""

    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe_path(self) -> Path:
        return self.folder / "recipe.yml"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def write(self, name: str = "recipe.yml", **changes: Any) -> Path:
        """The recipe with changes, written under a name."""
        return write_recipe(self.folder / name, self.recipe | changes)

    def files(self, out: Path | None = None) -> dict[str, bytes]:
        """Every file of an output but Parquet tables, whose rows the manifest vouches for."""
        root = out or self.out
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file() and path.suffix != ".parquet"
        }


@pytest.fixture(scope="session")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llamas")
    write_llamas(folder)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, llamas: Path) -> Workplace:
    """Small output shards, so that there are several; the checkpoints are shared by all tests and never changed."""
    recipe = {
        "merge_method": "cabs",
        "base_model": str(llamas / "base"),
        "models": [
            {"model": str(llamas / f"model{i}"), "parameters": {"weight": weight}}
            for i, weight in enumerate([1.0, 0.5])
        ],
        "parameters": {"density": 0.25, "block": 32},
        "exclude": ["*.embed_tokens.*"],
        "output": {"shard_size": "12KB"},
    }
    place = Workplace(tmp_path, recipe)
    place.write()
    return place


Command = Callable[..., Result]


@pytest.fixture
def anabranch() -> Command:
    """Run the command in this process; `anabranch("plan", path, out).exit_code`."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])

    return run
