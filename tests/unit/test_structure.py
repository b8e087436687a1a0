"""The counts of `benchmarks.structure` follow their rules, whatever the layout of the tree."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from benchmarks import one_element, structure
from benchmarks.sources import room_of

ROOMS = {
    "anabranch/__init__.py": "",
    "cluster/__init__.py": "",
    "cluster/cli.py": "from anabranch.engine.output.commit import publish",
    "engine/__init__.py": "",
    "engine/errors.py": "",
    "engine/methods/__init__.py": "from .stages import All, Top",
    "engine/methods/stages.py": "class All: ...\nclass Top: ...",
    "engine/plan/__init__.py": "from .task import Task\nfrom .windows import cut",
    "engine/plan/task.py": "from ..methods import Top\nfrom ..errors import Refused",
    "engine/plan/windows.py": "from ..errors import Refused",
    "engine/fold/__init__.py": "",
    "engine/fold/tensor.py": "from ..plan import Task\nif isinstance(task, Top): ...",
    "engine/output/__init__.py": "",
    "engine/output/commit.py": "from ..plan import Task",
}


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def rooms(tmp_path: Path) -> structure.Sources:
    return structure.Sources(write(tmp_path, ROOMS))


def test_folders_of_the_engine_are_its_rooms(rooms: structure.Sources) -> None:
    assert rooms.rooms == ["fold", "methods", "output", "plan"]
    assert rooms.flat == ["engine.errors"]
    of = {"engine.fold.tensor": "fold", "engine.plan": "plan", "engine": "", "engine.errors": "errors"}
    of |= {"cluster.cli": "cluster"}
    assert {name: room_of(name) for name in of} == of


def test_a_commit_reaches_what_packages_import_but_not_by_name(rooms: structure.Sources) -> None:
    def reached(imports: Mapping[str, set[str]]) -> set[str]:
        return structure.reach(imports, "engine.output.commit")

    by_name = {"engine.plan.task", "engine.methods.stages", "engine.errors"}
    assert reached(rooms.imports_by_name) == by_name
    assert reached(rooms.imports) == by_name | {"engine.plan", "engine.plan.windows", "engine.methods"}


@pytest.mark.parametrize(
    "text",
    [
        "from ..fold import tensor",
        "from ..fold.tensor import State",
        "import anabranch.engine.fold.tensor",
        "from anabranch.engine.fold import tensor",
        "if TYPE_CHECKING:\n    from ..fold.tensor import State",
        "def late():\n    from ..fold.tensor import State",
    ],
)
def test_imports_count_however_they_are_written(tmp_path: Path, text: str) -> None:
    sources = structure.Sources(write(tmp_path, ROOMS | {"engine/output/commit.py": text}))
    reached = structure.reach(sources.imports, "engine.output.commit")
    assert [name for name in reached if structure.is_forbidden(name)] == ["engine.fold.tensor"]


def test_levels_are_the_longest_chain_and_a_circle_is_one(tmp_path: Path, rooms: structure.Sources) -> None:
    assert rooms.levels() == 3  # the commit, a task, its stages
    assert rooms.circles() == []
    both = {"engine/plan/windows.py": "from .task import Task", "engine/plan/task.py": "from .windows import cut"}
    joined = structure.Sources(write(tmp_path, ROOMS | both))
    assert joined.levels() == 2
    assert joined.circles() == ["engine.plan.task", "engine.plan.windows"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("isinstance(x, Top)", ["Top"]),
        ("isinstance(x, Top | stages.All | Other)", ["Top", "All"]),
        ("isinstance(x, (Top, All))", ["Top", "All"]),
        ("isinstance(x.Top, Other)", []),
        ("match x:\n    case Top(depth=1) | All():\n        pass\n    case Other():\n        pass", ["Top", "All"]),
        ("Top(isinstance)", []),
    ],
)
def test_every_class_that_is_asked_for_counts(text: str, expected: list[str]) -> None:
    assert sorted(structure.tested(ast.parse(text), {"Top", "All"})) == sorted(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("assert x is not None", 1),
        ("assert x is not None, 'why'", 1),
        ("assert isinstance(x, Top) and y is not None", 1),
        ("def f():\n    assert isinstance(x, Top)\n    assert x is not None", 2),
        ("assert x is None", 0),
        ("assert x is not None and x > 0", 0),
        ("assert x is not None or y is not None", 0),
        ("assert len(x) == 3", 0),
    ],
)
def test_only_asserts_that_say_nothing_else_are_narrowing(text: str, expected: int) -> None:
    assert structure.narrowing(ast.parse(text)) == expected


def test_numbers_are_found_inside_what_functions_are_handed() -> None:
    numbers = np.zeros(3)
    assert one_element.holds_numbers(numbers) and one_element.holds_numbers(memoryview(b""))
    assert one_element.holds_numbers([[(numbers,)]]) and not one_element.holds_numbers([[[[numbers]]]])
    assert not one_element.holds_numbers(["text", 3, None])


def test_the_way_of_an_element_has_the_files_that_read_fold_and_hash_it() -> None:
    bf16, fp32 = (one_element.on_the_way(dtype) for dtype in one_element.DTYPES)
    assert bf16 != fp32
    for way in (bf16, fp32):
        texts = [(one_element.ROOT / file).read_text() for file in way]
        assert all(file.startswith("engine/") for file in way)
        for part in ("\n@jit\n", "def read_into(", "sha256()"):
            assert any(part in text for text in texts), part
