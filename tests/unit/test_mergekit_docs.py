"""docs/mergekit.md, held to the methods that there are."""

from __future__ import annotations

import re
from pathlib import Path

from anabranch.engine.recipe.parameters import METHODS

from .test_docs import rows, section

TEXT = (Path(__file__).parents[2] / "docs" / "mergekit.md").read_text(encoding="utf-8")


def test_the_table_has_every_method_once() -> None:
    named = [method for row in rows(section(TEXT, "Methods")) for method in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(METHODS)
