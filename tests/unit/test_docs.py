"""The documents say what is there: links, promises, methods, exit codes and recipes are held to the code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import anabranch
from anabranch.engine import errors
from anabranch.engine.methods import METHODS
from anabranch.engine.recipe.parse import parse_recipe, parse_search
from docs.method_tables import with_tables

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "benchmarks", "configs", "deploy")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROMISES = ("P1", "P2", "P3", "P4", "P5", "P6")
LABELS = ("Concept", "Use", "Inputs", "Parameters", "Source")

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def prose(path: Path) -> str:
    """A document without its code: blocks and back quotes hold no links."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of a document in one language."""
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def links(text: str) -> list[str]:
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def section(text: str, heading: str) -> str:
    """The text below a heading, up to the next heading of its level or above."""
    level = re.search(rf"^(#+) {re.escape(heading)}$", text, flags=re.MULTILINE)
    assert level is not None, f"no heading {heading!r}"
    rest = text[level.end() :]
    return re.split(rf"^#{{1,{len(level[1])}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The body rows of the first table of a text."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


# -- links -----------------------------------------------------------------------------------------------------------


@every_document
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for link in links(prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{path.relative_to(ROOT)}: {link}"
        assert ROOT in (target, *target.parents), f"{path.relative_to(ROOT)}: {link} leads out of the repository"
        if anchor:
            assert anchor in anchors(target), f"{path.relative_to(ROOT)}: {link}: no such heading"


def test_every_document_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / link.partition("#")[0]).resolve() for link in links(prose(index))}
    assert [path for path in (ROOT / "docs").rglob("*.md") if path != index and path not in listed] == []


@every_document
def test_documents_are_readable(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        assert not re.search("[\U0001f000-\U0001faff\u2600-\u27bf]", line), f"{path.name}:{number}: an emoji"
        assert line == line.rstrip(), f"{path.name}:{number}: space at the end of the line"


# -- promises --------------------------------------------------------------------------------------------------------


def test_every_promise_is_proved_by_a_test() -> None:
    table = {row[0]: row for row in rows(section(README, "Promises"))}
    assert tuple(table) == PROMISES
    for name, row in table.items():
        proofs = [link for link in links(row[-1]) if link.startswith("tests/")]
        assert proofs, f"{name} links to no test"
        for proof in proofs:
            path = ROOT / proof.partition("#")[0]
            assert path.is_file(), f"{name}: {proof} does not exist"
            assert re.search(r"^\s*(async )?def test_", path.read_text(encoding="utf-8"), flags=re.MULTILINE), (
                f"{name}: {proof} holds no test"
            )


def test_exit_codes_are_those_of_the_errors() -> None:
    def tree(kind: type[errors.AnabranchError]) -> Iterator[int]:
        yield kind.exit_code
        for child in kind.__subclasses__():
            yield from tree(child)

    documented = {int(row[0].strip("`")) for row in rows(section(README, "Exit codes"))}
    assert documented == {0, *tree(errors.AnabranchError)}


# -- methods ---------------------------------------------------------------------------------------------------------

METHODS_PAGE = ROOT / "docs" / "methods.md"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_section(method: str) -> None:
    text = section(METHODS_PAGE.read_text(encoding="utf-8"), method)
    places = [text.find(f"**{label}.**") for label in LABELS]
    assert -1 not in places, f"{method}: {LABELS[places.index(-1)]} is missing"
    assert places == sorted(places), f"{method}: expected the order {LABELS}"
    parameters = text[places[3] : places[4]].split("The recipe's", 1)[0]
    assert set(re.findall(r"`(\w+)`", parameters)) == set(METHODS[method].schema.parameters)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_recipe_to_copy(method: str) -> None:
    text = section(METHODS_PAGE.read_text(encoding="utf-8"), method)
    recipes = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert method in [parse_recipe(recipe, "docs/methods.md").merge_method for recipe in recipes]


def test_the_first_table_of_the_methods_lists_every_method() -> None:
    table = rows(METHODS_PAGE.read_text(encoding="utf-8").split("\n## ", 1)[0])
    assert [re.findall(r"`(\w+)`", row[0]) for row in table] == [[method] for method in METHODS]


def test_the_tables_of_parameters_are_those_of_the_signatures() -> None:
    """`make docs` writes them."""
    text = METHODS_PAGE.read_text(encoding="utf-8")
    assert with_tables(text) == text


def test_every_parameter_says_what_it_means() -> None:
    for name, method in METHODS.items():
        assert [key for key, parameter in method.schema.parameters.items() if not parameter.meaning] == [], name


def test_the_readme_names_methods_that_there_are_once() -> None:
    table = rows(section(README, "Methods"))
    named = [name for row in table for name in re.findall(r"`(\w+)`", row[0])]
    assert len(named) == len(set(named)) and set(named) <= set(METHODS)
    assert len(named) > 20


@every_document
def test_recipes_in_documents_are_right(path: Path) -> None:
    for block in blocks(path, "yaml"):
        data = yaml.safe_load(block)
        if isinstance(data, dict) and "merge_method" in data:
            where = str(path.relative_to(ROOT))
            if parse_search(block, where) is None:
                parse_recipe(block, where)


# -- commands --------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[Path, list[str]]]:
    """Every command in a document's shell blocks, and behind a prompt in its text blocks, as words."""
    for path in DOCUMENTS:
        shown = [line[2:] for block in blocks(path, "text") for line in block.splitlines() if line.startswith("$ ")]
        for block in [*blocks(path, "sh"), *shown]:
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                if words:
                    yield path, words


def test_shown_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    shown = {words[1] for _, words in commands() if words[0] == "make"}
    shown |= {name for path in DOCUMENTS for name in re.findall(r"`make ([\w-]+)`", path.read_text(encoding="utf-8"))}
    assert shown <= targets, sorted(shown - targets)
    assert {"demo", "test"} <= shown


def test_shown_python_names_exist() -> None:
    for block in blocks(ROOT / "README.md", "python"):
        compile(block, "README.md", "exec")
        for name in re.findall(r"\banabranch\.(\w+)", block):
            assert name in anabranch.__all__, f"anabranch.{name}"


def test_every_row_of_checkpoints_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert named
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {name}"
