"""What is merged: sets of tasks on one kind of samples, with the models that learn them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anabranch.cluster.demo.models import Judge, Training, make_base, train_specialist
from anabranch.cluster.demo.texts import Sizes, Task

from . import picture_models, pictures, texts
from .cells import LOWER, LOWER_OF_PICTURES, WHOLE, Cell, picture_cells, text_cells


@dataclass(frozen=True)
class TaskSet:
    """Tasks on one kind of samples."""

    place: str
    """The folder of its own, in that of everything that is kept."""
    load: Callable[[Path, int, Sizes], Mapping[str, Task[Any]]]
    """All tasks by name, from a folder of downloads, for a seed."""
    sizes: Sizes
    make_base: Callable[[Path, Path, Training], None]
    """Write the base, from a folder of downloads, into a folder."""
    train_specialist: Callable[[Task[Any], Path, Path, Path, Training], None]
    """Write a checkpoint and a head, of a task and a base."""
    judge: type[Judge]
    training: Mapping[int, Training]
    """By layers of the encoder."""
    cells: Callable[[], Iterator[Cell]]
    blocks: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """By layers, where those cells end that are to be done for every seed before the next ones begin."""


TEXTS = TaskSet(
    place="",
    load=texts.load,
    sizes=texts.SIZES,
    make_base=lambda _, folder, training: make_base(folder, training),  # its encoder is installed
    train_specialist=train_specialist,
    judge=Judge,
    # Of 5e-5, 1e-4 and 2e-4, all of which make specialists of six layers within a point of each other, the one between.
    training={LOWER: Training(), WHOLE: Training(layers=WHOLE, rate=1e-4)},
    cells=text_cells,
    # Densities 0.1 and 0.05 and EMR; parts of CABS and TADrop and other densities; other orders, weights and dtypes;
    # other models.
    blocks={LOWER: (17, 45, 58)},
)
PICTURES = TaskSet(
    place="pictures",
    load=pictures.load,
    sizes=pictures.SIZES,
    make_base=picture_models.make_base,
    train_specialist=picture_models.train_specialist,
    judge=picture_models.PictureJudge,
    # Half of this encoder's weights are smaller than 0.01: 1e-4 makes it answer fewer digits than it did.
    training={LOWER_OF_PICTURES: Training(layers=LOWER_OF_PICTURES, steps=150, rate=5e-5)},
    cells=picture_cells,
    blocks={LOWER_OF_PICTURES: (14,)},  # four tasks; related ones
)
SETS = {"texts": TEXTS, "pictures": PICTURES}
