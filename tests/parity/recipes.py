"""The recipes that both tools run: files of YAML documents, each under a comment that says what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Case:
    """One recipe."""

    name: str
    """The file and what the recipe shows: `ties: negative weights`."""
    text: str

    @property
    def data(self) -> dict[str, Any]:
        loaded: dict[str, Any] = yaml.safe_load(self.text)
        return loaded

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


def recipe(name: str, text: str) -> pytest.MarkDecorator:
    """Gives a test one recipe of its own as `case`; mergekit runs it with all others."""
    return pytest.mark.parametrize("case", [Case(name, dedent(text))], ids=[name])


def random_case(method: str, density: float, epsilon: float | None) -> Case:
    """One model, so that the output shows what was kept of it."""
    parameters: dict[str, float] = {"density": density, "weight": 1}
    recipe = {
        "merge_method": method,
        "base_model": "llama/base",
        "models": [{"model": "llama/a"}],
        "parameters": parameters if epsilon is None else parameters | {"epsilon": epsilon},
        "dtype": "float32",
    }
    return Case(f"{method}: one model", yaml.safe_dump(recipe, sort_keys=False))


CASES = [case for path in sorted(FOLDER.glob("*.yml")) for case in cases_of(path)]
"""Recipes whose outputs are equal."""
assert len({case.file_name for case in CASES}) == len(CASES)
