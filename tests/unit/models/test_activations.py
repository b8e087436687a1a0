"""Files of mean squares: what orders by them, what is refused, what is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anabranch.engine.errors import InputError, RecipeError
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.plan.plan import Plan
from anabranch.engine.recipe.parse import load_recipe
from anabranch.engine.run.memory import plan_memory

from ...merging import MIB, load_output, merge, write_checkpoint, write_recipe

ROWS = [[4.0, 1.0, -3.0, 0.0], [2.0, -1.0, 5.0, 1.0]]


class Place:
    """A base of zeros, one model, and a file of mean squares."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_checkpoint(folder / "base", {"w": torch.zeros(2, 4), "b": torch.zeros(3)})
        write_checkpoint(folder / "model", {"w": torch.tensor(ROWS), "b": torch.tensor([1.0, 2.0, 3.0])})
        self.measure(w=[1.0, 100.0, 0.25, 1.0], b=[1.0, 1.0, 1.0])

    def measure(self, dtype: torch.dtype = torch.float32, **squares: Any) -> None:
        save_file({k: torch.tensor(v, dtype=dtype) for k, v in squares.items()}, self.folder / "x.safetensors")

    def recipe(self, **changes: Any) -> Path:
        whole: dict[str, Any] = {
            "merge_method": "magnitude",
            "base_model": "base",
            "models": [{"model": "model"}],
            "parameters": {"density": 0.25},
            "activations": "x.safetensors",
        }
        return write_recipe(self.folder / "recipe.yml", whole | changes)

    def plan(self, **changes: Any) -> Plan:
        return open_inputs(load_recipe(self.recipe(**changes)), self.folder).plan


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_order_is_magnitude_times_the_root_of_the_mean_square(place: Place) -> None:
    """Scores: 4, 10, 1.5, 0 and 2, 10, 2.5, 1. A quarter of 8 keeps the two tens, which are ones among the changes."""
    merge(place.recipe(), place.folder / "out")
    out = load_output(place.folder / "out")["w"]
    assert out.tolist() == [[0.0, 1.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0]]
    merge(place.recipe(activations=None), place.folder / "plain")
    assert load_output(place.folder / "plain")["w"].tolist() == [[4.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0]]


def test_features_that_are_never_used_are_never_kept(place: Place) -> None:
    place.measure(w=[0.0, 1.0, 0.0, 1.0], b=[1.0, 1.0, 1.0])
    merge(place.recipe(parameters={"density": 1.0}), place.folder / "out")
    assert load_output(place.folder / "out")["w"].tolist() == [[0.0, 1.0, 0.0, 0.0], [0.0, -1.0, 0.0, 1.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_are_decoded_exactly(place: Place, dtype: torch.dtype) -> None:
    place.measure(dtype, w=[1.0, 100.0, 0.25, 1.0], b=[1.5, 2.5, 0.0])
    [order] = place.plan().tasks[0].orders
    assert order is not None
    assert order.squares["w"].tolist() == [1.0, 100.0, 0.25, 1.0]
    assert order.squares["b"].tolist() == [1.5, 2.5, 0.0]
    assert order.squares["b"].dtype == (np.float64 if dtype == torch.float64 else np.float32)


@pytest.mark.parametrize(
    ("squares", "words"),
    [
        ({"w": [1.0, -1.0, 1.0, 1.0]}, "1 of the mean squares of 'w' are negative, NaN or infinite"),
        ({"w": [1.0, float("nan"), float("inf"), 1.0]}, "2 of the mean squares of 'w' are negative"),
        ({"w": [1.0, 1.0]}, "'w' has 2 mean squares, the tensor has 4 input features"),
        ({"w": [[1.0, 1.0, 1.0, 1.0]]}, r"'w' is F32 \[1, 4\]; mean squares of input features are one vector"),
        ({"model.w": [1.0]}, "no merged tensor has one of its names, such as model.w"),
    ],
)
def test_files_that_do_not_fit_are_refused_before_there_is_an_output(
    place: Place, squares: dict[str, Any], words: str
) -> None:
    place.measure(**squares)
    with pytest.raises(InputError, match=words):
        merge(place.recipe(), place.folder / "out")
    assert not (place.folder / "out").exists()


def test_integers_missing_files_and_other_formats_are_refused(place: Place) -> None:
    place.measure(torch.int32, w=[1, 1, 1, 1])
    with pytest.raises(InputError, match=r"'w' is I32 \[4\]"):
        place.plan()
    with pytest.raises(RecipeError, match=r"file 'y\.safetensors' does not exist"):
        place.plan(activations="y.safetensors")
    (place.folder / "x.pt").write_bytes(b"0")
    with pytest.raises(InputError, match="activations are read from safetensors files"):
        place.plan(activations="x.pt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"merge_method": "dare_ties"}, "dare_ties does not order changes by magnitude"),
        ({"merge_method": "task_arithmetic", "parameters": {}}, "task_arithmetic does not order changes by magnitude"),
        ({"merge_method": "ties", "parameters": {"density": 0.5, "scope": "model"}}, "does not go with scope: model"),
    ],
)
def test_methods_that_order_nothing_are_refused(place: Place, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        place.plan(**changes)
    own = {"activations": None, "models": [{"model": "model", "activations": "x.safetensors"}]}
    with pytest.raises(RecipeError, match=words):
        place.plan(**changes | own)


def test_what_has_no_vector_and_what_has_no_tensor_is_reported(place: Place) -> None:
    place.measure(w=[1.0, 1.0, 1.0, 1.0], other=[1.0])
    warnings = "\n".join(place.plan().warnings)
    assert "x.safetensors has nothing for b; magnitude alone orders their changes" in warnings
    assert "x.safetensors holds what belongs to no merged tensor: other" in warnings


def test_the_content_of_the_file_decides_the_plan_id(place: Place) -> None:
    plan = place.plan()
    own = [{"model": "model", "activations": str(place.folder / "x.safetensors")}]
    assert place.plan(models=own, activations=None).plan_id == plan.plan_id
    assert place.plan(activations=None).plan_id != plan.plan_id
    place.measure(w=[1.0, 100.0, 0.5, 1.0], b=[1.0, 1.0, 1.0])
    assert place.plan().plan_id != plan.plan_id
    [described] = [i["activations"] for i in plan.describe()["inputs"] if "activations" in i]
    assert described[0].keys() == {"url", "size", "sha256"}


def test_vectors_count_as_memory(place: Place) -> None:
    before = plan_memory(place.plan(), 512 * MIB, 1).fixed_bytes
    place.measure(w=[1.0, 1.0, 1.0, 1.0], b=[1.0, 1.0, 1.0], other=[1.0] * 1_000_000)
    assert plan_memory(place.plan(), 512 * MIB, 1).fixed_bytes == before + 4_000_000


def test_layers_of_slices_have_the_vectors_of_their_names_in_the_model(tmp_path: Path) -> None:
    """Layer 1 of the model becomes layer 0 of the output, and layer 0 becomes layer 1."""
    names = ["model.layers.0.w", "model.layers.1.w"]
    write_checkpoint(tmp_path / "base", {name: torch.zeros(1, 2) for name in names})
    write_checkpoint(tmp_path / "model", {name: torch.tensor([[3.0, 4.0]]) for name in names})
    save_file({names[0]: torch.tensor([4.0, 1.0]), names[1]: torch.tensor([1.0, 1.0])}, tmp_path / "x.safetensors")
    sources = [
        {"sources": [{"model": m, "layer_range": [i, i + 1]} for m in ("base", "model")], "base_model": "base"}
        for i in (1, 0)
    ]
    recipe = {"merge_method": "magnitude", "slices": sources, "parameters": {"density": 0.5}}
    merge(write_recipe(tmp_path / "recipe.yml", recipe | {"activations": "x.safetensors"}), tmp_path / "out")
    out = load_output(tmp_path / "out")
    assert out["model.layers.0.w"].tolist() == [[0.0, 4.0]]
    assert out["model.layers.1.w"].tolist() == [[3.0, 0.0]]
