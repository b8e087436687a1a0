"""What a search would try and what each trial costs: `anabranch plan` of a recipe with searches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from ...engine.errors import RecipeError
from ...engine.recipe import Choice, SearchSpace, load_search
from .models import Cost, check_space, free_bytes, local_folder


@dataclass(frozen=True)
class SpaceReport:
    """A space beside the directory that its search would go to."""

    recipe: str
    out: Path
    space: SearchSpace
    cost: Cost
    free_bytes: int

    def as_json(self) -> dict[str, Any]:
        """Sizes in bytes; `recipes` is null where a range has no steps."""
        return {
            "outcome": "planned",
            "recipe": self.recipe,
            "out": str(self.out),
            "recipes": self.space.size,
            "parameters": {name: _domain(domain) for name, domain in self.space.parameters().items()},
            "trial_read_bytes": self.cost.read_bytes,
            "trial_write_bytes": self.cost.write_bytes,
            "disk_free_bytes": self.free_bytes,
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        size = (
            "any number of recipes, as a range has no steps"
            if self.space.size is None
            else f"{self.space.size:,} recipes"
        )
        yield f"search of {self.recipe}: {size}"
        for name, domain in self.space.parameters().items():
            yield f"  {name}: {domain}"
        read, write = decimal(self.cost.read_bytes), decimal(self.cost.write_bytes)
        yield f"trial       reads {read}, which trials of one --together share, and writes {write}"
        yield (
            f"disk        {write} for each of --keep and --together, "
            f"{decimal(2 * self.cost.write_bytes)} with 1 and 1; "
            f"{decimal(self.free_bytes)} free"
        )


def _domain(domain: object) -> Any:
    if isinstance(domain, Choice):
        return {"choice": list(domain.labels)}
    return {key: getattr(domain, name) for key, name in (("from", "low"), ("to", "high"), ("step", "step"))}


def read_space(recipe: str) -> SearchSpace:
    """The space of a recipe file; RecipeError where nothing is searched in it."""
    space = load_search(recipe)
    if space is None:
        raise RecipeError(
            f"{recipe}: there is nothing to search",
            "write {search: {from: 0.2, to: 2, step: 0.1}} or {search: {choice: [...]}} in place of values",
        )
    return space


def plan_search(recipe: str, out: str, memory_bytes: int) -> SpaceReport:
    """The report on a recipe with searches.

    Raises:
        AnabranchError: what a search would refuse.
    """
    space = read_space(recipe)
    place = local_folder(out)
    return SpaceReport(recipe, place, space, Cost(space, Path(recipe).parent, memory_bytes), free_bytes(place))


def check_report(report: SpaceReport) -> None:
    """ResourceError when the disk does not hold even one kept merge and the next."""
    check_space(report.out, report.cost, 2)
