"""Recipes that share a reading write the bytes of merges of their own, and share what is the same for them."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from anabranch.engine.errors import InputError
from anabranch.engine.kernels.protocol import Kernels
from anabranch.engine.kernels.torch.reference import TorchKernels
from anabranch.engine.models.opening import Opened
from anabranch.engine.output.commit import OutputDirectory
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run.local import LocalRunner
from anabranch.engine.run.meter import Meter
from anabranch.engine.run.protocols import Member, Silent
from anabranch.engine.run.runner import run as run_members
from anabranch.engine.run.shard import Shard
from anabranch.engine.run.work import SurveyWork
from anabranch.engine.storage.opening import open_store

from ...merging import local_runner, merge_together, write_recipe
from .test_counted_work import CountingKernels
from .test_determinism import BUDGET, QUANTILE, everything, reading, write_coarse

SHAPES = [(300, 401), (70_001,), (3,), (), (0, 4), (257, 256), (1 << 17, 2)]
MODELS = 3
RECIPES: dict[str, dict[str, Any]] = {
    "sum": {"merge_method": "task_arithmetic", "parameters": {"lambda": 0.7}},
    "mean": {"merge_method": "linear"},
    "top": {"merge_method": "magnitude", "parameters": {"density": 0.3, "rescale": True, "rescale_norm": "l1"}},
    "turns": {"merge_method": "magnitude", "parameters": {"density": 0.6, "conflict": "sequential"}},
    "ties": {"merge_method": "ties", "parameters": {"density": 0.3}},
    "ties-quantile": {"merge_method": "ties", "parameters": {"density": QUANTILE}},
    "ties-model": {"merge_method": "ties", "parameters": {"density": 0.2, "scope": "model"}},
    "ties-model-denser": {"merge_method": "ties", "parameters": {"density": 0.4, "scope": "model"}},
    "cabs": {"merge_method": "cabs", "parameters": {"density": 0.25, "block": 256}},
    "cabs-ties": {"merge_method": "cabs", "parameters": {"density": 0.6, "block": 256, "overlap_merge": "ties"}},
    "cabs-budget": {"merge_method": "cabs", "parameters": {"density": BUDGET, "block": 256}},
    "cabs-odd": {"merge_method": "cabs", "parameters": {"density": 0.5, "block": 999}, "out_dtype": "float16"},
    "cabs-odder": {
        "merge_method": "cabs",
        "parameters": {"density": 0.5, "block": 65_521, "rescale": True, "rescale_norm": "l2"},
    },
    "dare": {"merge_method": "dare_ties", "parameters": {"density": {"tadrop": {}}}, "seed": 11},
    "rows": {"merge_method": "della", "parameters": {"density": 0.5, "epsilon": 0.2}, "seed": 3},
    "band": {"merge_method": "breadcrumbs_ties", "parameters": {"density": 0.4, "gamma": 0.05}},
    "variance": {"merge_method": "sce", "parameters": {"select_topk": 0.3}},
    "ram": {"merge_method": "ram"},
    "ramplus": {"merge_method": "ramplus_tl"},
    "karcher": {"merge_method": "karcher"},
    "stock-by-row": {"merge_method": "model_stock", "parameters": {"filter_wise": True}},
    "stock": {"merge_method": "model_stock"},
    "copies": {"merge_method": "task_arithmetic", "exclude": ["*.0.*", "*.5.*"]},
    "dare-budget": {"merge_method": "dare_linear", "parameters": {"density": BUDGET}, "seed": 12},
}
WITHOUT_WEIGHTS = ("karcher", "model_stock", "slerp", "sce", "ram", "ramplus_tl")
ORDERS = {"": (0, 1, 2), "reversed": (2, 1, 0), "fewer": (1, 2), "twice": (1, 1)}
EXECUTIONS: list[dict[str, Any]] = [
    {"threads": 2},
    {"threads": 1, "slab_kib": 64},
    {"threads": 3, "slab_kib": 200},
    {"threads": 2, "slab_kib": 64, "keep_inputs": False},
    {"threads": 2, "slab_kib": 300, "kernels": lambda: TorchKernels("cpu")},
    {"threads": 2, "limit_mib": 390},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coarse(tmp_path_factory.mktemp("together"), SHAPES, MODELS, shards=2, seed=6)


def write(folder: Path, name: str, content: Mapping[str, Any], order: Sequence[int], weights: Sequence[float]) -> Path:
    models: list[dict[str, Any]] = []
    for m, weight in zip(order, weights, strict=False):
        parameters = {} if content["merge_method"] in WITHOUT_WEIGHTS else {"parameters": {"weight": weight}}
        models.append({"model": str(folder / f"model{m}")} | parameters)
    base = {} if content["merge_method"] in ("linear", "karcher") else {"base_model": str(folder / "base")}
    return write_recipe(
        folder / f"{name}.yml", dict(content) | base | {"models": models, "output": {"shard_size": "300KB"}}
    )


def run(
    recipes: Sequence[Path],
    outs: Sequence[Path],
    threads: int = 2,
    slab_kib: int = 2048,
    kernels: Any = None,
    keep_inputs: bool = True,
    limit_mib: int = 1024,
) -> list[dict[str, Any]]:
    with reading(slab_kib, keep_inputs):
        made: Kernels | None = kernels() if kernels else None
        merge_together(dict(zip(recipes, outs, strict=True)), threads, limit_mib, made)
    return [everything(out) for out in outs]


def random_recipes(folder: Path, seed: int) -> list[Path]:
    """Two to five recipes of any methods; some differ in weights only."""
    chance = random.Random(seed)
    names = chance.sample(list(RECIPES), chance.randint(1, 4))
    found = []
    for name in names:
        order = ORDERS[chance.choice(list(ORDERS))]
        for variant in range(chance.randint(1, 2)):
            weights = [round(chance.uniform(-1, 2), 3) for _ in order]
            found.append(write(folder, f"{name}-{seed}-{variant}", RECIPES[name], order, weights))
    return found


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 12))])
def test_recipes_merged_together_have_the_bytes_of_merges_of_their_own(folder: Path, tmp_path: Path, seed: int) -> None:
    recipes = random_recipes(folder, seed)
    expected = [run([recipe], [tmp_path / f"alone-{recipe.stem}"])[0] for recipe in recipes]
    for number in (seed % len(EXECUTIONS), (seed + 2) % len(EXECUTIONS)):
        outs = [tmp_path / f"{number}-{recipe.stem}" for recipe in recipes]
        for recipe, mine, other in zip(recipes, run(recipes, outs, **EXECUTIONS[number]), expected, strict=True):
            assert mine.keys() == other.keys(), recipe
            assert not [file for file in other if mine[file] != other[file]], recipe


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (5, 8))])
def test_members_that_are_at_different_points_go_on(folder: Path, tmp_path: Path, seed: int) -> None:
    """Any part of any unfinished output may be missing; one member may be finished, another not begun."""
    recipes = random_recipes(folder, seed)
    recipes.append(write(folder, f"late-{seed}", RECIPES["cabs-budget"], (0, 1, 2), (1, 2, 3)))
    outs = [tmp_path / recipe.stem for recipe in recipes]
    expected = run(recipes, outs)
    for attempt in range(3):
        chance = random.Random(100 * seed + attempt)
        again = [tmp_path / f"{attempt}-{recipe.stem}" for recipe in recipes]
        for place, (out, copy) in enumerate(zip(outs, again, strict=True)):
            kind = chance.choice(["finished", "part", "part", "new"]) if place else "part"
            if kind == "new":
                continue
            shutil.copytree(out, copy)
            if kind == "part":
                (copy / "anabranch.manifest.json").unlink()
                files = [f for f in expected[place] if f not in (".anabranch/plan.json", "anabranch.manifest.json")]
                for file in chance.sample(files, len(files) // 2):
                    (copy / file).unlink()
        assert run(recipes, again, **EXECUTIONS[attempt]) == expected


ALMOST_ALIKE: dict[str, list[dict[str, Any]]] = {
    "della": [{"epsilon": 0.1}, {"epsilon": 0.2}, {"epsilon": 0.2, "rescale": False}],
    "breadcrumbs": [{"gamma": 0.01}, {"gamma": 0.2}],
    "ramplus_tl": [{"epsilon": 0.02}, {"epsilon": 0.05}, {"epsilon": 0.02, "alpha": 1, "r": 0.5}, {"r": 0}],
    "sce": [{"select_topk": 0.2}, {"select_topk": 0.4}, {"select_topk": 1.0}, {"select_topk": 0.4, "lambda": 0.5}],
}


@pytest.mark.parametrize("method", ALMOST_ALIKE)
def test_recipes_that_select_almost_alike_have_the_bytes_of_merges_of_their_own(
    folder: Path, tmp_path: Path, method: str
) -> None:
    """Beside them a recipe that keeps everything, and one whose changes activations order."""
    squares = {
        f"layers.{i}.w": torch.rand(shape[-1]) for i, shape in enumerate(SHAPES) if 0 < len(shape) < 3 and shape[0]
    }
    save_file({k: v for k, v in squares.items() if v.numel()}, tmp_path / "squares.safetensors")
    common = {
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / f"model{m}")} for m in range(2)],
        "output": {"shard_size": "300KB"},
    }
    density = {} if method in WITHOUT_WEIGHTS else {"density": 0.5}
    contents = [{"merge_method": method, "parameters": density | own} for own in ALMOST_ALIKE[method]]
    contents.append({"merge_method": "task_arithmetic", "parameters": {}})
    if method not in WITHOUT_WEIGHTS:
        contents.append(contents[0] | {"activations": str(tmp_path / "squares.safetensors")})
    recipes = [write_recipe(tmp_path / f"r{i}.yml", content | common) for i, content in enumerate(contents)]
    expected = [run([recipe], [tmp_path / f"alone-{recipe.stem}"])[0] for recipe in recipes]
    outs = [tmp_path / recipe.stem for recipe in recipes]
    for mine, other in zip(run(recipes, outs, threads=2, slab_kib=300), expected, strict=True):
        assert not [file for file in other if mine[file] != other[file]]
    weights = {tuple(other[file] for file in sorted(other) if file.endswith(".safetensors")) for other in expected}
    assert len(weights) == len(recipes)


# -- counted -----------------------------------------------------------------------------------------------------------


def counted(recipes: Sequence[Path], out: Path) -> tuple[Meter, CountingKernels]:
    opened = Opened()
    members = []
    for recipe in recipes:
        inputs = open_inputs(load_recipe(recipe), recipe.parent, opened)
        members.append(Member(inputs, OutputDirectory(inputs.plan, open_store(str(out / recipe.stem), create=True))))
    meter, kernels = Meter(), CountingKernels(whole=False)
    run_members(members, local_runner(members, kernels=kernels, meter=meter), Silent())
    return meter, kernels


@pytest.mark.parametrize(
    ("name", "selecting"),
    [("cabs", "mask_blocks"), ("cabs-budget", "mask_blocks"), ("ties", "mask_top"), ("dare", "mask_random")],
)
def test_recipes_of_other_weights_read_and_select_as_one(
    folder: Path, tmp_path: Path, name: str, selecting: str
) -> None:
    weights = [(1.0, 0.5, 0.2), (0.3, 0.3, 0.3), (2.0, -1.0, 0.1), (1.0, 1.0, 1.0)]
    recipes = [write(folder, f"{name}-w{i}", RECIPES[name], (0, 1, 2), w) for i, w in enumerate(weights)]
    alone, _ = counted(recipes[:1], tmp_path / "one")
    _, two = counted(recipes[:2], tmp_path / "two")
    together, four = counted(recipes, tmp_path / "four")
    assert together.usage["read"].bytes == alone.usage["read"].bytes > 0
    assert together.usage["fold"].bytes == alone.usage["fold"].bytes
    assert together.usage["write"].bytes == 4 * alone.usage["write"].bytes
    for call in (selecting, "task_vector", "decode"):
        assert four.calls[call] == two.calls[call] > 0
    assert four.calls["finish"] > two.calls["finish"]


@pytest.mark.parametrize(
    ("first", "second", "shared"), [("ties", "magnitude", "mask_top"), ("dare_ties", "dare_linear", "mask_random")]
)
def test_methods_that_differ_in_their_consensus_share_masks(
    folder: Path, tmp_path: Path, first: str, second: str, shared: str
) -> None:
    recipes = [
        write(folder, f"{m}-{w}", {"merge_method": m, "parameters": {"density": 0.3}}, (0, 1), (w, 1))
        for m in (first, second)
        for w in (0.5, 0.6)
    ]
    _, two = counted(recipes[:2], tmp_path / "two")
    _, four = counted(recipes, tmp_path / "four")
    assert four.calls[shared] == two.calls[shared] > 0


def test_slerps_share_dot_products(folder: Path, tmp_path: Path) -> None:
    recipes = [
        write(folder, f"slerp-{t}", {"merge_method": "slerp", "parameters": {"t": t}}, (0,), (1,))
        for t in (0.2, 0.7, 1)
    ]
    one, alone = counted(recipes[:1], tmp_path / "one")
    three, together = counted(recipes, tmp_path / "three")
    assert three.usage["read"].bytes == one.usage["read"].bytes > 0
    assert together.calls["dots"] == alone.calls["dots"] > 0
    for recipe in recipes:
        [expected] = run([recipe], [tmp_path / f"alone-{recipe.stem}"])
        assert everything(tmp_path / "three" / recipe.stem) == expected


def test_recipes_of_other_models_read_each_model_once(folder: Path, tmp_path: Path) -> None:
    orders = [(0, 1), (1, 0), (1, 2)]
    recipes = [write(folder, f"pair{i}", RECIPES["cabs"], order, (1, 1)) for i, order in enumerate(orders)]
    every, _ = counted([write(folder, "all", RECIPES["cabs"], (0, 1, 2), (1, 1, 1))], tmp_path / "all")
    pairs, _ = counted(recipes, tmp_path / "pairs")
    assert pairs.usage["read"].bytes == every.usage["read"].bytes


def test_recipes_of_one_budget_survey_once(folder: Path, tmp_path: Path) -> None:
    """Its own density follows from the same statistics for each."""
    other = RECIPES["cabs-budget"] | {"parameters": {"density": {"tadrop": {"mean": 0.4, "spread": 0.2}}, "block": 256}}
    recipes = [
        write(folder, "budget-a", RECIPES["cabs-budget"], (0, 1, 2), (1, 1, 1)),
        write(folder, "budget-b", other, (0, 1, 2), (1, 1, 1)),
    ]
    rounds: list[list[Shard]] = []
    work = LocalRunner.run

    def remember(self: LocalRunner, kind: Any, shards: Sequence[Shard], done: Any) -> None:
        if isinstance(kind, SurveyWork):
            rounds.append(list(shards))
        work(self, kind, shards, done)

    with mock.patch.object(LocalRunner, "run", remember):
        counted(recipes, tmp_path / "two")
    [shards] = rounds
    assert {shard.members for shard in shards} == {(0, 1)}
    densities = [everything(tmp_path / "two" / recipe.stem)["anabranch.manifest.json"] for recipe in recipes]
    assert densities[0] != densities[1]


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_recipe_that_overflows_stops_all_and_spoils_none(folder: Path, tmp_path: Path) -> None:
    good = [write(folder, f"good{i}", RECIPES["cabs-odd"], (0, 1, 2), (w, 1, 1)) for i, w in enumerate((1, 0.5))]
    bad = write(folder, "bad", RECIPES["cabs-odd"], (0, 1, 2), (1e30, 1, 1))
    recipes = [good[0], bad, good[1]]
    outs = [tmp_path / recipe.stem for recipe in recipes]
    with pytest.raises(InputError, match=rf"^{outs[1]}: tensor .* beyond the range of F16") as raised:
        run(recipes, outs)
    assert "smaller weights" in str(raised.value.hint)
    for out in outs:
        assert not (out / "anabranch.manifest.json").exists()
        assert not list(out.rglob("*.tmp"))
    expected = [run([recipe], [tmp_path / f"alone-{recipe.stem}"])[0] for recipe in good]
    assert run(good, [outs[0], outs[2]]) == expected


def test_every_pair_of_methods_shares_a_reading(folder: Path, tmp_path: Path) -> None:
    """Layouts follow from reference and output dtype alone, whatever the method."""
    recipes = [write(folder, f"pair-{name}", content, (0, 1), (1, 1)) for name, content in RECIPES.items()]
    plans = [open_inputs(load_recipe(recipe), folder).plan for recipe in recipes]
    for a, b in itertools.combinations(plans, 2):
        assert [shard.tasks for shard in a.shards] == [shard.tasks for shard in b.shards]
