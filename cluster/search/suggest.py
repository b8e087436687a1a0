"""`anabranch suggest`: weights without data, so that each model gives the same share of its task vector's energy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...engine.errors import RecipeError
from ...engine.plan import open_inputs
from ...engine.recipe import canonical, load_recipe
from ...engine.run import ModelEnergy, take_energies
from .models import AbsoluteReferences

DIGITS = 6
"""Of a weight: more would suggest that they matter."""


@dataclass(frozen=True)
class Suggestion:
    """A plain recipe with other weights, and why."""

    recipe: str
    document: dict[str, Any]
    """With the weights that are suggested, and references that mean the same in any folder."""
    names: Sequence[str]
    """Per model, as the recipe's file has it."""
    energies: Sequence[ModelEnergy]
    before: Sequence[Any]
    """Weights per model as a recipe writes them: a number, a gradient, or a list of filters."""

    @property
    def after(self) -> list[Any]:
        """The weights that are suggested."""
        return [entry["parameters"]["weight"] for entry in self.document["models"]]

    def text(self) -> str:
        """The recipe as YAML."""
        return yaml.safe_dump(self.document, sort_keys=False, width=120)

    def as_json(self) -> dict[str, Any]:
        """Shares are of the energy of the model's task vector; null where that is zero."""
        return {"outcome": "done", "models": [self._row(i) for i in range(len(self.names))], "recipe": self.document}

    def _row(self, i: int) -> dict[str, Any]:
        energy, factor = self.energies[i], factors(self.energies)[i]
        return {
            "model": self.names[i],
            "energy": energy.whole,
            "kept": _share(energy.kept, energy),
            "weight_before": self.before[i],
            "given_before": _share(energy.given, energy),
            "weight_after": self.after[i],
            "given_after": _share(energy.given * factor**2, energy),
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        rows = [self._row(i) for i in range(len(self.names))]
        cells = [[row["model"], f"{row['energy']:.6g}", *map(_shown, list(row.values())[2:])] for row in rows]
        head = ["model", "energy", "kept", "weight", "gives", "new weight", "gives"]
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        for name, *numbers in (head, *cells):
            columns = (text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True))
            yield "  ".join([name.ljust(widths[0]), *columns]).rstrip()
        yield "energy: sum of squares of the model's changes; kept and given: shares of it, before and after weights"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "several"
    return "-" if value is None else f"{value:.4g}"


def _share(part: float, energy: ModelEnergy) -> float | None:
    return part / energy.whole if energy.whole else None


def suggest(recipe: str, memory_bytes: int, workers: int | None) -> Suggestion:
    """Balance the weights of a recipe; nothing is written.

    Raises:
        RecipeError: its method has no weights, or it merges slices.
        AnabranchError: what a merge of the recipe would refuse.
    """
    folder = Path(recipe).parent
    loaded = load_recipe(recipe)
    if loaded.slices:
        raise RecipeError(f"{recipe}: weights are suggested for `models`, not for `slices`")
    if "weight" not in loaded.method.per_model:
        raise RecipeError(f"{recipe}: {loaded.merge_method} takes no weight per model, so there is none to suggest")
    energies = take_energies(open_inputs(loaded, folder), memory_bytes=memory_bytes, workers=workers)
    document, names = canonical(loaded, AbsoluteReferences(folder)), canonical(loaded)["models"]
    before = [entry["parameters"]["weight"] for entry in document["models"]]
    for entry, factor in zip(document["models"], factors(energies), strict=True):
        entry["parameters"]["weight"] = scaled(entry["parameters"]["weight"], factor)
    return Suggestion(recipe, document, [entry["model"] for entry in names], energies, before)


def factors(energies: Sequence[ModelEnergy]) -> list[float]:
    """What each model's weights are multiplied by.

    Every model then gives the same share of its task vector's energy, and all of them together as much as before. A
    model that changes or gives nothing keeps its weights.
    """
    giving = [energy for energy in energies if energy.given > 0]
    whole = math.fsum(energy.whole for energy in giving)
    share = math.fsum(energy.given for energy in giving) / whole if whole else 0.0
    return [math.sqrt(share * energy.whole / energy.given) if energy.given > 0 else 1.0 for energy in energies]


def scaled(weight: Any, factor: float) -> Any:
    """A weight as a recipe writes it, multiplied: a number, a gradient, or a list of filters with their values."""
    if isinstance(weight, list):
        return [scaled(item, factor) for item in weight]
    if isinstance(weight, dict):
        return weight | {"value": scaled(weight["value"], factor)}
    return float(f"{weight * factor:.{DIGITS}g}")
