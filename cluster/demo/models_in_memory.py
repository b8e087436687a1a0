"""Merges that never touch a disk: what a method makes of all task vectors, summed once, for any lambda.

The product merges changes instead of models: with a base of zeros each change is its own task vector, and with lambda 1
the merge is their sum, in fp32. Then W0 + lambda * sum in fp32, rounded once to the dtype of the base, is what the
command writes for that lambda, bit for bit: products and sums are separate roundings in this order.
"""

from __future__ import annotations

import itertools
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load, save

from ...engine.run import Execution, MergeReport, merge
from ...engine.storage import open_store
from .factors import Method
from .models import Tensors, load_tensors

_count = itertools.count()
WHOLE = 1 << 40
"""Bytes of a file at most: as much as there are."""


@dataclass(frozen=True)
class Sum:
    """What a method makes of the task vectors, without lambda."""

    base: Tensors
    changes: Tensors
    """fp32, of the base's names and shapes."""
    kept: float
    """Fraction of task-vector elements kept, mean over the models."""
    overlap: float
    """|A and B| / |A or B| of the masks, mean over all pairs of models; 0 for one model."""

    def at(self, factor: float) -> dict[str, torch.Tensor]:
        """The merged tensors with this lambda, in the base's dtype."""
        scale, merged = torch.tensor(factor, dtype=torch.float32), {}
        for name, base in self.base.items():
            change = self.changes.get(name)
            merged[name] = base if change is None else _added(base, scale * change)
        return merged


def _added(base: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Base plus change, rounded once; the base's own bits where nothing changes."""
    return torch.where(change == 0, base, (base.float() + change).to(base.dtype))


class ModelsInMemory:
    """A base and fine-tuned models whose changes this process holds.

    Args:
        base: checkpoint in floating point.
        models: checkpoints by name.
        dtype: what base and models are rounded to first, as if they had been published so; None: as they are.
    """

    def __init__(self, base: Path, models: Mapping[str, Path], dtype: torch.dtype | None = None) -> None:
        self.base = {name: t.to(dtype or t.dtype) for name, t in load_tensors(base).items()}
        self._root = f"memory://models-{next(_count)}"
        self._config = (base / "config.json").read_bytes()
        self._merges = 0
        places = [f"{self._root}/{name}" for name in ("base", *models)]
        weakref.finalize(self, _empty, places).atexit = False  # what memory:// holds outlives who put it there
        self._put("base", {name: torch.zeros_like(t, dtype=torch.float32) for name, t in self.base.items()})
        for model, folder in models.items():
            tensors = {name: t.to(dtype or t.dtype).float() for name, t in load_tensors(folder).items()}
            self._put(model, {name: tensors[name] - t.float() for name, t in self.base.items()})

    def _put(self, name: str, tensors: Tensors) -> None:
        store = open_store(f"{self._root}/{name}", create=True)
        store.create("model.safetensors", save(dict(tensors), {"format": "pt"}))
        store.create("config.json", self._config)

    def recipe(self, method: Method, models: Sequence[str]) -> dict[str, Any]:
        """Of a merge of some of the changes, for whoever runs in this process."""
        return method.recipe(f"{self._root}/base", [f"{self._root}/{name}" for name in models])

    def sum(self, method: Method, models: Sequence[str], own: Sequence[Mapping[str, Any]] = ()) -> Sum:
        """Merge some models by a method, each with parameters of its own if there are any."""
        recipe = self.recipe(method, models)
        for model, parameters in zip(recipe["models"], own, strict=False):
            model["parameters"] = dict(parameters)
        report, out = self._merge(recipe)
        summary = report.outcome.manifest.summary
        pairs = [share for model in summary for share in model["overlap"].values()]
        kept = [model["kept_fraction"] for model in summary]
        changes = self._take(out)
        return Sum(self.base, changes, sum(kept) / len(kept), sum(pairs) / len(pairs) if pairs else 0.0)

    def own_masks(self, method: Method, models: Sequence[str]) -> dict[str, Sum]:
        """What a method that makes a model for each task makes of them, by task."""
        _, out = self._merge(self.recipe(method, models))
        found = {}
        for name in models:
            url = f"{self._root}/base+{out}/{name}"
            _, made = self._merge({"merge_method": "passthrough", "models": [{"model": url}]})
            found[name] = Sum(self.base, self._take(made), 1.0, 0.0)
        for name in ("unified", *models):
            self._forget(f"{out}/{name}")
        return found

    def _merge(self, recipe: Mapping[str, Any]) -> tuple[MergeReport, str]:
        self._merges += 1
        out = f"{self._root}/out-{self._merges}"
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            yaml.safe_dump(dict(recipe), file)
            file.flush()
            return merge(file.name, out, Execution(1)), out

    def _take(self, out: str) -> dict[str, torch.Tensor]:
        """The tensors of a merge, which is removed."""
        store, found = open_store(out), {}
        for name in store.list():
            if name.endswith(".safetensors"):
                found.update(load(store.read_bytes(name, WHOLE)))
        self._forget(out)
        return found

    def _forget(self, out: str) -> None:
        _empty([out], ("", ".anabranch", ".anabranch/receipts", ".anabranch/survey"))


def _empty(places: Iterable[str], folders: Sequence[str] = ("",)) -> None:
    """Take all files away."""
    for place in places:
        store = open_store(place)
        for folder in folders:
            for name in store.list(folder):
                store.delete(f"{folder}/{name}" if folder else name)
