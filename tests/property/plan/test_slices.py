"""Sliced merges against the plain oracle on renamed tensors; one slice with all layers is the merge of whole models."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.kernels.torch.reference import TorchKernels

from ...merging import load_output, merge, write_checkpoint, write_recipe
from .. import merge_oracle
from ..fold.test_merge_oracle import assert_same_bytes, base_values, merges, tuned
from ..scratch import SCRATCH

LAYERS = 4
SHAPES = {"mlp.w": (9, 33), "attn.w": (257,), "norm": ()}
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"normalize": True},
    "task_arithmetic": {"lambda": 0.7},
    "ties": {"normalize": True},
    "magnitude": {"conflict": "sequential"},
    "dare_ties": {},
    "cabs": {"block": 32},
}
Tensors = dict[str, torch.Tensor]


def base_model(rng: np.random.Generator, dtype: torch.dtype) -> Tensors:
    tensors = {"model.embed.weight": base_values(rng, (7, 5), dtype), "model.norm": base_values(rng, (5,), dtype)}
    for i in range(LAYERS):
        tensors |= {f"model.layers.{i}.{rest}": base_values(rng, shape, dtype) for rest, shape in SHAPES.items()}
    return tensors


@dataclass(frozen=True)
class Part:
    """One slice: which model (-1: the base) and first layer per source, in order, and how many layers."""

    sources: tuple[tuple[int, int], ...]
    length: int
    weights: tuple[float, ...]
    densities: tuple[float, ...]


@st.composite
def parts(draw: st.DrawFn, models: int) -> Part:
    length = draw(st.integers(1, LAYERS))
    firsts = st.integers(0, LAYERS - length)
    chosen = draw(st.lists(st.integers(0, models - 1), min_size=1, max_size=3))
    sources = [(model, draw(firsts)) for model in chosen]
    sources.insert(draw(st.integers(0, len(sources))), (-1, draw(firsts)))
    weights = draw(st.tuples(*[st.sampled_from([1.0, 0.5, -0.3])] * len(chosen)))
    densities = draw(st.tuples(*[st.sampled_from([0.1, 0.5, 0.9])] * len(chosen)))
    return Part(tuple(sources), length, weights, densities)


def renamed(tensors: Tensors, first: int, part: Part, start: int, ends: set[str]) -> Tensors:
    """What one source gives to a slice, under the names of the output."""
    found = {name: tensors[name] for name in ends}
    for step in range(part.length):
        for rest in SHAPES:
            found[f"model.layers.{start + step}.{rest}"] = tensors[f"model.layers.{first + step}.{rest}"]
    return found


def expected(base: Tensors, models: list[Tensors], method: str, chosen: list[Part], seed: int) -> Tensors:
    result: Tensors = {}
    start = 0
    for number, part in enumerate(chosen):
        ends = {"model.embed.weight"} if number == 0 else set()
        ends |= {"model.norm"} if number == len(chosen) - 1 else set()
        of_source = [renamed(base if m < 0 else models[m], first, part, start, ends) for m, first in part.sources]
        place = next(i for i, (m, _) in enumerate(part.sources) if m < 0)
        others = [tensors for i, tensors in enumerate(of_source) if i != place]
        recipe = {"merge_method": method, "parameters": METHODS[method], "seed": seed}
        densities = list(part.densities) if method not in ("linear", "task_arithmetic") else [1.0] * len(others)
        reference = None if method == "linear" else of_source[place]
        result |= merge_oracle.merge(reference, others, recipe, list(part.weights), densities)
        start += part.length
    return result


def written(part: Part, method: str) -> dict[str, Any]:
    sources = []
    values = iter(zip(part.weights, part.densities, strict=True))
    for model, first in part.sources:
        source: dict[str, Any] = {"layer_range": [first, first + part.length]}
        if model < 0:
            if method != "linear":
                sources.append(source | {"model": "base"})
            continue
        weight, density = next(values)
        own = {"weight": weight} | ({} if method in ("linear", "task_arithmetic") else {"density": density})
        sources.append(source | {"model": f"model{model}", "parameters": own})
    return {"sources": sources}


@pytest.mark.parametrize("method", METHODS)
@given(data=st.data())
@merges(12)
def test_sliced_merges_equal_the_oracle_on_renamed_tensors(method: str, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    base = base_model(rng, dtype)
    models = [{name: tuned(rng, t, dtype) for name, t in base.items()} for _ in range(data.draw(st.integers(1, 2)))]
    chosen = data.draw(st.lists(parts(len(models)), min_size=1, max_size=3))
    seed = data.draw(st.integers(0, 99))
    with tempfile.TemporaryDirectory(dir=SCRATCH) as name:
        folder = Path(name)
        for called, tensors in {"base": base, **{f"model{i}": m for i, m in enumerate(models)}}.items():
            write_checkpoint(folder / called, tensors)
        recipe: dict[str, Any] = {"merge_method": method, "slices": [written(part, method) for part in chosen]}
        recipe |= {"parameters": METHODS[method], "seed": seed}
        recipe |= {} if method == "linear" else {"base_model": "base"}
        merge(write_recipe(folder / "recipe.yml", recipe), folder / "out")
        assert_same_bytes(load_output(folder / "out"), expected(base, models, method, chosen, seed))


# -- whole models ------------------------------------------------------------------------------------------------------

WHOLE: dict[str, dict[str, Any]] = {
    "linear": {"weight": [0.1, 0.9]},
    "ties": {"density": 0.3, "scope": "model"},
    "cabs": {"density": {"tadrop": {"mean": 0.3}}, "block": 32},
    "dare_linear": {"density": [0.2, 0.9], "weight": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]},
    "slerp": {"t": [0.2, 0.9]},
    "model_stock": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slices")
    rng = np.random.default_rng(5)
    base = base_model(rng, torch.bfloat16)
    write_checkpoint(folder / "base", base)
    for i in range(2):
        write_checkpoint(folder / f"model{i}", {name: tuned(rng, t, torch.bfloat16) for name, t in base.items()})
    return folder


@pytest.mark.parametrize("method", WHOLE)
def test_one_slice_with_all_layers_is_the_merge_of_whole_models(method: str, folder: Path) -> None:
    names = ["model0"] if method == "slerp" else ["model0", "model1"]
    recipe = {"merge_method": method, "parameters": WHOLE[method]}
    listed = names if method == "linear" else ["base", *names]
    recipe |= {} if method == "linear" else {"base_model": "base"}
    slices = [{"sources": [{"model": name, "layer_range": [0, LAYERS]} for name in listed]}]
    whole = write_recipe(folder / "whole.yml", recipe | {"models": [{"model": name} for name in names]})
    sliced = write_recipe(folder / "sliced.yml", recipe | {"slices": slices})
    merge(whole, folder / method / "whole")
    merge(sliced, folder / method / "sliced")
    assert_same_bytes(load_output(folder / method / "sliced"), load_output(folder / method / "whole"))


def test_statistics_of_whole_models_are_those_of_all_slices(folder: Path) -> None:
    """Two slices that together are the whole model have its threshold and its budget, not one each."""
    halves = [
        {"sources": [{"model": name, "layer_range": list(half)} for name in ("base", "model0", "model1")]}
        for half in ((0, 2), (2, 4))
    ]
    for name in ("ties", "cabs"):
        recipe = {"merge_method": name, "parameters": WHOLE[name], "base_model": "base"}
        models = [{"model": "model0"}, {"model": "model1"}]
        merge(write_recipe(folder / "a.yml", recipe | {"models": models}), folder / "halves" / name / "whole")
        merge(write_recipe(folder / "b.yml", recipe | {"slices": halves}), folder / "halves" / name / "sliced")
        found, wanted = (load_output(folder / "halves" / name / kind) for kind in ("sliced", "whole"))
        assert_same_bytes(found, wanted)


def test_a_threshold_of_a_model_that_gives_nothing_is_not_asked_for(folder: Path) -> None:
    """model1 is merged in one slice only, all of which is excluded."""
    first = [{"model": name, "layer_range": [0, 2]} for name in ("base", "model0")]
    second = [{"model": name, "layer_range": [2, 4]} for name in ("base", "model1")]
    recipe = {"merge_method": "ties", "parameters": WHOLE["ties"], "base_model": "base"}
    recipe["slices"] = [{"sources": first}, {"sources": second}]
    recipe["exclude"] = ["model.layers.[23].*", "model.norm"]
    merge(write_recipe(folder / "nothing.yml", recipe), folder / "nothing")
    found, base = load_output(folder / "nothing"), load_output(folder / "base")
    assert all(torch.equal(found[name], base[name]) for name in base if name.startswith("model.layers.3."))
    assert not torch.equal(found["model.layers.1.mlp.w"], base["model.layers.1.mlp.w"])


def test_nothing_about_the_execution_changes_a_byte(folder: Path) -> None:
    slices = [
        {"sources": [{"model": "base", "layer_range": [0, 3]}, {"model": "model0", "layer_range": [1, 4]}]},
        {
            "sources": [
                {"model": "model1", "layer_range": [2, 4]},
                {"model": "base", "layer_range": [2, 4]},
                {"model": "model1", "layer_range": [0, 2]},
                {"model": "model0", "layer_range": [0, 2]},
            ]
        },
    ]
    parameters = {"density": {"tadrop": {"mean": 0.4}}, "block": 32}
    recipe = {"merge_method": "cabs", "base_model": "base", "slices": slices, "parameters": parameters}
    path = write_recipe(folder / "runs.yml", recipe | {"output": {"shard_size": "3KB"}})
    outputs = []
    for number, (threads, kernels) in enumerate([(1, CpuKernels()), (3, CpuKernels()), (2, TorchKernels("cpu"))]):
        with mock.patch("anabranch.engine.run.memory.LARGEST_SLAB", (64 << 10) << number):
            merge(path, folder / "runs" / str(number), threads=threads, kernels=kernels)
        out = folder / "runs" / str(number)
        outputs.append({f.name: f.read_bytes() for f in out.iterdir() if f.suffix in (".safetensors", ".json")})
    assert len(outputs[0]) > 4
    assert outputs[1] == outputs[0]
    assert outputs[2] == outputs[0]
