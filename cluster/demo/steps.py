"""What the demo does in processes of their own: training, the search for a lambda, and measuring."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .factors import Chosen, Method, choose_factor
from .texts import Task

if TYPE_CHECKING:
    from .models import Judge, Training
    from .models_in_memory import ModelsInMemory


@dataclass(frozen=True)
class Work:
    """Where models and heads are, and the tasks they answer."""

    models: Path
    """Holds the checkpoint `base` and one per task."""
    heads: Path
    tasks: tuple[Task[str], ...]


def make_base(work: Work, training: Training) -> None:
    """See `models.make_base`."""
    from . import models

    models.make_base(work.models / "base", training)


def train(work: Work, task: Task[str], training: Training) -> None:
    """See `models.train_specialist`; nothing where the head lies there, which is written last."""
    from .models import train_specialist

    head = work.heads / f"{task.name}.safetensors"
    if head.exists():
        return
    train_specialist(task, work.models / "base", work.models / task.name, head, training)


def measure(work: Work, model: Path, split: str, only: str | None = None) -> dict[str, float]:
    """Accuracy of an encoder with each task's own head, at all tasks or one."""
    from .models import load_tensors

    return _judge(work, split).accuracies(load_tensors(model), only)


def choose(work: Work, method: Method) -> Chosen:
    """The lambda with which a method's merge answers most validation samples."""
    total = _models(work).sum(method, [task.name for task in work.tasks])
    judge = _judge(work, "validation")

    def score(factor: float) -> float:
        accuracy = judge.accuracies(total.at(factor))
        return sum(accuracy.values()) / len(accuracy)

    return choose_factor(score)


@functools.cache
def _judge(work: Work, split: str) -> Judge:
    from .models import Judge, prepare_torch

    prepare_torch()
    return Judge(work.models / "base", work.heads, work.tasks, split)


@functools.cache
def _models(work: Work) -> ModelsInMemory:
    from .models_in_memory import ModelsInMemory

    return ModelsInMemory(work.models / "base", {task.name: work.models / task.name for task in work.tasks})
