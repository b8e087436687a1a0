"""The recipes that both tools run: files of YAML documents, each under a comment that says what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anabranch.engine.errors import RecipeError
from anabranch.engine.recipe import parse_recipe

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Case:
    """One recipe."""

    name: str
    """The file and what the recipe shows: `ties: negative weights`."""
    text: str

    @property
    def file_name(self) -> str:
        return "".join(c if c.isalnum() else "_" for c in self.name)


def cases_of(path: Path) -> list[Case]:
    """The recipes of one file, in its order."""
    found = []
    for text in path.read_text(encoding="utf-8").split("\n---\n"):
        title, _, _ = text.partition("\n")
        assert title.startswith("# "), f"{path}: a recipe without a comment that says what it shows: {title}"
        found.append(Case(f"{path.stem}: {title.removeprefix('# ')}", text))
    return found


def supported(case: Case) -> bool:
    """Whether this version merges such recipes at all."""
    try:
        parse_recipe(case.text, case.name)
    except RecipeError as error:
        return "not supported by this version" not in str(error)
    return True


CASES = [case for path in sorted(FOLDER.glob("*.yml")) for case in cases_of(path) if supported(case)]
"""Recipes whose outputs are equal."""
assert len({case.file_name for case in CASES}) == len(CASES)
