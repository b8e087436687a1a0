"""Whole merges against the plain oracle beside this file: every output byte; methods, options, dtypes, window sizes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from anabranch.engine.errors import InputError

from ...merging import merge_tensors
from .. import merge_oracle
from ..kernel_cases import examples
from ..scratch import SCRATCH

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
OUT_DTYPES = (None, None, "bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")
SHAPES = ((), (1,), (7,), (5, 9), (33,), (256,), (64, 33), (3, 17, 11), (4099,), (0,), (3, 0))
SMALLEST_WINDOWS = mock.patch("anabranch.engine.run.memory.LARGEST_SLAB", 64 << 10)


def merges(count):
    """Examples of which a failing one is not made smaller, as each is a whole merge."""
    return settings(examples(count), phases=(Phase.explicit, Phase.reuse, Phase.generate))


def base_values(rng, shape, dtype):
    values = np.asarray(rng.standard_normal(shape) * 0.5)
    values = np.where(rng.random(shape) < 0.05, values * 0.0, values)  # zeros of both signs
    return torch.from_numpy(values).to(dtype)


def tuned(rng, base, dtype):
    """A fine-tuned tensor: equal magnitudes, zeros, one dense and one heavy-tailed kind of change, or none at all."""
    style = rng.integers(0, 5)
    if style == 0:
        return base.to(dtype)
    size = tuple(base.shape)
    change = {
        1: lambda: rng.choice([-0.25, -0.125, 0.0, 0.125, 0.25], size),
        2: lambda: rng.standard_normal(size) * 0.02,
        3: lambda: rng.standard_t(2, size) * 0.01 * (rng.random(size) < 0.5),
        4: lambda: rng.integers(-3, 4, size) * 2.0**-7,
    }[int(style)]()
    return (base.double() + torch.from_numpy(np.asarray(change))).to(dtype)


def checkpoints(rng, shapes, dtypes, models):
    """A base and models; dtypes[0] is the base's, the others are the models'."""
    base = {f"layers.{i}.w": base_values(rng, shape, dtypes[0]) for i, shape in enumerate(shapes)}
    return base, [{name: tuned(rng, t, dtypes[1 + i]) for name, t in base.items()} for i in range(models)]


def assert_same_bytes(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        got = found[name]
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape), name
        view = merge_oracle.INTEGERS[tensor.dtype.itemsize]
        a, b = got.reshape(-1).view(view), tensor.reshape(-1).contiguous().view(view)
        places = torch.nonzero(a != b).reshape(-1)
        assert len(places) == 0, (
            f"{name} {tuple(tensor.shape)} {tensor.dtype}: {len(places)} differ, first at {int(places[0])}: "
            f"{got.reshape(-1)[places[0]]} instead of {tensor.reshape(-1)[places[0]]}"
        )


def check(base, models, recipe, weights, densities, **run_options):
    """Merge and compare; where the oracle refuses, the engine must refuse too."""
    given_densities = densities if "density" in recipe_takes(recipe) else None
    whole = densities if given_densities else [1.0] * len(models)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:

        def run():
            if recipe["merge_method"] in NO_BASE or base is None:
                return merge_tensors(Path(folder), None, models, recipe, weights, **run_options)
            given_weights = None if recipe["merge_method"] in ("sce", *SHARING) else weights
            return merge_tensors(Path(folder), base, models, recipe, given_weights, given_densities, **run_options)

        try:
            reference = None if recipe["merge_method"] in NO_BASE else base
            expected = merge_oracle.merge(reference, models, recipe, weights or [1.0] * len(models), whole)
        except (merge_oracle.Overflow, merge_oracle.NotFinite, merge_oracle.NoDirection) as refusal:
            said = {"NotFinite": "NaN or Inf", "Overflow": "beyond the range", "NoDirection": "choose other weights"}
            said = said[type(refusal).__name__]
            with pytest.raises(InputError, match=said):
                run()
            return
        assert_same_bytes(run(), expected)


def recipe_takes(recipe):
    without = ("task_arithmetic", "sce", *SHARING, *NO_BASE, *SPHERES, *PAIRS)
    return () if recipe["merge_method"] in without else ("density",)


NO_BASE = ("linear", "passthrough", "karcher")
SPHERES = tuple(merge_oracle.SPHERES)
PAIRS = ("nearswap", "arcee_fusion")
SHARING = ("ram", "ramplus_tl")


# -- strategies --------------------------------------------------------------------------------------------------------

WEIGHTS = st.sampled_from([1.0, 0.7, 1.2, 0.0, -0.5, 1 / 3])
DENSITIES = st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.3, 0.5, 0.77, 1.0])
STATISTICS = st.sampled_from(["participation", "quantile", "kurtosis"])
TADROP = st.one_of(
    st.builds(lambda s: {"tadrop": {"statistic": s}}, STATISTICS),
    st.builds(
        lambda s, mean, spread, of: {"tadrop": {"statistic": s, "mean": mean, "spread": spread, "mean_of": of}},
        STATISTICS,
        st.sampled_from([0.1, 0.25, 0.6]),
        st.sampled_from([0.0, 0.1, 0.3]),
        st.sampled_from(["all", "changed"]),
    ),
)
COMMON = {"lambda": st.sampled_from([1.0, 0.3, 1.5, -1.0]), "normalize": st.booleans()}
RESCALE = st.sampled_from(
    [{}, {"rescale": True, "rescale_norm": "none"}, {"rescale": False}]
    + [{"rescale": True, "rescale_norm": norm} for norm in ("l1", "l2")]
)
OWN = {
    "task_arithmetic": st.just({}),
    "magnitude": st.fixed_dictionaries({"conflict": st.sampled_from(["none", "sequential"])}),
    "ties": st.fixed_dictionaries({"scope": st.sampled_from(["tensor", "tensor", "model"])}),
    "cabs": st.fixed_dictionaries(
        {
            "block": st.sampled_from([1, 3, 10, 32, 100, 256, 257, 999, 5000]),
            "tail": st.sampled_from(["keep", "drop"]),
            "overlap": st.sampled_from(["allow", "never"]),
            "overlap_merge": st.sampled_from(["sum", "ties"]),
        }
    ),
    "dare_linear": st.just({}),
    "dare_ties": st.just({}),
    "della": st.fixed_dictionaries({"epsilon": st.sampled_from([0.0, 0.02, 0.04])}),
    "della_linear": st.fixed_dictionaries({"epsilon": st.sampled_from([0.01, 0.04])}),
    "sce": st.fixed_dictionaries({"select_topk": st.sampled_from([0.0, 0.1, 0.3, 0.77, 1.0])}),
    "breadcrumbs": st.fixed_dictionaries({"gamma": st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0])}),
    "breadcrumbs_ties": st.fixed_dictionaries({"gamma": st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0])}),
}
EPSILONS = st.sampled_from([0.0, 1e-5, 0.015625, 0.1, 0.125])
OWN |= {
    "ram": st.fixed_dictionaries({"epsilon": EPSILONS}),
    "ramplus_tl": st.fixed_dictionaries(
        {
            "epsilon": EPSILONS,
            "r": st.sampled_from([0.0, 0.1, 1 / 3, -2.0]),
            "alpha": st.sampled_from([0.0, 0.2, 5.0, -1.0]),
        }
    ),
}


@st.composite
def recipes(draw, method):
    """A recipe, weights and densities."""
    models = 1 if method == "passthrough" else draw(st.integers(1, 4))
    own = draw(OWN.get(method, st.just({})))
    parameters = {key: draw(value) for key, value in COMMON.items()} | own
    if method in NO_BASE:
        parameters = {"normalize": parameters["normalize"]} if method == "linear" else {}
    elif method == "sce":
        del parameters["normalize"]
    elif method in SHARING:
        parameters = own
    elif method != "task_arithmetic":
        rescale = draw(RESCALE)
        if rescale.get("rescale") or method in ("ties", "dare_linear", "dare_ties", "della", "della_linear"):
            parameters |= {k: v for k, v in rescale.items() if rescale["rescale"] or k == "rescale"} if rescale else {}
    if own.get("overlap_merge") == "ties":
        parameters["normalize"] = False
    density = DENSITIES if own.get("scope") == "model" else st.one_of(DENSITIES, DENSITIES, TADROP)
    recipe = {"merge_method": method, "parameters": parameters, "seed": draw(st.integers(0, 2**63 - 1))}
    out_dtype = draw(st.sampled_from(OUT_DTYPES))
    if out_dtype:
        recipe["out_dtype"] = out_dtype
        recipe["overflow"] = draw(st.sampled_from(["error", "saturate"]))
    weights = [draw(WEIGHTS) for _ in range(models)]
    return recipe, weights, [draw(density) for _ in range(models)]


@dataclass(frozen=True)
class Checkpoints:
    """What hypothesis chooses and prints; the tensors follow from it."""

    seed: int
    shapes: tuple
    dtypes: tuple

    def make(self):
        return checkpoints(np.random.default_rng(self.seed), self.shapes, self.dtypes, len(self.dtypes) - 1)


@st.composite
def inputs(draw, models, doubles=True):
    allowed = DTYPES if doubles else DTYPES[:3]
    same = st.sampled_from(allowed).map(lambda dtype: [dtype] * (models + 1))
    mixed = st.lists(st.sampled_from(allowed), min_size=models + 1, max_size=models + 1)
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4))
    return Checkpoints(draw(st.integers(0, 2**32)), tuple(shapes), tuple(draw(st.one_of(same, mixed))))


T = st.sampled_from([0.0, 0.3, 0.5, 1.0, 1.25, -0.5])
SPHERE_OPTIONS = {
    "slerp": st.fixed_dictionaries({"t": T}),
    "multislerp": st.fixed_dictionaries({"normalize_weights": st.booleans(), "eps": st.sampled_from([1e-8, 0.01])}),
    "karcher": st.fixed_dictionaries({"max_iter": st.sampled_from([0, 1, 10]), "tol": st.sampled_from([1e-5, 0.1])}),
}
SPHERE_OPTIONS |= {
    "nuslerp": st.sampled_from(
        [
            {},
            {"nuslerp_row_wise": True},
            {"nuslerp_flatten": False},
            {"nuslerp_flatten": False, "nuslerp_row_wise": True},
        ]
    ),
    "model_stock": st.sampled_from([{}, {"filter_wise": True}]),
}
SPHERE_MODELS = {"slerp": (1, 1), "nuslerp": (2, 2), "model_stock": (2, 4)}


@pytest.mark.parametrize("method", SPHERES)
@given(data=st.data())
@merges(12)
def test_coefficients_equal_the_oracle(method, data):
    count = data.draw(st.integers(*SPHERE_MODELS.get(method, (1, 4))))
    base, models = data.draw(inputs(count)).make()
    kind = data.draw(st.sampled_from(["tuned", "tuned", "opposite", "equal", "zero"]))
    if kind != "tuned":
        factor = {"opposite": -1.25, "equal": 1.0, "zero": 0.0}[kind]
        other = models[0] if count > 1 else base
        models[-1] = {name: (other[name].double() * factor).to(t.dtype) for name, t in models[-1].items()}
    if len(base) > 1 and data.draw(st.booleans()):
        models[-1].pop("layers.0.w") if method in ("slerp", "model_stock") or count > 1 else None
    recipe = {"merge_method": method, "parameters": data.draw(SPHERE_OPTIONS.get(method, st.just({})))}
    out_dtype = data.draw(st.sampled_from(OUT_DTYPES))
    if out_dtype:
        recipe |= {"out_dtype": out_dtype, "overflow": data.draw(st.sampled_from(["error", "saturate"]))}
    takes_weights = method in ("nuslerp", "multislerp")
    weights = [data.draw(WEIGHTS) for _ in models] if takes_weights else None
    apart = method not in NO_BASE and (method not in ("nuslerp", "multislerp") or data.draw(st.booleans()))
    check(base if apart else None, models, recipe, weights, None, threads=data.draw(st.integers(1, 2)))


@pytest.mark.parametrize("method", [*OWN, "linear", "passthrough"])
@given(data=st.data())
@merges(12)
def test_small_merges_equal_the_oracle(method, data):
    recipe, weights, densities = data.draw(recipes(method))
    doubles = recipe["parameters"].get("scope") != "model"
    base, models = data.draw(inputs(len(weights), doubles)).make()
    if method == "linear" and len(models) > 1 and len(base) > 1 and data.draw(st.booleans()):
        del models[-1]["layers.0.w"]  # averaged over those that have it
    check(base, models, recipe, weights, densities, threads=data.draw(st.integers(1, 2)))


# -- inputs that do not fit each other ---------------------------------------------------------------------------------

EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class OddModel:
    rows: tuple
    """Rows more or fewer than the base's, of its two matrices."""
    lacks: str
    bad: bool
    """Holds NaN and infinities."""


@dataclass(frozen=True)
class OddCheckpoints:
    """Missing tensors, other numbers of rows, integers, NaN and Inf, 8-bit floats."""

    seed: int
    dtype: torch.dtype
    base_is_bad: bool
    models: list

    def make(self):
        rng = np.random.default_rng(self.seed)
        shapes, dtypes = [(40, 6), (30, 5), (700,), ()], [self.dtype] * (len(self.models) + 1)
        base, tuned_models = checkpoints(rng, shapes, dtypes, len(self.models))
        same = {"counter": torch.arange(5), "flags": torch.tensor([True, False])}
        for odd, tensors in zip(self.models, tuned_models, strict=True):
            for name, rows in zip(("layers.0.w", "layers.1.w"), odd.rows, strict=True):
                whole = tensors[name]
                tensors[name] = torch.cat([whole, whole[:rows]]) if rows >= 0 else whole[:rows]
            tensors |= same
            if odd.bad:
                spoil(rng, tensors["layers.2.w"])
            tensors.pop(odd.lacks, None)
        if self.base_is_bad:
            spoil(rng, base["layers.2.w"])
        return base | same, tuned_models


def spoil(rng, tensor):
    worst = torch.tensor([float("nan"), float("inf"), float("-inf")]).to(tensor.dtype)
    bits = merge_oracle.INTEGERS[tensor.dtype.itemsize]
    tensor.view(bits)[torch.from_numpy(rng.choice(len(tensor), 3, replace=False))] = worst.view(bits)


@st.composite
def odd_inputs(draw, models):
    rows = st.tuples(*[st.sampled_from([0, 0, -7, 3])] * 2)
    lacks = st.sampled_from(["", "", "layers.0.w", "layers.1.w", "layers.2.w", "layers.3.w", "counter"])
    model = st.builds(OddModel, rows, lacks, st.sampled_from([False, False, True]))
    dtype = draw(st.sampled_from((*DTYPES, *EIGHT_BITS)))
    bad = draw(st.sampled_from([False, False, True]))
    return OddCheckpoints(
        draw(st.integers(0, 2**32)), dtype, bad, draw(st.lists(model, min_size=models, max_size=models))
    )


@pytest.mark.parametrize("method", PAIRS)
@given(data=st.data())
@merges(12)
def test_pairs_equal_the_oracle(method, data):
    base, models = data.draw(inputs(1)).make()
    recipe = {"merge_method": method, "parameters": {"t": data.draw(NEAR)} if method == "nearswap" else {}}
    out_dtype = data.draw(st.sampled_from(OUT_DTYPES))
    if out_dtype:
        recipe |= {"out_dtype": out_dtype, "overflow": data.draw(st.sampled_from(["error", "saturate"]))}
    check(base, models, recipe, None, None, threads=data.draw(st.integers(1, 2)))


NEAR = st.sampled_from([0.0, 1e-7, 0.001, 0.0078125, 0.125, 3.0, -1.0])


@pytest.mark.parametrize("method", ["model_stock", "multislerp", "nuslerp", "nearswap"])
@given(data=st.data())
@merges(10)
def test_pairs_and_coefficients_of_inputs_that_do_not_fit_equal_the_oracle(method, data):
    base, models = data.draw(odd_inputs(1 if method == "nearswap" else 2)).make()
    recipe = {"merge_method": method, "vocab": "intersect"}
    if method == "nearswap":
        recipe["parameters"] = {"t": data.draw(NEAR)}
    recipe["nonfinite"] = data.draw(st.sampled_from(["keep-base", "keep-base", "error"]))
    recipe["exclude"] = data.draw(st.sampled_from([[], ["layers.0.*"], ["*.2.w", "counter"]]))
    check(base, models, recipe, None, None)


@pytest.mark.parametrize("method", OWN)
@given(data=st.data())
@merges(12)
def test_inputs_that_do_not_fit_equal_the_oracle(method, data):
    recipe, weights, densities = data.draw(recipes(method))
    assume(recipe["parameters"].get("scope") != "model")
    base, models = data.draw(odd_inputs(len(weights))).make()
    recipe["vocab"] = "intersect"
    recipe["nonfinite"] = data.draw(st.sampled_from(["keep-base", "keep-base", "error"]))
    recipe["exclude"] = data.draw(st.sampled_from([[], ["layers.0.*"], ["*.2.w", "counter"]]))
    check(base, models, recipe, weights, densities)


# -- tensors of many windows -------------------------------------------------------------------------------------------

BIG = ((1 << 20) + 70_001,)
"""More than one window of statistics, eight tiles, and more than sixty of the smallest buffers."""
QUANTILE = {"tadrop": {"statistic": "quantile"}}
LOCAL = {"tadrop": {}}
BUDGET = {"tadrop": {"mean": 0.3, "spread": 0.2, "statistic": "kurtosis"}}
CASES = {
    "task_arithmetic": ({}, (1.0, 1.0)),
    "magnitude": ({}, (0.2, LOCAL)),
    "magnitude-sequential": ({"conflict": "sequential"}, (0.6, 0.6, QUANTILE)),
    "magnitude-l2": ({"rescale": True, "rescale_norm": "l2"}, (0.1, 0.5)),
    "ties": ({}, (0.2, 0.3, LOCAL)),
    "ties-model": ({"scope": "model", "normalize": False}, (0.2, 0.35)),
    "cabs-256": ({"block": 256}, (0.25, BUDGET)),
    "cabs-3": ({"block": 3, "overlap_merge": "ties"}, (0.5, 0.5, 0.5)),
    "cabs-10": ({"block": 10, "overlap": "never", "tail": "drop"}, (0.7, 0.7)),
    "cabs-999": ({"block": 999}, (0.25, LOCAL, QUANTILE)),
    "cabs-999-l1": ({"block": 999, "rescale": True, "rescale_norm": "l1"}, (0.25, 0.5)),
    "cabs-65535-l2": ({"block": 65535, "rescale": True, "rescale_norm": "l2"}, (0.25, 0.25)),
    "dare_linear": ({}, (0.1, 0.7)),
    "dare_ties-l1": ({"rescale_norm": "l1"}, (0.1, LOCAL)),
    "della": ({"epsilon": 0.1}, (0.2, 0.7, LOCAL)),
    "della_linear-l1": ({"rescale_norm": "l1"}, (0.2, BUDGET)),
    "della_linear-none": ({"rescale": False, "epsilon": 0.0}, (0.3, QUANTILE)),
    "sce": ({"select_topk": 0.3}, (1.0, 1.0, 1.0)),
    "sce-all": ({}, (1.0, 1.0)),
    "breadcrumbs": ({"gamma": 0.05}, (0.2, 0.95, LOCAL)),
    "breadcrumbs_ties-l2": ({"gamma": 0.2, "rescale": True, "rescale_norm": "l2"}, (0.3, QUANTILE)),
    "linear": ({}, (1.0, 1.0)),
    "slerp": ({"t": 0.3}, (1.0,)),
    "nearswap": ({"t": 0.02}, (1.0,)),
    "arcee_fusion": ({}, (1.0,)),
    "nuslerp": ({}, (1.0, 1.0)),
    "multislerp": ({}, (1.0, 1.0, 1.0)),
    "karcher": ({}, (1.0, 1.0, 1.0)),
    "model_stock": ({}, (1.0, 1.0, 1.0)),
}


def coarse(rng, dtype, models, shape=BIG):
    """Large tensors with few distinct magnitudes, so that every cut goes through many equal values."""
    base = base_values(rng, shape, dtype)
    steps = [0.0, 0.0, 2.0**-6, -(2.0**-6), 2.0**-5, -(2.0**-5), 2.0**-4]
    return {"w": base}, [
        {"w": (base.double() + torch.from_numpy(rng.choice(steps, shape))).to(dtype)} for _ in range(models)
    ]


def smooth(rng, dtype, models):
    base = base_values(rng, BIG, dtype)
    return {"w": base}, [
        {"w": (base.double() + torch.from_numpy(rng.standard_t(3, BIG) * 0.01)).to(dtype)} for _ in range(models)
    ]


SMOOTH = ("ties", "cabs-999", "della_linear-none", "breadcrumbs")
"""The fast ones of those whose magnitudes are hardly ever equal; others add no way to order them."""


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        *((case, coarse) for case in CASES),
        *(pytest.param(case, smooth, marks=() if case in SMOOTH else pytest.mark.slow) for case in CASES),
    ],
)
def test_many_windows_equal_the_oracle(case, kind):
    parameters, densities = CASES[case]
    dtype = torch.bfloat16 if kind is coarse else torch.float32
    base, models = kind(np.random.default_rng(7), dtype, len(densities))
    recipe = {"merge_method": case.split("-")[0], "parameters": parameters, "seed": 5}
    weighted = recipe["merge_method"] not in ("slerp", "karcher", "model_stock", *PAIRS)
    weights = (1.0, 0.7, -0.4)[: len(models)] if weighted else None
    with SMALLEST_WINDOWS:
        check(base, models, recipe, weights, densities, threads=3)


@pytest.mark.parametrize("shape", [(700, 1537), (96, 4096), (3, 131_073), (90_001, 3), (50_000, 1)])
def test_rows_over_many_windows_equal_the_oracle(shape):
    base, models = coarse(np.random.default_rng(9), torch.bfloat16, 2, shape)
    recipe = {"merge_method": "della", "parameters": {"epsilon": 0.2}, "seed": 3}
    with SMALLEST_WINDOWS:
        check(base, models, recipe, (1.0, 0.5), (0.5, LOCAL), threads=3)


@pytest.mark.parametrize("shape", [(700, 1537), (3, 131_073), (90_001, 3), (50_000, 1), (40, 30, 700), (9000, 64)])
def test_columns_over_many_windows_equal_the_oracle(shape):
    """Columns of dot products whose terms are all sizes, so that another order of sums gives another bit."""
    rng = np.random.default_rng(7)
    models = [{"w": torch.from_numpy(rng.standard_normal(shape) * 2.0 ** rng.integers(-9, 9, shape)).float()}]
    models.append({"w": (models[0]["w"] * 0.5 + torch.from_numpy(rng.standard_normal(shape)).float())})
    parameters = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    with SMALLEST_WINDOWS:
        recipe = {"merge_method": "nuslerp", "parameters": parameters, "out_dtype": "float64"}
        check(None, models, recipe, (0.3, 0.5), None, threads=3)


@pytest.mark.parametrize("shape", [(700, 1537), (96, 4096), (3, 131_073)])
@pytest.mark.parametrize("method", ["arcee_fusion", "model_stock", "nuslerp"])
def test_rows_merged_alone_over_many_windows_equal_the_oracle(method, shape):
    base, models = coarse(np.random.default_rng(9), torch.bfloat16, 1 if method == "arcee_fusion" else 2, shape)
    parameters = {"model_stock": {"filter_wise": True}, "nuslerp": {"nuslerp_flatten": False}}.get(method, {})
    with SMALLEST_WINDOWS:
        check(base, models, {"merge_method": method, "parameters": parameters}, None, None, threads=3)
