"""The demo's data, model and training: a base that is poor at six real tasks, and one specialist for each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification
from transformers.utils import logging as transformers_logging

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SIDE = 8
"""Pictures are SIDE x SIDE grey values from 0 to 1."""
TRAINED, VALIDATED = 0.5, 0.65
"""The first half of the shuffled samples trains, the next 15 % choose lambda, the rest is only ever measured."""
PAIRS = ("0 or 5", "1 or 6", "2 or 7", "3 or 8", "4 or 9")
"""All that the base learns about digits: the remainder after division by five."""
VIEWS: Mapping[str, Callable[[Floats], Floats]] = {
    "upright": lambda x: x,
    "negative": lambda x: 1 - x,
    "turned": lambda x: np.rot90(x, 1, (1, 2)),
    "checkered": lambda x: np.abs(x - np.indices((SIDE, SIDE)).sum(0) % 2),
}
"""Four ways to show a digit, array [n, 8, 8] to array [n, 8, 8]; the last inverts every other pixel."""
TABLES = {"tumour": load_breast_cancer, "wine": load_wine}
"""Measurements, not pictures: 30 of a cell sample (malignant or benign), 13 of a wine (which of three growers)."""
TASKS = (*VIEWS, *TABLES)


@dataclass(frozen=True)
class Training:
    """How long and how fast each model learns."""

    base_steps: int = 700
    base_batch: int = 128
    base_rate: float = 1e-3
    steps: int = 150
    batch: int = 64
    rate: float = 4e-4
    seed: int = 0


@dataclass(frozen=True)
class Split:
    """Pictures [n, 1, 8, 8] in fp32 and their classes [n], counted from 0."""

    pictures: torch.Tensor
    classes: torch.Tensor


@dataclass(frozen=True)
class Task:
    """One task and the rows of the shared classifier that answer it."""

    name: str
    labels: tuple[str, ...]
    first_row: int
    train: Split
    validation: Split
    test: Split

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.first_row + len(self.labels))


@functools.cache
def load_tasks() -> dict[str, Task]:
    """The six tasks, in the order of TASKS. Views of one digit always fall in the same split."""
    tasks: dict[str, Task] = {}
    row = len(PAIRS)
    for name, pictures, classes, labels in _raw_tasks():
        cuts = _cuts(len(classes))
        splits = [_split(pictures[part], classes[part]) for part in cuts]
        tasks[name] = Task(name, labels, row, *splits)
        row += len(labels)
    return tasks


def _raw_tasks() -> Iterator[tuple[str, Floats, Integers, tuple[str, ...]]]:
    digits = load_digits()
    for name, view in VIEWS.items():
        yield name, view(digits.images / 16), digits.target, tuple("0123456789")
    for name, load in TABLES.items():
        table = load()
        measured = table.data[_cuts(len(table.data))[0]]
        yield name, _draw(table.data, measured), table.target, tuple(map(str, table.target_names))


def _draw(rows: Floats, training_rows: Floats) -> Floats:
    """Each measurement becomes a run of equally grey pixels; black and white lie at 2 % and 98 % of training rows."""
    low, high = np.quantile(training_rows, [0.02, 0.98], axis=0)
    grey = np.clip((rows - low) / (high - low), 0, 1)
    runs = np.repeat(grey, SIDE * SIDE // rows.shape[1], axis=1)
    padded = np.pad(runs, ((0, 0), (0, SIDE * SIDE - runs.shape[1])))
    return padded.reshape(-1, SIDE, SIDE)


def _cuts(count: int) -> list[Integers]:
    """Indices of the training, validation and test samples."""
    order = np.random.default_rng(0).permutation(count)
    return np.split(order, [int(TRAINED * count), int(VALIDATED * count)])


def _split(pictures: Floats, classes: Integers) -> Split:
    return Split(torch.tensor(np.ascontiguousarray(pictures[:, None]), dtype=torch.float32), torch.tensor(classes))


def prepare_torch() -> None:
    """One thread and deterministic algorithms: the same bits on every run, and two trainings fit two cores."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def new_model(seed: int) -> Any:
    """A vision transformer of 139,000 parameters with random weights."""
    names = list(PAIRS) + [f"{task.name}: {label}" for task in load_tasks().values() for label in task.labels]
    torch.manual_seed(seed)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=128,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            image_size=SIDE,
            patch_size=4,
            num_channels=1,
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
        )
    )


def load_model(folder: Path) -> Any:
    """A checkpoint through `from_pretrained`, computing in fp32 as processors do best."""
    return ViTForImageClassification.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


def save_model(model: Any, folder: Path, shard_size: str) -> None:
    """Write a bf16 checkpoint in shards of safetensors."""
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shard_size)


def train_base(folder: Path, training: Training) -> None:
    """Teach a new model what the four views have in common, without any of the six tasks, and save it.

    The rows of the classifier that answer the tasks keep their random values.
    """
    prepare_torch()
    views = [load_tasks()[name].train for name in VIEWS]
    seen = Split(
        torch.cat([split.pictures for split in views]),
        torch.cat([split.classes % len(PAIRS) for split in views]),
    )
    model = new_model(training.seed)
    _learn(model, seen, slice(0, len(PAIRS)), training.base_steps, training.base_batch, training.base_rate, seed=0)
    save_model(model, folder, shard_size="150KB")


def train_specialist(name: str, base: Path, folder: Path, training: Training) -> None:
    """Fine-tune every weight of the base on one task and save it, cut into other shards than the base."""
    prepare_torch()
    task = load_tasks()[name]
    model = load_model(base)
    _learn(model, task.train, task.rows, training.steps, training.batch, training.rate, seed=1)
    save_model(model, folder, shard_size=f"{60 + 20 * TASKS.index(name)}KB")


def _learn(model: Any, split: Split, rows: slice, steps: int, batch: int, rate: float, seed: int) -> None:
    """Minimise cross entropy over a task's own rows; no weight decay, so other tasks' rows stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(0, len(split.classes), (batch,), generator=generator)
        loss = cross_entropy(_answers(model, split.pictures[chosen], rows), split.classes[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def _answers(model: Any, pictures: torch.Tensor, rows: slice) -> torch.Tensor:
    """Logits [n, labels] of one task's rows."""
    logits: torch.Tensor = model(pictures * 2 - 1).logits
    return logits[:, rows]


@torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
def accuracies(folder: Path, split: str) -> dict[str, float]:
    """Fraction of right answers of a checkpoint at each task, on "validation" or "test"."""
    model = load_model(folder).eval()
    found = {}
    for task in load_tasks().values():
        part: Split = getattr(task, split)
        right = _answers(model, part.pictures, task.rows).argmax(1) == part.classes
        found[task.name] = float(right.double().mean())
    return found
