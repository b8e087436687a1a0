"""How the sources hang together, counted: what a reader must open, what imports what, what asks for classes.

    python -m benchmarks.structure [--json] [--room fold=tensor,select --room run=pipeline,shard]

Everything is found in the tree, nothing is listed here. A room is a folder of `engine/`; `--room` says which flat
files count as one, for a layout without that folder. What the rows count:

- *files for one element*: those whose functions are handed the numbers of a CABS merge (see `one_element`).
- *files that the commit reaches*: through imports of any kind, those for type checkers and inside functions included;
  the file of the commit itself is not counted. *By name* follows a name that a package passes on to the file that
  defines it, without what else the package imports.
- *tests on stages*: every class defined in `methods/` that the second argument of an `isinstance` names, and every
  class pattern of a `match` that names one.
- *asserts that only narrow types*: `assert x is not None`, `assert isinstance(x, ...)`, and such joined by `and`.
- *import levels*: files on the longest chain of imports in `engine/`, by name; files that import each other count once.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeGuard

from .one_element import DTYPES, on_the_way

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "anabranch"
FORBIDDEN = ("engine/fold/", "engine/run/", "engine/kernels/cpu")
"""The commit has nothing to do with arithmetic or with how a merge is run."""


class Sources:
    """The files of a checkout, by dotted name without the package: `engine.kernels.cpu`."""

    def __init__(self, root: Path, rooms: Mapping[str, Sequence[str]] | None = None) -> None:
        self.files = {"": root / PACKAGE / "__init__.py"}
        for path in sorted(path for top in ("engine", "cluster") for path in (root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            self.files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        self.trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.files.items()}
        self._named = {f"engine.{file}": room for room, files in (rooms or {}).items() for file in files}

    def is_package(self, name: str) -> bool:
        return self.files[name].name == "__init__.py"

    @staticmethod
    def in_engine(name: str) -> bool:
        return name.partition(".")[0] == "engine"

    def room(self, name: str) -> str:
        """The folder of engine/ that a file lies in, or the one it counts for; '' for other files."""
        path = name.split(".")
        is_inside = path[0] == "engine" and (len(path) > 2 or (len(path) == 2 and self.is_package(name)))
        return path[1] if is_inside else self._named.get(name, "")

    @property
    def rooms(self) -> list[str]:
        return sorted({self.room(name) for name in self.files if name not in self._named} - {""})

    @property
    def flat(self) -> list[str]:
        """Files of engine/ that lie in none of its folders."""
        names = [name for name in self.files if name.startswith("engine.") and name.count(".") == 1]
        return [name for name in names if not self.is_package(name)]

    def is_forbidden(self, name: str) -> bool:
        """Whether a file is of a room that the commit must not know."""
        path = f"engine/{self.room(name)}/" if name in self._named else name.replace(".", "/")
        return path.startswith(FORBIDDEN)

    # -- imports -------------------------------------------------------------------------------------------------

    def imported(self, name: str) -> Iterator[tuple[str, str]]:
        """(file of ours, name in it or '') for every import in a file."""
        package = name if self.is_package(name) else name.rpartition(".")[0]
        for node in ast.walk(self.trees[name]):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == PACKAGE:
                        yield alias.name.removeprefix(PACKAGE).lstrip("."), ""
            elif isinstance(node, ast.ImportFrom):
                above = f"{PACKAGE}.{package}".rstrip(".").split(".")
                above = above[: len(above) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                if base.split(".")[0] == PACKAGE:
                    yield from (self._place(base.removeprefix(PACKAGE).lstrip("."), alias.name) for alias in node.names)

    def _place(self, base: str, name: str) -> tuple[str, str]:
        inside = f"{base}.{name}".lstrip(".")
        return (inside, "") if inside in self.files else (base, name)

    def _defining(self, file: str, name: str) -> str:
        """Where a name that a package offers is defined."""
        if name and self.is_package(file):
            passed_on = {inner: origin for origin, inner in self.imported(file)}
            if name in passed_on:
                return self._defining(passed_on[name], name)
        return file

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        return {name: {file for file, _ in self.imported(name)} - {name} for name in self.files}

    @cached_property
    def imports_by_name(self) -> dict[str, set[str]]:
        return {name: {self._defining(*place) for place in self.imported(name)} - {name} for name in self.files}

    def levels(self) -> int:
        """Files on the longest chain of imports within engine/."""
        imports = {name: set(filter(self.in_engine, files)) for name, files in self.imports_by_name.items()}
        reached = {name: reach(imports, name) for name in filter(self.in_engine, imports)}

        @cache
        def level(name: str) -> int:
            circle = {other for other in reached[name] if name in reached[other]} | {name}
            below = set().union(*(imports[member] for member in circle)) - circle
            return 1 + max(map(level, below), default=0)

        return max(map(level, reached), default=0)

    def circles(self) -> list[str]:
        """Files that import themselves by way of others; a package and its own files may name each other."""
        own = {name: files - {name.rpartition(".")[0]} for name, files in self.imports.items()}
        return [name for name in own if name in reach(own, name)]


def reach(imports: Mapping[str, set[str]], start: str) -> set[str]:
    """Files that a file imports, directly or by way of others; itself only where it lies in a circle."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = imports[waiting.pop()] - found
        found |= new
        waiting += new
    return found


# -- questions about classes -----------------------------------------------------------------------------------------


def tested(tree: ast.AST, classes: set[str]) -> list[str]:
    """The classes that isinstance and match ask for, each as often as it is named."""
    found: list[str] = []
    for node in ast.walk(tree):
        if _is_isinstance(node):
            found += [name for part in ast.walk(node.args[1]) if (name := _name(part)) in classes]
        elif isinstance(node, ast.MatchClass) and (name := _name(node.cls)) in classes:
            found.append(name)
    return found


def narrowing(tree: ast.AST) -> int:
    """Asserts that say nothing but which type a value has."""
    return sum(isinstance(node, ast.Assert) and _narrows(node.test) for node in ast.walk(tree))


def _narrows(test: ast.expr) -> bool:
    if isinstance(test, ast.BoolOp):
        return isinstance(test.op, ast.And) and all(map(_narrows, test.values))
    if isinstance(test, ast.Compare):
        return isinstance(test.ops[0], ast.IsNot) and ast.unparse(test.comparators[0]) == "None"
    return _is_isinstance(test)


def _is_isinstance(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and _name(node.func) == "isinstance" and len(node.args) == 2


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


# -- the table -------------------------------------------------------------------------------------------------------


def measure(sources: Sources) -> dict[str, Any]:
    """Every row's number, and the names behind it where somebody may want them."""
    ways = [on_the_way(dtype) for dtype in DTYPES]
    [commit] = [name for name in sources.files if name.split(".")[-1] == "commit"]
    reached = reach(sources.imports, commit) - {commit}
    by_name = reach(sources.imports_by_name, commit) - {commit}
    stages = {
        node.name
        for name, tree in sources.trees.items()
        if sources.room(name) == "methods"
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    outside = {name: tree for name, tree in sources.trees.items() if sources.room(name) != "methods"}
    tests = {name: Counter(found) for name, tree in outside.items() if (found := tested(tree, stages))}
    asserts = {name: count for name, tree in sources.trees.items() if (count := narrowing(tree))}
    return {
        **{f"files for one element in {dtype}": sorted(way) for dtype, way in zip(DTYPES, ways, strict=True)},
        "of these in both": sorted(set.intersection(*ways)),
        "files that the commit reaches": sorted(reached),
        "of these in fold, run or kernels/cpu": sorted(filter(sources.is_forbidden, reached)),
        "files that the commit reaches by name": sorted(by_name),
        "of these in fold, run or kernels/cpu, by name": sorted(filter(sources.is_forbidden, by_name)),
        "tests on stages outside methods": tests,
        "tests on stages outside methods and fold": {
            name: found for name, found in tests.items() if sources.room(name) != "fold"
        },
        "asserts that only narrow types": asserts,
        "rooms of engine": sources.rooms,
        "flat files of engine": sources.flat,
        "import levels of engine": sources.levels(),
        "files in circles of imports": sources.circles(),
    }


def total(value: Any) -> int:
    if isinstance(value, int):
        return value
    return sum(map(total, value.values())) if isinstance(value, dict) else len(value)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Count how the sources hang together.")
    parser.add_argument("--json", action="store_true", dest="as_json", help="with the names behind every number")
    parser.add_argument("--room", action="append", default=[], metavar="ROOM=FILE,...", help="flat files of a room")
    options = parser.parse_args(arguments)
    rooms = {room: files.split(",") for room, _, files in (each.partition("=") for each in options.room)}
    found = measure(Sources(ROOT, rooms))
    if options.as_json:
        print(json.dumps(found, indent=2))
        return 0
    print("| | |\n|---|---:|")
    print(*(f"| {row} | {total(value)} |" for row, value in found.items()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
