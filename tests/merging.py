"""Small real merges for tests: write checkpoints, run the engine in this process, read the result back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.models.opening import Opened
from anabranch.engine.output.commit import OutputDirectory
from anabranch.engine.plan.inputs import inputs_of_parts, open_inputs
from anabranch.engine.plan.shared_reading import why_apart
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run.execution import Execution, worker_memory
from anabranch.engine.run.local import LocalRunner
from anabranch.engine.run.meter import Meter
from anabranch.engine.run.protocols import Member, Outcome, Silent
from anabranch.engine.run.runner import run
from anabranch.engine.storage.opening import open_store
from anabranch.engine.storage.protocol import Store

Tensors = Mapping[str, torch.Tensor]
MIB = 1 << 20


def write_checkpoint(folder: Path, tensors: Tensors, shards: int = 1, config: dict[str, Any] | None = None) -> Path:
    """A checkpoint as Hugging Face writes it, cut into `shards` files of about equally many tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "test", "torch_dtype": "float32"}))
    names = list(tensors)
    if shards == 1:
        save_file({n: tensors[n].contiguous() for n in names}, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        members = names[i::shards]
        save_file({n: tensors[n].contiguous() for n in members}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(members, file))
    index = {"metadata": {"total_size": 0}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_merge(folder: Path, tensors: Mapping[str, Sequence[int]], seed: int, **keys: Any) -> Path:
    """A base and `model`, both random fp32 tensors of these shapes, and `recipe.yml`, which merges them.

    Args:
        folder: where all three go.
        tensors: shapes by name.
        seed: of the numbers.
        keys: of the recipe, besides `base_model` and `models`; `others` names more models, written and not merged.
    """
    generator = torch.Generator().manual_seed(seed)
    others = keys.pop("others", ())
    for name in ("base", "model", *others):
        write_checkpoint(folder / name, {n: torch.randn(*shape, generator=generator) for n, shape in tensors.items()})
    models = [{"model": str(folder / "model"), "parameters": {"weight": 1.0}}]
    return write_recipe(folder / "recipe.yml", {"base_model": str(folder / "base"), "models": models} | keys)


def write_emr(folder: Path, tensors: Mapping[str, tuple[int, ...]]) -> Path:
    """A recipe of EMR-Merging with checkpoints of these shapes: a base and one `model`, whose task has that name."""
    recipe = write_merge(folder, tensors, 2, merge_method="emr")
    content = yaml.safe_load(recipe.read_text())
    return write_recipe(recipe, content | {"models": [{"model": str(folder / "model")}]})


def write_recipe(path: Path, recipe: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
    return path


def merge(recipe: Path, out: Path | Store, threads: int = 2, limit_mib: int = 1024, kernels: Any = None) -> Outcome:
    """One merge in this process."""
    [outcome] = merge_together({recipe: out}, threads, limit_mib, kernels)
    return outcome


def merge_together(
    recipes: Mapping[Path, Path | Store], threads: int = 2, limit_mib: int = 1024, kernels: Any = None
) -> list[Outcome]:
    """One merge in this process of recipes that share a reading, each into its output."""
    opened = Opened()
    members = []
    for recipe, out in recipes.items():
        inputs = open_inputs(load_recipe(recipe), recipe.parent, opened)
        store = open_store(str(out), create=True) if isinstance(out, Path) else out
        members.append(Member(inputs, OutputDirectory(inputs.plan, store)))
    return run_together(members, threads, limit_mib, kernels)


def merge_parts(
    recipe: Path, out: Path, threads: int = 2, limit_mib: int = 1024, kernels: Any = None
) -> dict[str, Outcome]:
    """One merge in this process of a recipe with several outputs, each into a folder of `out`, by name."""
    parts = inputs_of_parts(open_inputs(load_recipe(recipe), recipe.parent))
    members = {}
    for part in parts:
        assert part.plan.part is not None
        store = open_store(str(out / part.plan.part.name), create=True)
        members[part.plan.part.name] = Member(part, OutputDirectory(part.plan, store))
    return dict(zip(members, run_together(list(members.values()), threads, limit_mib, kernels), strict=True))


def run_together(members: Sequence[Member], threads: int, limit_mib: int, kernels: Any) -> list[Outcome]:
    for member in members[1:]:
        assert why_apart([members[0].plan], member.plan) == ""
    return run(members, local_runner(members, threads, limit_mib, kernels), Silent())


def local_runner(
    members: Sequence[Member], threads: int = 2, limit_mib: int = 1024, kernels: Any = None, meter: Meter | None = None
) -> LocalRunner:
    """All work in this process, within a memory limit."""
    memory = worker_memory(members, Execution(threads, limit_mib * MIB))
    return LocalRunner(members, memory, kernels or CpuKernels(), meter or Meter())


def load_output(out: Path) -> dict[str, torch.Tensor]:
    """All tensors of a merged checkpoint, by name."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(out.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def merge_tensors(
    folder: Path,
    base: Tensors | None,
    models: Sequence[Tensors],
    recipe: Mapping[str, Any],
    weights: Sequence[float] | None = None,
    densities: Sequence[Any] | None = None,
    **run_options: Any,
) -> dict[str, torch.Tensor]:
    """Write the checkpoints, merge them by the recipe (without its `models` and `base_model`), return the result."""
    entries = []
    for i, tensors in enumerate(models):
        write_checkpoint(folder / f"model{i}", tensors)
        parameters: dict[str, Any] = {}
        if weights is not None:
            parameters["scale" if recipe["merge_method"] == "passthrough" else "weight"] = weights[i]
        if densities is not None:
            parameters["density"] = densities[i]
        entries.append({"model": str(folder / f"model{i}"), "parameters": parameters})
    # Drawn numbers may be those of the base.
    whole: dict[str, Any] = {"allow_unchanged": True, **recipe, "models": entries}
    if base is not None:
        write_checkpoint(folder / "base", base)
        whole["base_model"] = str(folder / "base")
    merge(write_recipe(folder / "recipe.yml", whole), folder / "out", **run_options)
    return load_output(folder / "out")
