"""The merge as the documentation defines it, on whole tensors, by sorts: slow, plain, written apart from the engine."""

from __future__ import annotations

import hashlib
import json
import math
from fnmatch import fnmatchcase

import numpy as np
import torch

from anabranch.engine.kernels.torch.rowwise import divergence

from .coefficient_oracle import SPHERES, NoDirection

SAFETENSORS_TYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
__all__ = ["INTEGERS", "SPHERES", "NoDirection", "NotFinite", "Overflow", "merge"]
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
DEFAULTS = {
    "task_arithmetic": {"normalize": False},
    "magnitude": {"normalize": False, "conflict": "none"},
    "ties": {"normalize": True, "density": 1.0, "scope": "tensor", "rescale_norm": "l1"},
    "cabs": {"normalize": False, "block": 256, "tail": "keep", "overlap": "allow", "overlap_merge": "sum"},
    "dare_linear": {"normalize": False, "density": 1.0, "rescale": True},
    "dare_ties": {"normalize": False, "density": 1.0, "rescale": True},
    "della": {"normalize": True, "density": 1.0, "epsilon": 0.15, "rescale": True},
    "della_linear": {"normalize": False, "density": 1.0, "epsilon": 0.15, "rescale": True},
    "sce": {"normalize": True, "select_topk": 1.0},
    "breadcrumbs": {"normalize": False, "density": 1.0, "gamma": 0.01, "rescale_norm": "l1"},
    "breadcrumbs_ties": {"normalize": False, "density": 1.0, "gamma": 0.01, "rescale_norm": "l1"},
    "linear": {"normalize": True},
    "passthrough": {},
    "slerp": {},
    "nuslerp": {},
    "multislerp": {"normalize_weights": True, "eps": 1e-8},
    "karcher": {"max_iter": 10, "tol": 1e-5},
    "model_stock": {},
    "nearswap": {},
    "arcee_fusion": {},
    "ram": {"epsilon": 1e-5},
    "ramplus_tl": {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2},
}
BY_SIGN = ("sce", "ties", "dare_ties", "della", "breadcrumbs_ties")


class Overflow(Exception):
    """A result lies beyond the output dtype."""


class NotFinite(Exception):
    """A merged input holds NaN or Inf."""


def merge(base, models, recipe, weights, densities, squares=None):
    """The merged tensors by name, or Overflow, or NotFinite.

    Args:
        base: tensors by name; None for methods without a base, whose reference is the first model.
        models: tensors by name, per model.
        recipe: a recipe without models; parameters under "parameters".
        weights: per model; scales for `passthrough`.
        densities: per model: a number, or {"tadrop": {...}}.
        squares: per model, mean squares of input features by tensor name; None for no model.
    """
    return _Merge(base, models, recipe, weights, densities, squares or [{}] * len(models)).run()


class _Merge:
    def __init__(self, base, models, recipe, weights, densities, squares):
        self.squares = squares
        self.models, self.weights, self.densities = models, weights, densities
        self.reference, self.has_base = base if base is not None else models[0], base is not None
        self.recipe, self.method = recipe, recipe["merge_method"]
        given = {"lambda": 1.0, "rescale": False, "rescale_norm": "none"} | DEFAULTS[self.method]
        self.p = given | recipe.get("parameters", {})
        self.saturate = recipe.get("overflow") == "saturate"
        self.keep_base = recipe.get("nonfinite") == "keep-base"

    def run(self):
        merged = [name for name in self.reference if self._is_merged(name)]
        self.budgets = self._tadrop_budgets(merged)
        self.thresholds = self._model_thresholds(merged)
        return {name: self._tensor(name, name in merged) for name in self.reference}

    def _is_merged(self, name):
        reference = self.reference[name]
        excluded = any(fnmatchcase(name, pattern) for pattern in self.recipe.get("exclude", ()))
        present = any(name in model for model in self.models)
        return reference.is_floating_point() and reference.numel() > 0 and present and not excluded

    def out_dtype(self, name):
        wanted = self.recipe.get("out_dtype") or self.recipe.get("dtype")
        return SAFETENSORS_TYPES[wanted] if wanted else self.reference[name].dtype

    def _tensor(self, name, is_merged):
        reference = self.reference[name]
        if not is_merged:
            return self._copied(name)
        if self.method in SPHERES:
            on_base = self.method == "model_stock" or (self.has_base and self.method in ("nuslerp", "multislerp"))
            flat = self._from_differences(name) if on_base else self._from_models(name)
        else:
            by_method = {"linear": self._linear, "passthrough": self._passthrough}
            by_method |= {"nearswap": self._nearswap, "arcee_fusion": self._arcee_fusion}
            by_method |= {"ram": self._ram, "ramplus_tl": self._ram}
            flat = by_method.get(self.method, self._task_vectors)(name)
        return flat.reshape(reference.shape)

    def _copied(self, name):
        reference = self.reference[name]
        if not reference.is_floating_point() or self.out_dtype(name) == reference.dtype:
            return reference
        values = self.values(reference, self.real(name))
        return self._rounded(values, name, unchecked=~np.isfinite(values)).reshape(reference.shape)

    # -- inputs --------------------------------------------------------------------------------------------------------

    def real(self, name):
        """fp64 when any input of the tensor is F64, else fp32."""
        inputs = [self.reference[name], *(model[name] for model in self.models if name in model)]
        return np.float64 if any(tensor.dtype == torch.float64 for tensor in inputs) else np.float32

    def values(self, tensor, real):
        return tensor.reshape(-1).to(torch.float64 if real is np.float64 else torch.float32).numpy().copy()

    def deltas(self, name):
        """t_i of every model; all 0 where it lacks the tensor, 0 beyond the rows that it has."""
        real = self.real(name)
        base = self.values(self.reference[name], real)
        found = []
        for model in self.models:
            t = np.zeros(base.size, real)
            if name in model:
                values = self.values(model[name], real)[: base.size]
                with np.errstate(invalid="ignore", over="ignore"):
                    t[: values.size] = values - base[: values.size]
                if not self.keep_base and not np.isfinite(values).all():
                    raise NotFinite(name)
            if self.keep_base:
                t[~np.isfinite(t)] = 0
            found.append(t)
        if not self.keep_base and not np.isfinite(base).all():
            raise NotFinite(name)
        return base, found

    # -- whole-model statistics ----------------------------------------------------------------------------------------

    def _tadrop_budgets(self, merged):
        budgets = {}
        for i, wanted in enumerate(self.densities):
            if not isinstance(wanted, dict) or "mean" not in wanted["tadrop"]:
                continue
            names = [name for name in merged if name in self.models[i]]
            u = {name: redundancy(self.deltas(name)[1][i], wanted["tadrop"]) for name in names}
            known = [name for name in names if not math.isnan(u[name])]
            size = {name: counted(self.deltas(name)[1][i], wanted["tadrop"]) for name in names}
            budgets[i] = dict.fromkeys(names, 0.0)
            if known:
                sparsity = budget([u[n] for n in known], [size[n] for n in known], wanted["tadrop"])
                budgets[i] |= {name: 1.0 - s for name, s in zip(known, sparsity, strict=True)}
        return budgets

    def _model_thresholds(self, merged):
        if self.p.get("scope") != "model" or not merged:
            return None
        thresholds = []
        for i, d in enumerate(self.densities):
            whole = np.concatenate([np.abs(self.deltas(name)[1][i]) for name in merged])
            place = max(whole.size - int(d * whole.size), 1)  # 1-based, from the smallest
            thresholds.append(np.sort(whole)[place - 1])
        return thresholds

    def density(self, i, name, t):
        wanted = self.densities[i]
        if not isinstance(wanted, dict):
            return float(wanted)
        if "mean" in wanted["tadrop"]:
            return self.budgets[i].get(name, 0.0)
        u = redundancy(t, wanted["tadrop"])
        return 0.0 if math.isnan(u) else 1.0 - min(u, 0.99)

    # -- one tensor ----------------------------------------------------------------------------------------------------

    def _linear(self, name):
        real = self.real(name)
        present = [i for i, model in enumerate(self.models) if name in model]
        total = np.zeros(self.reference[name].numel(), real)
        weights = [real(self.weights[i]) for i in present]
        for i, w in zip(present, weights, strict=True):
            values = self.values(self.models[i][name], real)
            if not np.isfinite(values).all():
                raise NotFinite(name)
            total = total + values * w
        if self.p["normalize"]:
            total = total / denominator(weights, real)
        return self._rounded(total, name)

    def _passthrough(self, name):
        if self.weights[0] == 1.0:
            return self._copied(name).reshape(-1)
        real = self.real(name)
        values = self.values(self.models[0][name], real)
        if not np.isfinite(values).all():
            raise NotFinite(name)
        return self._rounded(real(0) + values * real(self.weights[0]), name)

    def _nearswap(self, name):
        base, (t,) = self.deltas(name)
        real = base.dtype.type
        bound = real(self.p["t"])
        share = np.minimum(np.maximum(bound / np.maximum(np.abs(t), real(1e-6)), real(0)), real(1))
        change = share * t
        return self._onto_base(name, base, change, change != 0)

    def _arcee_fusion(self, name):
        """The divergence's own bits come from the kernels, whose values are held to numpy's in test_kernels_equal."""
        base, (t,) = self.deltas(name)
        real, width = base.dtype.type, self.width(name)
        rows = [torch.from_numpy(x).view(-1, width) for x in (self.values(self.models[0][name], real), base)]
        importance = np.abs(t) * np.repeat(divergence(*rows).numpy().astype(real), width)
        ascending = np.sort(importance).astype(np.float64)
        lower, median, upper = (ascending[math.floor(q * (t.size - 1))] for q in (0.25, 0.5, 0.75))
        taken = importance >= real(median + 1.5 * (upper - lower))
        return self._onto_base(name, base, t, taken & (t != 0))

    def _ram(self, name):
        base, deltas = self.deltas(name)
        real = base.dtype.type
        masks = [np.abs(t) > real(self.p["epsilon"]) for t in deltas]
        owners = sum(mask.astype(np.int64) for mask in masks)
        total = np.zeros(base.size, real)
        for t, mask in zip(deltas, masks, strict=True):
            alone, together = mask & (owners == 1), mask & (owners > 1)
            ratio = np.count_nonzero(together) / max(np.count_nonzero(alone), 1)
            factor = 1.0 + self.p["r"] * min(max(ratio, 0.0), self.p["alpha"]) if "r" in self.p else 1.0
            total[alone] += t[alone] * real(factor)
            total[together] += t[together] / owners[together].astype(real)
        return self._onto_base(name, base, total, owners > 0)

    def width(self, name):
        shape = self.reference[name].shape
        return shape[-1] if shape else 1

    def _from_models(self, name):
        """Coefficients times the tensors themselves; slerp's first tensor is the base."""
        real = self.real(name)
        present = [i for i, model in enumerate(self.models) if name in model]
        tensors = [self.models[i][name] for i in present]
        tensors = [self.reference[name], *tensors] if self.method == "slerp" else tensors
        flat = [self.values(tensor, real) for tensor in tensors]
        if not all(np.isfinite(values).all() for values in flat):
            raise NotFinite(name)
        total = np.zeros(flat[0].size, real)
        for values, c in zip(flat, self._coefficients(name, flat, [self.weights[i] for i in present]), strict=True):
            total = np.where(values != 0, total + values * c.astype(real), total)
        return self._rounded(total, name)

    def _from_differences(self, name):
        """The base plus coefficients times task vectors; where all of these are 0, the base's own bits."""
        base, deltas = self.deltas(name)
        real = base.dtype.type
        total, moved = np.zeros(base.size, real), np.zeros(base.size, bool)
        for t, c in zip(deltas, self._coefficients(name, deltas, self.weights), strict=True):
            total = np.where(t != 0, total + t * c.astype(real), total)
            moved |= t != 0
        return self._onto_base(name, base, total, moved)

    def _coefficients(self, name, flat, weights):
        """For every tensor, the coefficient of each of its elements."""
        if len(flat) == 1:
            return [np.ones(flat[0].size)]
        by_row = self.p.get("filter_wise") or not self.p.get("nuslerp_flatten", True)
        if by_row and self.p.get("nuslerp_row_wise") and self.reference[name].ndim > 1:
            return self._column_coefficients(name, flat, weights)
        rows = [values.reshape(-1, self.width(name) if by_row else values.size) for values in flat]
        found = np.empty((len(flat), *rows[0].shape))
        for row in range(len(rows[0])):
            gram = np.array([[ordered_dot(a[row], b[row]) for b in rows] for a in rows])
            found[:, row] = np.array(SPHERES[self.method](gram, weights, self.p))[:, None]
        return found.reshape(len(flat), -1)

    def _column_coefficients(self, name, flat, weights):
        matrices = [values.reshape(self.reference[name].shape[0], -1) for values in flat]
        dots = np.array([[column_dots(a, b) for b in matrices] for a in matrices])
        found = np.array([SPHERES[self.method](gram, weights, self.p) for gram in np.moveaxis(dots, -1, 0)])
        return [np.tile(coefficients, matrices[0].shape[0]) for coefficients in found.T]

    def _task_vectors(self, name):
        base, deltas = self.deltas(name)
        real = base.dtype.type
        present = [i for i, model in enumerate(self.models) if name in model]
        densities = [self.density(i, name, deltas[i]) for i in range(len(deltas))]
        masks = self._masks(name, deltas, densities, present)
        kept = np.zeros(base.size, bool)
        x, votes, weights = [], [], [real(self.weights[i]) for i in present]
        if self.method == "sce":
            weights = [real(w) for w in energies([np.where(masks[i], deltas[i], real(0)) for i in present])]
        for i, w in zip(present, weights, strict=True):
            divisor = self._divisor(name, i, deltas[i], masks[i], densities[i])
            used = masks[i] & (deltas[i] != 0)
            kept |= used
            x.append(np.where(used, deltas[i] / divisor * w, real(0)))
            votes.append(np.where(used, deltas[i], real(0)) if self.method == "sce" else x[-1])
        total = self._combine(x, votes, weights, real)
        if self.p["lambda"] != 1.0:
            total = total * real(self.p["lambda"])
        return self._onto_base(name, base, total, kept)

    def _onto_base(self, name, base, total, kept):
        result = self._rounded(np.where(kept, base + total, base), name, unchecked=~kept & ~np.isfinite(base))
        if self.out_dtype(name) == self.reference[name].dtype:
            bits = INTEGERS[result.dtype.itemsize]
            own = self.reference[name].reshape(-1).view(bits)
            result = torch.where(torch.from_numpy(kept), result.view(bits), own).view(result.dtype)
        return result

    def _combine(self, x, votes, weights, real):
        total = np.zeros(x[0].size, real)
        for values in votes:
            total = total + values
        by_sign = self.method in BY_SIGN or self.p.get("overlap_merge") == "ties"
        if not by_sign:
            whole = denominator([real(w) for w in self.weights], real)
            return total / whole if self.p["normalize"] else total
        positive = total >= 0
        agreed, weight_sum, count = np.zeros_like(total), np.zeros_like(total), np.zeros_like(total)
        for values, w in zip(x, weights, strict=True):
            agrees = (values != 0) & ((values > 0) == positive)
            agreed = np.where(agrees, agreed + values, agreed)
            weight_sum = np.where(agrees, weight_sum + w, weight_sum)
            count = count + agrees
        if self.method == "cabs":
            return agreed / np.where(count == 0, real(1), count)
        return agreed / np.where(weight_sum == 0, real(1), weight_sum) if self.p["normalize"] else agreed

    def _divisor(self, name, i, t, mask, density):
        real = t.dtype.type
        if not self.p["rescale"] or self.method == "task_arithmetic":
            return real(1)
        if self.p["rescale_norm"] == "none":
            if self.method in ("della", "della_linear"):
                return np.where(mask, self._probabilities(name, self._order(i, name, t), density), real(1))
            return real(density if density > 0 else 1.0)
        power = 1 if self.p["rescale_norm"] == "l1" else 2
        before, after = ordered_sum(t, power), ordered_sum(np.where(mask, t, t.dtype.type(0)), power)
        share = after / before if before > 0 else 1.0
        share = share if power == 1 else math.sqrt(share)
        return real(share if share > 0 else 1.0)

    def _rounded(self, values, name, unchecked=False):
        out = self.out_dtype(name)
        if self.saturate:
            largest = min(torch.finfo(out).max, float(np.finfo(values.dtype).max))
            values = np.where(unchecked, values, np.clip(values, -largest, largest))
        result = round_once(values, out)
        finite = torch.isfinite(result.float() if out.itemsize < 4 else result).numpy()
        if not (finite | unchecked).all():
            raise Overflow(name)
        return result

    # -- masks ---------------------------------------------------------------------------------------------------------

    def _masks(self, name, deltas, densities, present):
        size = deltas[0].size
        masks = [np.zeros(size, bool) for _ in deltas]
        claims = np.zeros(size, np.int64)
        sequential = self.p.get("conflict") == "sequential"
        if self.method == "sce":
            shared = self._most_variance([deltas[i] for i in present])
            return [shared] * len(deltas)
        for i in present:
            t, d = self._order(i, name, deltas[i]), densities[i]
            if self.method == "task_arithmetic":
                masks[i][:] = True
            elif self.method in ("dare_linear", "dare_ties"):
                masks[i] = uniform(self.recipe.get("seed", 0), i, name, size) < d
            elif self.method in ("della", "della_linear"):
                u = uniform(self.recipe.get("seed", 0), i, name, size)
                masks[i] = u < self._probabilities(name, t, d).astype(np.float64)
            elif self.method in ("breadcrumbs", "breadcrumbs_ties"):
                keep = int(d * size)
                left_out = min(int(self.p["gamma"] * size), size - keep)
                band = magnitude_order(t, np.zeros(size, np.int64))[left_out : left_out + keep]
                masks[i][band] = t[band] != 0
            elif self.method == "cabs":
                masks[i] = self._blocks(t, claims, d)
                claims += masks[i]
            elif self.thresholds is not None:
                masks[i] = np.abs(t) >= self.thresholds[i]
            else:
                used = claims if sequential else np.zeros(size, np.int64)
                masks[i][magnitude_order(t, used)[: int(d * size)]] = True
                masks[i] &= t != 0
                claims += masks[i]
        return masks

    def _order(self, i, name, t):
        """What decides which elements of model i are large: |t|, or |t| times the root of its column's mean square."""
        if name not in self.squares[i]:
            return t
        roots = np.sqrt(self.squares[i][name].astype(np.float64)).astype(t.dtype)
        return (np.abs(t).reshape(-1, roots.size) * roots).reshape(-1)

    def _most_variance(self, deltas):
        """The mask that all models share."""
        if self.p["select_topk"] >= 1:
            return np.ones(deltas[0].size, bool)
        real, count = deltas[0].dtype.type, deltas[0].dtype.type(len(deltas))
        with np.errstate(over="ignore"):
            mean = sum(deltas, np.zeros(deltas[0].size, real)) / count
            variance = sum(((t - mean) * (t - mean) for t in deltas), np.zeros(deltas[0].size, real)) / count
        best = np.lexsort((np.arange(variance.size), -variance))[
            : int(np.count_nonzero(variance) * self.p["select_topk"])
        ]
        mask = np.zeros(variance.size, bool)
        mask[best] = True
        return mask

    def _probabilities(self, name, t, d):
        """p of every element: along each row of the last dimension by |t| ascending, equal ones from the end."""
        real = t.dtype.type
        shape = self.reference[name].shape
        width = shape[-1] if shape else 1
        if width == 1:
            return np.full(t.size, d, real)
        eps = min(self.p["epsilon"], d, 1 - d)
        p = np.empty((t.size // width, width), real)
        for row, values in zip(p, np.abs(t).reshape(-1, width), strict=True):
            ascending = np.lexsort((-np.arange(width), values))
            row[ascending] = real(d - eps) + np.arange(width).astype(real) / real(width - 1) * real(2 * eps)
        return p.reshape(-1)

    def _blocks(self, t, claims, d):
        m = self.p["block"]
        n = 0 if d <= 0 else min(max(math.floor(d * m + 0.5), 1), m)
        tail = t.size - t.size % m
        last = 0 if self.p["tail"] == "drop" else (n * (t.size % m) + m // 2) // m
        places = np.arange(t.size)
        order = np.lexsort((places, -np.abs(t), claims, places // m))
        mask = np.zeros(t.size, bool)
        mask[order[places % m < np.where(places < tail, n, last)]] = True  # blocks stay where they are in the order
        return mask & (t != 0) & ((claims == 0) | (self.p["overlap"] != "never"))


# -- the pieces --------------------------------------------------------------------------------------------------------


def denominator(weights, real):
    total = real(0)
    for w in weights:
        total = total + w
    return real(1) if abs(total) < 1e-8 else total


def energies(kept):
    """SCE's weights: each model's mean of squares over the sum of these."""
    means = [ordered_sum(t, 2) / t.size for t in kept]
    total = 0.0
    for mean in means:
        total = total + mean
    return [mean / total if total > 0 else 1 / len(means) for mean in means]


def magnitude_order(t, claims):
    """Positions by claims ascending, |t| descending, index ascending."""
    return np.lexsort((np.arange(t.size), -np.abs(t), claims))


NAN_BITS = {
    torch.float64: 0x7FF8 << 48,
    torch.float32: 0x7FC00000,
    torch.float16: 0x7E00,
    torch.bfloat16: 0x7FC0,
    torch.float8_e4m3fn: 0x7F,
    torch.float8_e5m2: 0x7F,
}
"""The one NaN that is written: positive and quiet; of the two 8-bit ones, what torch writes."""


def round_once(values, dtype):
    """One rounding to nearest even, also from fp64 to the short formats, where torch rounds twice."""
    if values.dtype == np.float32 or dtype in (torch.float64, torch.float32):
        result = torch.from_numpy(values.copy()).to(dtype)
    else:
        with np.errstate(over="ignore"):
            near = values.astype(np.float32)
        # Round to odd: a 24-bit value that remembers whether bits were lost rounds to fewer bits like the original.
        inexact = np.isfinite(near) & (near.astype(np.float64) != values)
        even = (near.view(np.uint32) & 1) == 0
        toward = np.nextafter(near, np.where(values > near, np.inf, -np.inf).astype(np.float32))
        result = torch.from_numpy(np.where(inexact & even, toward, near)).to(dtype)
    bits = result.view(INTEGERS[dtype.itemsize])
    bits[torch.from_numpy(np.isnan(values))] = NAN_BITS[dtype]
    if dtype == torch.float8_e4m3fn:  # has no infinity: beyond its range is NaN with a sign, whatever torch does there
        bits[torch.from_numpy(values > 464)] = 0x7F
        bits[torch.from_numpy(values < -464)] = 0xFF
    return bits.view(dtype)


def fold_halves(x):
    """Sum along the last axis: the upper half is added to the lower half until one is left."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def ordered_sum(t, power):
    """Sum of |t|^power in fp64: windows of 2^20 elements as 256 rows of 4096, folded in halves; windows are added."""
    a = np.abs(t.astype(np.float64))
    return ordered({1: a, 2: a * a, 4: (a * a) * (a * a)}[power])


def ordered_dot(a, b):
    return ordered(a.astype(np.float64) * b.astype(np.float64))


def column_dots(a, b):
    """Of each column: groups of rows, each summed row after row, then added in pairs until one is left."""
    products = a.astype(np.float64) * b.astype(np.float64)
    rows = max(1, min(64, 65536 // a.shape[1]))
    sums = [sum(products[i : i + rows], np.zeros(a.shape[1])) for i in range(0, len(products), rows)]
    while len(sums) > 1:
        pairs = [a + b for a, b in zip(sums[::2], sums[1::2], strict=False)]
        sums = pairs + sums[2 * len(pairs) :]
    return sums[0]


def ordered(terms):
    rows = np.zeros(-(-terms.size // 4096) * 4096)
    rows[: terms.size] = terms
    windows = np.zeros(-(-terms.size // (1 << 20)) * 256)  # a row of nothing but padding adds up to +0.0
    windows[: rows.size // 4096] = fold_halves(rows.reshape(-1, 4096))
    total = 0.0
    for window in fold_halves(windows.reshape(-1, 256)):
        total = total + float(window)
    return total


def redundancy(t, options):
    """u of TADrop; NaN for an all-zero task vector."""
    if not t.any():
        return math.nan
    statistic = options.get("statistic", "participation")
    if statistic == "quantile":
        a = np.sort(np.abs(t)).astype(np.float64)
        median, high = (float(a[math.floor(q * (a.size - 1))]) for q in (0.5, 0.99))
        return median / high if high > 0 else 0.0
    squares = ordered_sum(t, 2)
    if statistic == "kurtosis":
        mean = squares / t.size
        return mean * mean / (ordered_sum(t, 4) / t.size)
    total = ordered_sum(t, 1)
    return total * total / (t.size * squares)


def counted(t, options):
    """How many elements of a task vector a target mean counts."""
    return int(np.count_nonzero(t)) if options.get("mean_of") == "changed" else t.size


def budget(u, sizes, options):
    """Sparsities whose mean, weighted by size, is 1 - mean."""
    spread, total = options.get("spread", 0.1), math.fsum(sizes)
    mu = math.fsum(n * x for n, x in zip(sizes, u, strict=True)) / total
    sigma = math.sqrt(math.fsum(n * (x - mu) ** 2 for n, x in zip(sizes, u, strict=True)) / total)
    z = [(x - mu) / sigma if sigma > 0 else 0.0 for x in u]
    low, high = -20.0, 20.0
    for _ in range(100):
        c = (low + high) / 2
        sparsity = [min(max(c + spread * value, 0.0), 0.99) for value in z]
        if math.fsum(n / total * s for n, s in zip(sizes, sparsity, strict=True)) < 1.0 - options["mean"]:
            low = c
        else:
            high = c
    return [min(max((low + high) / 2 + spread * value, 0.0), 0.99) for value in z]


def philox(key, counters):
    """Philox4x32-10 (Salmon et al. 2011): u32 [n, 4] from u32 [n, 4]."""
    mask = np.uint64(0xFFFFFFFF)
    c = [counters[:, j].astype(np.uint64) for j in range(4)]
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        first, second = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        low, high = np.uint64(32), mask
        c = [(second >> low) ^ c[1] ^ k0, second & high, (first >> low) ^ c[3] ^ k1, first & high]
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
    return np.stack(c, axis=1).astype(np.uint32)


def uniform(seed, position, name, size):
    """u of every element of one model's tensor."""
    text = json.dumps([seed, position, name], separators=(",", ":"), ensure_ascii=False)
    key = np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], "<u4")
    q = np.arange(-(-size // 4), dtype=np.uint64)
    counters = np.zeros((q.size, 4), np.uint32)
    counters[:, 0], counters[:, 1] = q & np.uint64(0xFFFFFFFF), q >> np.uint64(32)
    words = philox(key, counters).reshape(-1)[:size]
    return (words >> np.uint32(8)).astype(np.float64) * 2.0**-24
