"""Order statistics from a sample and one count: the same files as from histograms, whatever the sample says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from anabranch.engine.fold import brackets, task_vectors
from anabranch.engine.fold.histograms import Order, OrderPass
from anabranch.engine.fold.passes import Pass
from anabranch.engine.fold.tensor import TensorState
from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.kernels.rank_search import LARGEST_KEY, Bracket
from anabranch.engine.kernels.torch.reference import TorchKernels
from anabranch.engine.plan.demands import SAMPLE_ELEMENTS
from anabranch.engine.plan.windows import cut_windows
from anabranch.engine.run import memory, survey_worker

from ...merging import merge, write_checkpoint, write_recipe

SHAPES = {"coarse": (257, 701), "fine": (1 << 17,), "small": (33, 9), "still": (70_000,)}
"""Tensors with few magnitudes, with as many as elements, smaller than a sample, and without changes."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("brackets")
    generator = torch.Generator().manual_seed(5)

    def noise(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    base = {
        name: noise(shape).to(torch.float32 if name == "fine" else torch.bfloat16) for name, shape in SHAPES.items()
    }
    write_checkpoint(folder / "base", base)
    for i in range(2):
        tuned = {name: (t.float() + 0.01 * (name != "still") * noise(t.shape)).to(t.dtype) for name, t in base.items()}
        write_checkpoint(folder / f"model{i}", tuned)
    return folder


METHODS: dict[str, dict[str, Any]] = {
    "ties": {"merge_method": "ties", "parameters": {"density": 0.2}},
    "two edges": {"merge_method": "breadcrumbs", "parameters": {"density": 0.4, "gamma": 0.02}},
    "variance": {"merge_method": "sce", "parameters": {"select_topk": 0.3}},
    "quantiles": {"merge_method": "magnitude", "parameters": {"density": {"tadrop": {"statistic": "quantile"}}}},
    "surveyed quantiles": {
        "merge_method": "magnitude",
        "parameters": {"density": {"tadrop": {"statistic": "quantile", "mean": 0.4}}},
    },
    "nothing": {"merge_method": "magnitude", "parameters": {"density": 0.0}},
    "everything": {"merge_method": "magnitude", "parameters": {"density": 1.0}},
}


@pytest.fixture(scope="module", params=METHODS)
def recipe(request: pytest.FixtureRequest, checkpoints: Path) -> Path:
    """A recipe, and beside it in `histograms` what it makes without a sample."""
    models = [{"model": str(checkpoints / f"model{i}")} for i in range(2)]
    content = METHODS[request.param] | {"base_model": str(checkpoints / "base"), "models": models}
    path = write_recipe(checkpoints / request.param / "recipe.yml", content)
    merge_by_histograms(path, path.parent / "histograms")
    return path


def assert_as_by_histograms(recipe: Path, out: Path) -> None:
    for name in ("model.safetensors", "anabranch.manifest.json"):
        assert (out / name).read_bytes() == (recipe.parent / "histograms" / name).read_bytes(), name


def merge_by_histograms(recipe: Path, out: Path) -> None:
    """Without samples."""
    with (
        mock.patch.object(task_vectors, "order_passes", histograms),
        mock.patch.object(survey_worker, "order_passes", histograms),
    ):
        merge(recipe, out)


def histograms(state: TensorState, orders: list[Order]) -> list[Pass]:
    """The passes without a sample."""
    return [OrderPass(state, orders, depth, []) for depth in range(len(state.levels))]


Guess = Callable[[brackets.SamplePass, Order, Any], Bracket]
GUESSES: dict[str, Guess | None] = {
    "sampled": None,
    "too high": lambda *_: Bracket(LARGEST_KEY - 9, LARGEST_KEY),
    "too low": lambda *_: Bracket(0, 1),
    "wide": lambda *_: Bracket(1, LARGEST_KEY),
    "everything": lambda *_: Bracket(0, LARGEST_KEY),
    "for one model": lambda _, order, __: Bracket(1, LARGEST_KEY) if order.model else Bracket(5, 5),
}


@pytest.mark.parametrize("kernels", [CpuKernels, TorchKernels], ids=["cpu", "torch"])
@pytest.mark.parametrize("guess", GUESSES)
def test_a_guess_never_shows(recipe: Path, tmp_path: Path, guess: str, kernels: type[Any]) -> None:
    how = GUESSES[guess] or brackets.SamplePass._bracket
    with (
        mock.patch.object(brackets.SamplePass, "_bracket", how),
        mock.patch.object(memory, "LARGEST_SLAB", 256 << 10),
    ):
        merge(recipe, tmp_path / "bracket", kernels=kernels())
    assert_as_by_histograms(recipe, tmp_path / "bracket")


def test_inputs_that_are_read_for_every_look_are_merged_alike(recipe: Path, tmp_path: Path) -> None:
    with mock.patch("anabranch.engine.run.pipeline.resident_slabs", return_value=1 << 40):
        merge(recipe, tmp_path / "bracket")
    assert_as_by_histograms(recipe, tmp_path / "bracket")


@pytest.mark.parametrize("limit", ["FOUND_PER_WINDOW", "FOUND_PER_TENSOR"])
def test_more_keys_than_are_held_are_counted_by_histograms(recipe: Path, tmp_path: Path, limit: str) -> None:
    with (
        mock.patch.object(brackets.SamplePass, "_bracket", GUESSES["wide"]),
        mock.patch.object(brackets, limit, 1000),
    ):
        merge(recipe, tmp_path / "bracket")
    assert_as_by_histograms(recipe, tmp_path / "bracket")


def test_a_window_with_just_as_many_keys_as_are_held_is_counted_alike(tmp_path: Path) -> None:
    count = 1000
    changes = torch.cat([torch.arange(1, count + 1), torch.zeros(96)]) / 64
    write_checkpoint(tmp_path / "base", {"w": torch.zeros(len(changes))})
    write_checkpoint(tmp_path / "model", {"w": changes})
    recipe = write_recipe(
        tmp_path / "recipe.yml",
        {
            "merge_method": "magnitude",
            "base_model": str(tmp_path / "base"),
            "models": [{"model": str(tmp_path / "model")}],
            "parameters": {"density": 1.5 / len(changes)},
        },
    )
    merge_by_histograms(recipe, tmp_path / "histograms")
    with (
        mock.patch.object(brackets.SamplePass, "_bracket", GUESSES["everything"]),
        mock.patch.object(brackets, "FOUND_PER_WINDOW", count),
    ):
        merge(recipe, tmp_path / "bracket")
    outputs = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("bracket", "histograms")]
    assert outputs[0] == outputs[1]


def test_a_sample_spares_the_histograms_also_of_fine_magnitudes(checkpoints: Path, tmp_path: Path) -> None:
    models = [{"model": str(checkpoints / f"model{i}")} for i in range(2)]
    content = METHODS["ties"] | {"base_model": str(checkpoints / "base"), "models": models}
    with mock.patch.object(OrderPass, "run") as run:
        merge(write_recipe(tmp_path / "recipe.yml", content), tmp_path / "out")
    run.assert_not_called()


@pytest.mark.parametrize("numel", [32_769, 500_000, 3_000_001, 1 << 26])
def test_chunks_lie_once_in_every_period_whatever_the_windows(numel: int) -> None:
    whole = brackets.sample_places(cut_windows(numel, 1 << 40, 1)[0], numel)
    assert len(whole) * brackets.CHUNK >= 0.4 * SAMPLE_ELEMENTS
    assert (np.diff(whole) >= 0).all() and whole[0] >= 0 and whole[-1] + brackets.CHUNK <= numel
    cut: list[int] = []
    for window in cut_windows(numel, 12 * 4096, 1):
        places = brackets.sample_places(window, numel)
        assert ((places >= 0) & (places + brackets.CHUNK <= window.own_end - window.own_begin)).all()
        cut += (places + window.own_begin).tolist()
    lost = set(whole.tolist()) - set(cut)
    assert set(cut) <= set(whole.tolist())
    assert all(place // 49152 != (place + brackets.CHUNK - 1) // 49152 for place in lost)  # cut in two by windows


@pytest.mark.parametrize(("numel", "sampled"), [(SAMPLE_ELEMENTS, False), (SAMPLE_ELEMENTS + 1, True)])
def test_a_small_tensor_is_not_sampled(tmp_path: Path, numel: int, sampled: bool) -> None:
    changes = torch.arange(numel) % 97 / 64
    write_checkpoint(tmp_path / "base", {"w": torch.zeros(numel)})
    write_checkpoint(tmp_path / "model", {"w": changes})
    content = METHODS["ties"] | {"base_model": str(tmp_path / "base"), "models": [{"model": str(tmp_path / "model")}]}
    recipe = write_recipe(tmp_path / "recipe.yml", content)
    merge_by_histograms(recipe, tmp_path / "histograms")
    with mock.patch.object(brackets, "sample_of", wraps=brackets.sample_of) as sample:
        merge(recipe, tmp_path / "bracket")
    assert sample.called == sampled
    assert_as_by_histograms(recipe, tmp_path / "bracket")
