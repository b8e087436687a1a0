"""What is compared: one cell is one way to merge some models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from . import pictures
from .texts import FOUR, RELATED_FOUR, SIX, TWO

CHOSEN = 0.1
"""The density of comparisons that have one only."""
LOWER, WHOLE = 2, 6
"""Layers of encoders of texts: the lower two of the published one, or all that it has."""
LOWER_OF_PICTURES = 4
"""Of 12, each of which costs a picture what a layer costs a text: as wide, and as many places."""


@dataclass(frozen=True)
class Cell:
    """One way to merge, for any seed."""

    group: str
    title: str
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = FOUR
    layers: int = LOWER
    dtype: str = "float32"
    energy: bool = False
    """Weights that give every task vector the same norm."""
    alone: bool = False
    """Every model is merged by itself, and what comes of it is added: masks without regard to each other."""
    suggested: bool = False
    """Weights as `anabranch suggest` makes them."""

    @property
    def key(self) -> str:
        """Tells cells apart, whatever they are called."""
        text = json.dumps({**asdict(self), "group": "", "title": ""}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def tadrop(**settings: Any) -> dict[str, Any]:
    return {"density": {"tadrop": settings}}


def text_cells() -> Iterator[Cell]:
    """What matters most first: a run that is stopped has it for every seed that it began."""
    yield Cell("main", "task arithmetic", "task_arithmetic")
    for density in (CHOSEN, 0.05):
        yield from _at(density)
    yield from _own_masks()
    yield from _ablation()
    yield from _tadrop()
    for density in (0.5, 0.2, 0.02):
        yield from _at(density)
    yield from _orders("order", FOUR)
    yield from _others()
    for group, models in (("2 models", TWO), ("6 models", SIX), ("related", RELATED_FOUR)):
        yield Cell(group, "task arithmetic", "task_arithmetic", models=models)
        yield from (_with(cell, group, models) for cell in _at(CHOSEN))
    yield from _orders("order of 6 models", SIX)
    yield from _whole()


def picture_cells() -> Iterator[Cell]:
    """What matters most of the cells of texts, and then of related tasks."""
    plain = Cell("main", "task arithmetic", "task_arithmetic")
    main = (plain, *_at(CHOSEN))
    wanted = {"EMR", "EMR 0.5", "EMR + TADrop, no target", f"CA only {CHOSEN:g}", f"BS only {CHOSEN:g}"}
    wanted |= {f"CABS + TADrop {CHOSEN:g} of what changed"}
    others = (cell for cell in (*_own_masks(), *_ablation(), *_tadrop()) if cell.title in wanted)
    densities = (Cell("main", f"CABS {density:g}", "cabs", {"density": density}) for density in (0.05, 0.25))
    yield from (_with(cell, cell.group, pictures.FOUR, LOWER_OF_PICTURES) for cell in (*main, *others, *densities))
    yield from (_with(cell, "related", pictures.RELATED_FOUR, LOWER_OF_PICTURES) for cell in main)


def _at(density: float) -> Iterator[Cell]:
    plain = {"density": density}
    yield Cell("main", f"magnitude {density:g}", "magnitude", plain)
    yield Cell("main", f"CABS {density:g}", "cabs", plain)
    yield Cell("main", f"CABS + TADrop {density:g}", "cabs", tadrop(mean=density))
    yield Cell("main", f"TIES {density:g}", "ties", plain)
    yield Cell("main", f"DARE {density:g}", "dare_linear", plain)


def _with(cell: Cell, group: str, models: tuple[str, ...], layers: int = LOWER) -> Cell:
    return replace(cell, group=group, models=models, layers=layers)


def _whole() -> Iterator[Cell]:
    """What matters most once more with the whole encoder, of four models and of six."""
    plain = Cell("", "task arithmetic", "task_arithmetic")
    of_changed = Cell("", f"CABS + TADrop {CHOSEN:g} of what changed", "cabs", tadrop(mean=CHOSEN, mean_of="changed"))
    sparser = Cell("", "CABS 0.05", "cabs", {"density": 0.05})
    own_masks = (Cell("", "EMR", "emr"), Cell("", "EMR 0.25", "emr", {"density": 0.25}))
    rows = (plain, *_at(CHOSEN), of_changed, sparser, *_ablation(), *own_masks)
    for group, models in (("6 layers", FOUR), ("6 layers, 6 models", SIX)):
        yield from (_with(cell, group, models, WHOLE) for cell in rows)


def _ablation() -> Iterator[Cell]:
    """Conflict-aware masks, balanced masks, both (above) and neither (magnitude, above)."""
    yield Cell("ablation", f"CA only {CHOSEN:g}", "magnitude", {"density": CHOSEN, "conflict": "sequential"})
    yield Cell("ablation", f"BS only {CHOSEN:g}", "cabs", {"density": CHOSEN}, alone=True)
    yield Cell("ablation", f"CABS {CHOSEN:g}, block 32", "cabs", {"density": CHOSEN, "block": 32})


def _tadrop() -> Iterator[Cell]:
    for statistic in ("quantile", "kurtosis", "gini"):  # the last is worked out here
        title = f"CABS + TADrop {CHOSEN:g}, {statistic}"
        yield Cell("tadrop", title, "cabs", tadrop(mean=CHOSEN, statistic=statistic))
    for name, method in (("magnitude", "magnitude"), ("TIES", "ties"), ("DARE", "dare_linear")):
        yield Cell("tadrop", f"{name} + TADrop {CHOSEN:g}", method, tadrop(mean=CHOSEN))
    for name, method in (("CABS", "cabs"), ("magnitude", "magnitude")):
        changed = tadrop(mean=CHOSEN, mean_of="changed")
        yield Cell("tadrop", f"{name} + TADrop {CHOSEN:g} of what changed", method, changed)
    yield Cell("tadrop", "CABS + TADrop, no target", "cabs", tadrop())
    yield Cell("tadrop", "magnitude + TADrop, no target", "magnitude", tadrop())


def _own_masks() -> Iterator[Cell]:
    yield Cell("emr", "EMR", "emr")
    for density in (0.5, 0.25, CHOSEN):
        yield Cell("emr", f"EMR {density:g}", "emr", {"density": density})
    yield Cell("emr", "EMR + TADrop, no target", "emr", tadrop())
    yield Cell("emr", f"EMR + TADrop {CHOSEN:g}", "emr", tadrop(mean=CHOSEN))


def _orders(group: str, models: tuple[str, ...]) -> Iterator[Cell]:
    """The paper's study of the order in which models choose: the other way round, and later ones first."""
    turned = [models[::-1], *(models[first:] + models[:first] for first in range(1, len(models), len(models) // 3))]
    for order in turned:
        yield Cell(group, f"CABS {CHOSEN:g}, order {'-'.join(order)}", "cabs", {"density": CHOSEN}, order)


def _others() -> Iterator[Cell]:
    for title, method, plain in (
        ("task arithmetic", "task_arithmetic", {}),
        (f"magnitude {CHOSEN:g}", "magnitude", {"density": CHOSEN}),
        (f"CABS {CHOSEN:g}", "cabs", {"density": CHOSEN}),
    ):
        yield Cell("equal norms", title, method, plain, energy=True)
        yield Cell("bf16", title, method, plain, dtype="bfloat16")
    yield Cell("other", f"CABS {CHOSEN:g}, weights by suggest", "cabs", {"density": CHOSEN}, suggested=True)
    yield Cell("other", f"DELLA {CHOSEN:g}", "della_linear", {"density": CHOSEN, "epsilon": CHOSEN / 2})
    yield Cell("other", f"Breadcrumbs {CHOSEN:g}", "breadcrumbs", {"density": CHOSEN, "gamma": 0.01})
