"""docs/recipe.md says exactly what the code accepts: every key, default, parameter and method."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from anabranch.engine.methods.tadrop import TadropDensity
from anabranch.engine.recipe.chat_templates import CHAT_TEMPLATES
from anabranch.engine.recipe.parameters import TADROP
from anabranch.engine.recipe.parse import parse_recipe
from anabranch.engine.recipe.schema import OUTPUT_DTYPES, Layout, ModelEntry, Recipe, Slice, SliceSource
from anabranch.engine.recipe.tokenizer_keys import MAX_MULTIPLE, TokenEntry, TokenizerKeys

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the first table below a heading: name -> the other cells, without back quotes."""
    section = re.split(r"^#+ ", TEXT.split(f" {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line.strip("| ") for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split(" | ")] for line in lines[2:]]
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0].strip("`"): row[1:] for row in rows}


def written(value: object) -> str:
    """A default as the tables write it."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, tuple | dict):
        return "[]" if isinstance(value, tuple) else "{}"
    if isinstance(value, BaseModel):
        return "{}"
    return json.dumps(value)


@pytest.mark.parametrize(
    ("heading", "schema"),
    [
        ("Keys of a recipe", Recipe),
        ("Entries of `models`", ModelEntry),
        ("Slices", Slice),
        ("Sources of a slice", SliceSource),
        ("Output", Layout),
        ("Tokenizer", TokenizerKeys),
        ("Entries of `tokens`", TokenEntry),
    ],
)
def test_every_key_and_its_default(heading: str, schema: type[BaseModel]) -> None:
    documented = {name: cells[1].strip("`") for name, cells in table(heading).items()}
    fields = {field.alias or name: field for name, field in schema.model_fields.items()}
    assert list(documented) == list(fields)
    for name, field in fields.items():
        default = "required" if field.is_required() else written(field.get_default(call_default_factory=True))
        assert documented[name] == default, name


def test_every_choice_at_the_top() -> None:
    rows = table("Keys of a recipe")
    for name in ("nonfinite", "overflow", "extra_tensors", "vocab"):
        choices = re.findall(r"'([^']+)'", str(Recipe.model_fields[name].annotation))
        assert re.findall(r"`([^`]+)`", rows[name][0]) == choices
    assert re.findall(r"`([^`]+)`", rows["dtype"][0]) == list(OUTPUT_DTYPES)
    assert re.findall(r"`([^`]+)`", rows["chat_template"][0]) == ["auto", *sorted(CHAT_TEMPLATES)]
    assert table("Tokenizer")["pad_to_multiple_of"][0] == f"a whole number from 1 to {MAX_MULTIPLE}"


def test_every_key_of_tadrop() -> None:
    rows = table("TADrop")
    assert list(rows) == list(TADROP)
    for name, (values, default, _) in rows.items():
        assert values == TADROP[name].expected
        assert default.strip("`") == written(getattr(TadropDensity(), name))


def test_the_examples_are_right() -> None:
    *whole, settings = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    methods = [parse_recipe(text, "docs/recipe.md").merge_method for text in whole]
    assert methods == ["cabs", "passthrough", "linear"]
    for setting in re.split(r"^(?=weight:)", settings, flags=re.MULTILINE)[1:]:
        indented = "".join(f"  {line}\n" for line in setting.splitlines())
        parse_recipe(f"merge_method: linear\nmodels: [{{model: m}}]\nparameters:\n{indented}", "docs/recipe.md")


def test_the_example_of_vocabularies_is_right() -> None:
    text = (ROOT / "docs" / "vocabularies.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    keys = parse_recipe(example, "docs/vocabularies.md").tokenizer_keys
    assert keys is not None and list(keys.tokens) == ["<|im_start|>", "<|tool|>"]
