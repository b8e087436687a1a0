"""docs/architecture.md names what exists, and shows the rooms as they are."""

from __future__ import annotations

import importlib.util
import re

import pytest

from benchmarks import rooms

TEXT = rooms.DOCUMENT.read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`((?:cluster\.)?[a-z_0-9]+(?:\.[a-z_0-9]+)*\.[A-Z_a-z]\w*(?:\.\w+)*)`", TEXT)))


def test_the_picture_is_that_of_the_code() -> None:
    assert rooms.main(["--check"]) == 0, "run `make docs`"


def test_each_way_names_functions() -> None:
    for heading in ("The way of one element", "The way of one recipe key", "The way of a receipt"):
        part = TEXT.split(f"## {heading}")[1].split("\n## ")[0]
        assert sum(f"`{name}`" in part for name in NAMES) >= 4, heading


@pytest.mark.parametrize("name", NAMES)
def test_what_is_named_exists(name: str) -> None:
    """`room.file.Class.method`: the longest part that is a module, then attributes of it."""
    parts = name.split(".")
    top = "anabranch" if parts[0] == "cluster" else "anabranch.engine"
    module, rest = importlib.import_module(f"{top}.{parts[0]}"), parts[1:]
    while rest and importlib.util.find_spec(f"{module.__name__}.{rest[0]}") is not None:
        module = importlib.import_module(f"{module.__name__}.{rest.pop(0)}")
        if not hasattr(module, "__path__"):
            break
    assert rest, f"{name} is a module, name what is in it"
    found: object = module
    for attribute in rest:
        found = getattr(found, attribute)


def test_arrows_that_follow_from_others_are_left_out() -> None:
    assert rooms.reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": ["b"], "b": ["c"], "c": []}
