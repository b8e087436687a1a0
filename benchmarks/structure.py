"""How the sources hang together, counted: what a reader must open, what imports what, what asks for classes.

    python -m benchmarks.structure [--json]

Everything is found in the tree, nothing is listed here. What the rows count:

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
from .sources import ROOT, read_sources, room_of

FORBIDDEN = ("engine/fold/", "engine/run/", "engine/kernels/cpu")
"""The commit has nothing to do with arithmetic or with how a merge is run."""


class Sources:
    """The files of a checkout, by dotted name without the package: `engine.kernels.cpu`."""

    def __init__(self, root: Path = ROOT) -> None:
        self.files = {source.name: source for source in read_sources(root)}

    @property
    def rooms(self) -> list[str]:
        """Folders of engine/."""
        inside = {source.room for name, source in self.files.items() if name.startswith("engine.")}
        return sorted(inside - {name.partition(".")[2] for name in self.flat})

    @property
    def flat(self) -> list[str]:
        """Files of engine/ that lie in none of its folders."""
        names = [name for name in self.files if name.startswith("engine.") and name.count(".") == 1]
        return [name for name in names if not self.files[name].is_package]

    def imported(self, name: str) -> Iterator[tuple[str, str]]:
        """(file of ours, name in it or '') for every import in a file."""
        return ((item.name, item.attribute) for item in self.files[name].imports if item.ours)

    def _defining(self, file: str, name: str) -> str:
        """Where a name that a package offers is defined."""
        if name and self.files[file].is_package:
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
        imports = {name: {file for file in files if in_engine(file)} for name, files in self.imports_by_name.items()}
        reached = {name: reach(imports, name) for name in imports if in_engine(name)}

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


def in_engine(name: str) -> bool:
    return name.partition(".")[0] == "engine"


def is_forbidden(name: str) -> bool:
    """Whether a file is of a room that the commit must not know."""
    return name.replace(".", "/").startswith(FORBIDDEN)


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
        for source in sources.files.values()
        if source.room == "methods"
        for node in source.tree.body
        if isinstance(node, ast.ClassDef)
    }
    trees = {name: source.tree for name, source in sources.files.items()}
    outside = {name: tree for name, tree in trees.items() if room_of(name) != "methods"}
    tests = {name: Counter(found) for name, tree in outside.items() if (found := tested(tree, stages))}
    asserts = {name: count for name, tree in trees.items() if (count := narrowing(tree))}
    return {
        **{f"files for one element in {dtype}": sorted(way) for dtype, way in zip(DTYPES, ways, strict=True)},
        "of these in both": sorted(set.intersection(*ways)),
        "files that the commit reaches": sorted(reached),
        "of these in fold, run or kernels/cpu": sorted(filter(is_forbidden, reached)),
        "files that the commit reaches by name": sorted(by_name),
        "of these in fold, run or kernels/cpu, by name": sorted(filter(is_forbidden, by_name)),
        "tests on stages outside methods": tests,
        "tests on stages outside methods and fold": {
            name: found for name, found in tests.items() if room_of(name) != "fold"
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
    options = parser.parse_args(arguments)
    found = measure(Sources())
    if options.as_json:
        print(json.dumps(found, indent=2))
        return 0
    print("| | |\n|---|---:|")
    print(*(f"| {row} | {total(value)} |" for row, value in found.items()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
