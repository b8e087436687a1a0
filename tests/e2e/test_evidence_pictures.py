"""The evidence on pictures: the published encoder is read as it is, and numbers are those of the command."""

from __future__ import annotations

import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from anabranch.cluster.demo.factors import Method
from anabranch.cluster.demo.models import Training, load_model, load_tensors
from anabranch.cluster.demo.texts import Sizes, Task, split_task
from benchmarks.quality import run
from benchmarks.quality.cells import LOWER_OF_PICTURES, Cell
from benchmarks.quality.onnx_file import read_onnx
from benchmarks.quality.picture_models import ENCODER, MEMBER, POSITIONS, WHEEL, make_base
from benchmarks.quality.pictures import SIDE
from benchmarks.quality.sets import SETS

from ..merging import merge, write_recipe
from .onnx_files import write_onnx

FEW = Sizes(16, 8, 8)
PAIR = ("dark", "even")
LAYERS = LOWER_OF_PICTURES
LINEAR = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
EXPORTED = {f"attention.{new}": f"attention.attention.{old}" for old, new in LINEAR.items()}
EXPORTED |= {"attention.o_proj": "attention.output.dense"}


@pytest.fixture(autouse=True)
def _torch_settings() -> None:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    run._models.cache_clear()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def whole() -> Dinov2Model:
    """An encoder of one layer more than is used, for pictures of 6 by 6 patches."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=64, num_attention_heads=1, num_hidden_layers=LAYERS + 1, image_size=84, use_mask_token=False
    )
    model = Dinov2Model(config).eval()
    for parameter in model.parameters():  # biases and scales, too
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def downloads(tmp_path: Path, whole: Dinov2Model) -> Path:
    """The wheel, with that encoder and a decoder's weight."""
    named, folded = {"decoder.weight": torch.ones(3)}, {}
    for name, tensor in whole.state_dict().items():
        for new, old in EXPORTED.items():
            name = name.replace(new, old)
        layer, _, kind = name.rpartition(".")
        if name == POSITIONS:
            folded["onnx::Reshape_7"] = "/backbone/embeddings/Reshape_1", tensor[:, 1:]
            folded["onnx::Concat_8"] = "/backbone/embeddings/Concat_6", tensor[:, :1]
        elif kind == "weight" and tensor.dim() == 2:
            node = f"/{ENCODER}{layer}".replace("encoder.layer.", "encoder/layer#").replace(".", "/").replace("#", ".")
            folded[f"onnx::MatMul_{len(folded)}"] = f"{node}/MatMul", tensor.T
        else:
            named[f"{ENCODER}{name}"] = tensor
    with zipfile.ZipFile(tmp_path / WHEEL, "w") as archive:
        archive.writestr(MEMBER, write_onnx(named, folded))
    return tmp_path


def load(_: Path, seed: int, sizes: Sizes) -> dict[str, Task[bytes]]:
    """Is a picture dark, and is its number even."""
    generator = np.random.default_rng(0)
    rows: dict[str, list[tuple[bytes, str]]] = {name: [] for name in PAIR}
    for i in range(60):
        picture = generator.integers(0, 128 if i % 3 else 255, (SIDE, SIDE, 3), dtype=np.uint8).tobytes()
        rows["dark"].append((picture, str(i % 3 > 0)))
        rows["even"].append((picture, str(i % 2)))
    return {name: split_task(name, found, seed, sizes) for name, found in rows.items()}


def test_the_base_is_the_lower_part_of_the_published_encoder(
    tmp_path: Path, downloads: Path, whole: Dinov2Model
) -> None:
    make_base(downloads, tmp_path / "base", Training(layers=LAYERS))
    base = load_model(tmp_path / "base").eval()
    pictures = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = whole(pixel_values=pictures, output_hidden_states=True).hidden_states[LAYERS]
        found = base(pixel_values=pictures, output_hidden_states=True).hidden_states[LAYERS]
    assert torch.equal(found, expected)
    assert torch.equal(base.layernorm.weight, whole.layernorm.weight)
    assert load_tensors(tmp_path / "base").keys() == base.state_dict().keys()  # as whoever calls it with others needs


def test_other_numbers_than_float32_are_refused() -> None:
    with pytest.raises(ValueError, match="double is not stored as float32"):
        read_onnx(write_onnx({"double": torch.ones(2)}, {}).replace(b"\x10\x01", b"\x10\x0b"))


def test_numbers_are_those_of_the_command(tmp_path: Path, downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brief = {LAYERS: Training(layers=LAYERS, steps=4, batch=8)}
    monkeypatch.setattr(run, "DATA", downloads)
    monkeypatch.setitem(SETS, "pictures", replace(SETS["pictures"], load=load, sizes=FEW, training=brief))
    cells = [
        Cell("main", "CABS 0.1", "cabs", {"density": 0.1}, PAIR, LAYERS),
        Cell("emr", "EMR", "emr", models=PAIR, layers=LAYERS),
    ]
    with ThreadPoolExecutor(1) as pool:
        run.do_block(pool, "pictures", [0], cells, tmp_path / "run")
    (seed,) = (tmp_path / "run" / "pictures").iterdir()
    row, emr = (json.loads((seed / "cells" / f"{cell.key}.json").read_text()) for cell in cells)
    method = Method("CABS 0.1", "cabs", {"density": 0.1})
    recipe = method.recipe(str(seed / "base"), [str(seed / name) for name in PAIR], row["factor"])
    merge(write_recipe(tmp_path / "recipe.yml", recipe), tmp_path / "merged")
    tasks = load(downloads, 0, FEW)
    judge = SETS["pictures"].judge(seed / "base", seed / "heads", [tasks[name] for name in PAIR], "test")
    assert judge.accuracies(load_tensors(tmp_path / "merged")) == row["accuracy"]
    assert emr["accuracy"].keys() == set(PAIR)
