"""The rooms of the engine, held to a rule: which room may import which, by public names, and who stays pure."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from benchmarks.sources import OUTSIDE_ROOMS, ROOT, Source, imports_of, read_sources, room_of

MAY_IMPORT = {
    "storage": set(),
    "kernels": set(),
    "methods": set(),
    "recipe": {"methods"},
    "models": {"recipe", "storage", "kernels"},
    "plan": {"models", "recipe", "storage", "kernels", "methods"},
    "fold": {"plan", "models", "kernels", "methods"},
    "output": {"plan", "models", "recipe", "storage"},
    "run": {"output", "fold", "plan", "models", "recipe", "storage", "kernels", "methods"},
    "cluster": {"run", "output", "plan", "models", "recipe", "storage", "kernels", "methods"},
}
"""Besides errors and json_text, which all may import. Fold and output do not know each other."""

PURE = ("engine.methods", "engine.recipe", "engine.plan", "cluster.ray.scheduler", "cluster.ray.workforce")
IMPURE = ("engine.recipe.parse", "engine.plan.inputs", "engine.plan.side_files")
"""The loader of recipe files, what opens the inputs that they name, and what copies files beside the weights."""
INPUT_OUTPUT = {
    *("asyncio", "datetime", "fsspec", "io", "multiprocessing", "os", "pathlib", "random", "ray", "s3fs", "shutil"),
    *("socket", "subprocess", "tempfile", "threading", "time"),
}

HEAVY = {"accelerate", "sklearn", "torch", "transformers"}
MAY_BE_HEAVY = ("engine.kernels.torch.", "cluster.demo.models")

SOURCES = read_sources()
ROOMS = {source.room: source for source in SOURCES if source.name == f"engine.{source.room}"}
every_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name or "anabranch")


def within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def test_every_file_of_the_engine_lies_in_a_room() -> None:
    rooms = {source.room for source in SOURCES if source.name.startswith("engine.")} - {*OUTSIDE_ROOMS}
    assert rooms == MAY_IMPORT.keys() - {"cluster"}
    assert {path.name for path in (ROOT / "engine").glob("*.py")} == {
        "__init__.py",
        *(f"{name}.py" for name in OUTSIDE_ROOMS),
    }


@every_source
def test_rooms_import_the_rooms_below_them_alone(source: Source) -> None:
    allowed = MAY_IMPORT.get(source.room, set()) | {source.room, *OUTSIDE_ROOMS}
    if source.name == "":
        return
    for item in source.imports:
        if item.ours:
            found = room_of(item.name)
            assert found in allowed, (
                f"{source.name}:{item.line} imports {item.name}: {source.room} may not know {found}"
            )


@every_source
def test_rooms_know_each_other_by_public_names(source: Source) -> None:
    for item in source.imports:
        if not item.ours or not item.name.startswith("engine.") or source.name == "":
            continue
        found = room_of(item.name)
        if found != source.room and found not in OUTSIDE_ROOMS:
            # A module may be a public name itself: `tadrop` holds formulas that read best with its name before them.
            public = item.name == f"engine.{found}" or item.name.rpartition(".")[2] in public_names(ROOMS[found])
            assert public, f"{source.name}:{item.line} reaches into {found}: take {item.name} from the room"


def public_names(room: Source) -> list[str]:
    for node in room.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    raise AssertionError(f"{room.name} has no __all__")


@pytest.mark.parametrize("room", sorted(MAY_IMPORT.keys() - {"cluster"}))
def test_a_room_offers_what_others_use_and_no_more(room: str) -> None:
    text = "\n".join(s.path.read_text(encoding="utf-8") for s in SOURCES if s.room != room)
    if room == "methods":  # people write methods of their own from its names, as the room's functions do
        text += "\n".join(s.path.read_text(encoding="utf-8") for s in SOURCES if s.name.startswith("engine.methods."))
    unused = [name for name in public_names(ROOMS[room]) if not re.search(rf"\b{name}\b", text)]
    assert not unused, f"nobody outside {room} names these: {unused}"


def test_no_circle_between_files() -> None:
    """Imports for types and inside functions count: a circle of those is one, too."""
    graph = {source.name: {item.name for item in source.imports if item.ours} - {source.name} for source in SOURCES}
    while True:
        leaves = {name for name, needs in graph.items() if not needs & graph.keys()}
        if not leaves:
            break
        graph = {name: needs for name, needs in graph.items() if name not in leaves}
    assert not graph, f"these files import each other: {sorted(graph)}"


@every_source
def test_engine_knows_neither_cluster_nor_ray(source: Source) -> None:
    if source.name.startswith("engine"):
        assert not {item.name.split(".")[0] for item in source.imports} & {"cluster", "ray"}


@every_source
def test_pure_files_do_no_input_or_output(source: Source) -> None:
    if not within(source.name, PURE) or within(source.name, IMPURE):
        return
    for item in source.imports:
        banned = item.name in ("engine.storage", *IMPURE) if item.ours else item.name in INPUT_OUTPUT
        offered = source.name == "engine." + source.room  # a room's __init__ names what the room offers
        assert not banned or offered, f"{source.name}:{item.line} imports {item.name}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "print", "input"), f"{source.name}:{node.lineno} calls {node.func.id}"


@every_source
def test_heavy_libraries_are_imported_late(source: Source) -> None:
    if source.name.startswith(MAY_BE_HEAVY):
        return
    early = [item for item in source.imports if not item.late and not item.typing and not item.ours]
    heavy = [item for item in early if item.name in HEAVY]
    assert not heavy, f"{source.name} imports {heavy[0].name} at line {heavy[0].line} when it is itself imported"


def test_a_merge_worker_loads_no_heavy_library() -> None:
    """The same by running it, so that an import by way of another library is seen too."""
    modules = [s.name for s in SOURCES if s.name.startswith("engine") and not s.name.startswith(MAY_BE_HEAVY)]
    script = "import importlib, sys\n"
    script += "".join(f"importlib.import_module('anabranch.{name}')\n" for name in modules)
    script += f"print(*sorted({HEAVY | {'ray'}!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def sentence(source: Source) -> str:
    """The first line of a room's docstring without its name: `Plan: what becomes ...` says `what becomes ...`."""
    name, _, text = (ast.get_docstring(source.tree) or "").splitlines()[0].partition(": ")
    assert name == source.room.capitalize()
    return text.rstrip(".")


def test_documents_have_the_sentence_of_every_room() -> None:
    """The table of CONTRIBUTING and the lines of engine/__init__ say what each room says of itself, in its order."""
    rooms = [(room, sentence(ROOMS[room])) for room in MAY_IMPORT if room != "cluster"]
    rows = re.findall(r"^\| `(\w+)/` \| (.*?) \|$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), flags=re.MULTILINE)
    assert [row for row in rows if row[0] in MAY_IMPORT.keys() - {"cluster"}] == rooms
    lines = re.findall(
        r"^(\w+)/ +(.*?)$",
        ast.get_docstring(next(s.tree for s in SOURCES if s.name == "engine")) or "",
        flags=re.MULTILINE,
    )
    assert lines == rooms


@pytest.mark.parametrize("room", sorted(MAY_IMPORT.keys() - {"cluster"}))
def test_a_room_names_the_tests_that_hold_it(room: str) -> None:
    text = ast.get_docstring(ROOMS[room].tree) or ""
    named = re.findall(r"tests/[\w/.]+\w", text)
    assert named and all((ROOT / name).exists() for name in named), named


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from .errors import InputError", {"engine.errors"}),
        ("from . import plan", {"engine.plan"}),
        ("from ..cluster.cli import main", {"cluster.cli"}),
        ("from anabranch.engine import plan", {"engine.plan"}),
        ("import anabranch.engine.output.verify", {"engine.output.verify"}),
        ("def f():\n    from .output.verify import check", {"engine.output.verify"}),
        ("if TYPE_CHECKING:\n    from .errors import InputError", {"engine.errors"}),
    ],
)
def test_imports_are_found_however_they_are_written(text: str, expected: set[str]) -> None:
    known = {"engine", "engine.errors", "engine.plan", "engine.output.verify", "cluster", "cluster.cli"}
    assert {item.name for item in imports_of(ast.parse(text), "engine", known) if item.ours} == expected
