"""Peer: what one writes without a merging tool. Tensor by tensor with ``safe_open``, in fp32, ``save_file``.

    python benchmarks/peers/torch_loop.py RECIPE OUT

Knows linear, task_arithmetic, magnitude and cabs; the output is cut as the base (or the first model) is.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file


class Checkpoint:
    """Opens every shard once; tensors come by name."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        index = json.loads((self.folder / "model.safetensors.index.json").read_text())
        self.shard_of: dict[str, str] = index["weight_map"]
        self.shards = {name: safe_open(self.folder / name, "pt") for name in sorted(set(self.shard_of.values()))}

    def tensor(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self.shards[self.shard_of[name]].get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor


def merge_tensor(recipe: dict[str, Any], base: torch.Tensor, models: list[torch.Tensor]) -> torch.Tensor:
    method = recipe["merge_method"]
    parameters = [entry["parameters"] for entry in recipe["models"]]
    if method == "linear":
        total = torch.zeros(base.shape)
        for model, parameter in zip(models, parameters, strict=True):
            total += model.float() * parameter["weight"]
        weights: float = sum(parameter["weight"] for parameter in parameters)
        return (total / weights).to(base.dtype)
    start = base.float()
    total = torch.zeros_like(start)
    taken = torch.zeros(base.shape, dtype=torch.bool)
    for model, parameter in zip(models, parameters, strict=True):
        change = model.float() - start
        if method == "magnitude":
            change *= top(change, parameter["density"])
        elif method == "cabs":
            mask = top_in_blocks(change, taken, parameter["density"], recipe["parameters"]["block"])
            taken |= mask
            change *= mask
        total += change * parameter["weight"]
    return (start + total).to(base.dtype)


def top(change: torch.Tensor, density: float) -> torch.Tensor:
    keep = int(density * change.numel())
    mask = torch.zeros(change.numel(), dtype=torch.bool)
    mask[change.abs().flatten().topk(keep).indices] = True
    return mask.view(change.shape)


def top_in_blocks(change: torch.Tensor, taken: torch.Tensor, density: float, block: int) -> torch.Tensor:
    """n:m selection over the whole tensor at once, as published scripts do; taken and zero never win."""
    score = change.abs().masked_fill_(taken, 0.0).flatten()
    keep = int(density * block + 0.5)
    whole = score.numel() // block * block
    mask = torch.zeros(score.numel(), dtype=torch.bool)
    rows = score[:whole].view(-1, block)
    mask[:whole].view(-1, block).scatter_(1, rows.topk(keep, dim=1).indices, True)
    rest = score[whole:]
    mask[whole:][rest.topk((keep * rest.numel() + block // 2) // block).indices] = True
    return (mask & (score > 0)).view(change.shape)


def main(recipe_path: str, out: str) -> None:
    recipe = yaml.safe_load(Path(recipe_path).read_text())
    models = [Checkpoint(entry["model"]) for entry in recipe["models"]]
    base = Checkpoint(recipe["base_model"]) if "base_model" in recipe else models[0]
    Path(out).mkdir(parents=True)
    for shard in base.shards:
        merged = {
            name: merge_tensor(recipe, base.tensor(name), [model.tensor(name) for model in models])
            for name, where in base.shard_of.items()
            if where == shard
        }
        save_file(merged, Path(out) / shard, metadata={"format": "pt"})
    for path in base.folder.glob("*.json"):
        shutil.copy(path, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
