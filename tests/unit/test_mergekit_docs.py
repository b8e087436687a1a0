"""docs/mergekit.md, held to the methods that there are."""

from __future__ import annotations

import re
from pathlib import Path

from anabranch.engine.settings import LATER_METHODS, METHODS

from .test_docs import rows, section

TEXT = (Path(__file__).parents[2] / "docs" / "mergekit.md").read_text(encoding="utf-8")


def test_the_table_has_every_method_once() -> None:
    named = [method for row in rows(section(TEXT, "Methods")) for method in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted([*METHODS, *LATER_METHODS])


def test_exactly_the_methods_that_are_refused_are_called_refused() -> None:
    called = {
        m for row in rows(section(TEXT, "Methods")) for m in re.findall(r"`(\w+)`", row[0]) if row[2] == "refused"
    }
    assert called == set(LATER_METHODS)
    first = rows(section(TEXT, "Refused"))[0]
    assert set(re.findall(r"`(\w+)`", first[0])) == set(LATER_METHODS)
