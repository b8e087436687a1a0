"""docs/mergekit.md, held to the methods that there are."""

from __future__ import annotations

import re
from pathlib import Path

from anabranch.engine.methods import METHODS

from ..corpus.test_corpus import MERGEKITS
from .test_docs import rows, section

TEXT = (Path(__file__).parents[2] / "docs" / "mergekit.md").read_text(encoding="utf-8")


def test_the_table_has_every_method_of_mergekit_once_and_only_what_there_is() -> None:
    named = [method for row in rows(section(TEXT, "Methods")) for method in re.findall(r"`(\w+)`", row[0])]
    assert len(named) == len(set(named))
    assert MERGEKITS <= set(named) <= set(METHODS)
