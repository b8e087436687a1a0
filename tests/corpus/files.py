"""Recipe files in the styles of public model cards and of mergekit's examples; the models in them are invented.

The first line of a file says what becomes of it: `# Expect: parses`, or `# Expect: refused: WORDS | WORDS`, where all
of the words stand in the message: the key, and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class RecipeFile:
    """One file of the corpus."""

    path: Path
    refused_with: tuple[str, ...]
    """What the message must contain; empty: the recipe is right."""

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")


def read_file(path: Path) -> RecipeFile:
    first, _, _ = path.read_text(encoding="utf-8").partition("\n")
    outcome, _, words = first.removeprefix("# Expect: ").partition(": ")
    assert (outcome, bool(words)) in (("parses", False), ("refused", True)), f"{path}: {first}"
    return RecipeFile(path, tuple(words.split(" | ")) if words else ())


FILES = [read_file(path) for path in sorted(FOLDER.glob("*.yml"))]
