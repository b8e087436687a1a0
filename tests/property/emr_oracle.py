"""EMR-Merging as the documentation defines it, on whole tensors: slow, plain, written apart from the engine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch

from .merge_oracle import SAFETENSORS_TYPES, budget, counted, magnitude_order, ordered_sum, redundancy, round_once


@dataclass
class Parts:
    """What a merge writes."""

    unified: dict
    """Tensors by name, in the output dtype."""
    masks: list
    """Per model: u8 [ceil(n / 8)] by name."""
    scales: list
    """Per model."""


def emr(base, models, recipe):
    """The parts.

    Args:
        base: tensors by name.
        models: the same, per model; a model may lack some.
        recipe: a recipe without models; `parameters` may give one density for all, a number or `tadrop`, or rules by
            tensor name.
    """
    kept = _densities(base, models, recipe)
    unified, masks = {}, [{} for _ in models]
    changes, selected = [[] for _ in models], [[] for _ in models]
    for name, weight in base.items():
        if not _is_merged(name, weight, models, recipe):
            continue
        vectors = [_difference(model.get(name), weight, recipe) for model in models]
        vectors = [_trimmed(t, kept[i][name]) if name in models[i] else t for i, t in enumerate(vectors)]
        total = np.zeros(weight.numel(), np.float32)
        for t in vectors:
            total = total + t
        positive = total > 0
        largest = np.zeros_like(total)
        for t in vectors:
            agrees = np.where(positive, t > 0, t < 0)
            largest = np.where(agrees, np.maximum(largest, np.abs(t)), largest)
        elected = np.where(largest > 0, np.where(positive, largest, -largest), np.float32(0))
        dtype = SAFETENSORS_TYPES[recipe["out_dtype"]] if "out_dtype" in recipe else weight.dtype
        unified[name] = round_once(elected, dtype).reshape(weight.shape)
        for i, t in enumerate(vectors):
            mask = np.sign(t) * np.sign(elected) > 0
            masks[i][name] = torch.from_numpy(np.packbits(mask, bitorder="little"))
            changes[i].append(ordered_sum(t, 1))
            selected[i].append(ordered_sum(np.where(mask, elected, np.float32(0)), 1))
    sums = [(math.fsum(a), math.fsum(b)) for a, b in zip(changes, selected, strict=True)]
    return Parts(unified, masks, [a / b if b else 1.0 for a, b in sums])


def _is_merged(name, weight, models, recipe):
    excluded = any(fnmatchcase(name, pattern) for pattern in recipe.get("exclude", ()))
    return not excluded and weight.is_floating_point() and weight.numel() and any(name in m for m in models)


def _densities(base, models, recipe):
    """Per model and tensor, the share that is left before the election."""
    rules = recipe.get("parameters", {}).get("density", 1.0)
    rules = rules if isinstance(rules, list) else [{"value": rules}]
    found = []
    for model in models:
        merged = [n for n, w in base.items() if _is_merged(n, w, models, recipe) and n in model]
        wanted = {n: next(r["value"] for r in rules if r.get("filter", "") in n) for n in merged}
        vectors = {n: _difference(model[n], base[n], recipe) for n in merged}
        own = {n: d for n, d in wanted.items() if not isinstance(d, dict)}
        for options in (r["value"]["tadrop"] for r in rules if isinstance(r["value"], dict)):
            names = [n for n in merged if wanted[n] == {"tadrop": options}]
            u = {n: redundancy(vectors[n], options) for n in names}
            known = [n for n in names if not math.isnan(u[n])]
            if "mean" in options:
                sparsity = budget([u[n] for n in known], [counted(vectors[n], options) for n in known], options)
            else:
                sparsity = [min(u[n], 0.99) for n in known]
            own |= dict.fromkeys(names, 0.0) | {n: 1.0 - s for n, s in zip(known, sparsity, strict=True)}
        found.append(own)
    return found


def _trimmed(t, density):
    """The int(d N) largest; of equal ones those that come first."""
    kept = magnitude_order(t, np.zeros(t.size))[: int(density * t.size)]
    left = np.zeros_like(t)
    left[kept] = t[kept]
    return left


def _difference(tensor, weight, recipe):
    """fp32 [n]; 0 where the model has nothing, or nothing that counts."""
    w = weight.float().numpy().reshape(-1)
    if tensor is None:
        return np.zeros(w.size, np.float32)
    with np.errstate(invalid="ignore"):
        t = tensor.float().numpy().reshape(-1) - w
    return np.where(np.isfinite(t), t, np.float32(0)) if recipe.get("nonfinite") == "keep-base" else t


def task_model(base, parts, i):
    """The model of one task in the base's dtypes."""
    made = dict(base)
    for name, bits in parts.masks[i].items():
        w, tau = (tensor.float().numpy().reshape(-1) for tensor in (base[name], parts.unified[name]))
        mask = np.unpackbits(bits.numpy(), bitorder="little", count=w.size)
        values = np.where(mask == 1, w + tau * np.float32(parts.scales[i]), w)
        made[name] = round_once(values, base[name].dtype).reshape(base[name].shape)
    return made
