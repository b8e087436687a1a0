"""The whole command: an output has a card that is checked as every file, unless the recipe wants none."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from .conftest import Command, Workplace


@pytest.fixture
def own(workplace: Workplace) -> Workplace:
    """Models of its own, which a test may give licences."""
    for name in ("base", "model0", "model1"):
        source = Path(workplace.recipe["base_model"]).parent / name
        folder = workplace.folder / name
        folder.mkdir()
        for file in source.iterdir():
            (folder / file.name).symlink_to(file)
        (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Its own\n")
    workplace.recipe["base_model"] = str(workplace.folder / "base")
    for i, entry in enumerate(workplace.recipe["models"]):
        entry["model"] = str(workplace.folder / f"model{i}")
    return workplace


def test_a_card_is_written_hashed_and_the_same_twice(own: Workplace, anabranch: Command) -> None:
    assert anabranch("merge", own.write(), own.out).exit_code == 0
    card, recipe = ((own.out / name).read_text() for name in ("README.md", "mergekit_config.yml"))
    assert str(own.folder) not in card + recipe and "Its own" not in card
    assert yaml.safe_load(card.split("---\n")[1]) == {
        "library_name": "transformers",
        "tags": ["merge", "anabranch"],
        "license": "apache-2.0",
    }
    assert [entry["model"] for entry in yaml.safe_load(recipe)["models"]] == ["model-1", "model-2"]
    assert anabranch("merge", own.write(), own.folder / "again").exit_code == 0
    assert own.files() == own.files(own.folder / "again")
    (own.out / "README.md").write_text("# Other\n")
    checked = anabranch("verify", own.out)
    assert checked.exit_code == 4 and "README.md: damaged" in checked.output


def test_licences_that_differ_are_left_out_and_make_another_plan(own: Workplace, anabranch: Command) -> None:
    assert anabranch("merge", own.write(), own.out).exit_code == 0
    (own.folder / "model1" / "README.md").write_text("---\nlicense: gemma\n---\n")
    assert anabranch("merge", own.write(), own.out).exit_code == 5
    assert anabranch("merge", own.write(), own.folder / "again").exit_code == 0
    assert "license" not in (own.folder / "again" / "README.md").read_text().split("---\n")[1]


def test_no_card_or_that_of_the_base(own: Workplace, anabranch: Command) -> None:
    weights = {}
    for card, names in ((False, set()), ("base", {"README.md", "mergekit_config.yml"})):
        out = own.folder / f"card-{card}"
        recipe = own.write(output={**own.recipe["output"], "card": card})
        assert anabranch("merge", recipe, out).exit_code == 0
        files = own.files(out)
        assert files.keys() & {"README.md", "mergekit_config.yml"} == names
        assert anabranch("verify", out).exit_code == 0
        weights[card] = {name: data for name, data in files.items() if name.endswith(".safetensors")}
    assert (own.folder / "base" / "README.md").read_bytes() == own.files(own.folder / "base")["README.md"]
    assert weights[False] == weights["base"] != {}


def test_a_base_without_a_card_has_none_to_give(workplace: Workplace, anabranch: Command) -> None:
    refused = anabranch("merge", workplace.write(output={"card": "base"}), workplace.out)
    assert refused.exit_code == 2, refused.output
    assert "has no README.md" in refused.output and "output.card" in refused.output
    refused = anabranch("merge", workplace.write(output={"card": "yes please"}), workplace.out)
    assert refused.exit_code == 2 and "expected true, false or base" in refused.output
