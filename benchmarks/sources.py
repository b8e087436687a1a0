"""What our source files import, read as text: what the test of the rooms, the counts and the picture of them go by."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE_ROOMS = ("errors", "json_text")
"""Files of engine/ that belong to no room."""


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module: ours without `anabranch` (`engine.plan.layout`), others by their first name."""

    name: str
    attribute: str
    """What of the module is imported; "" where it is the module itself."""
    ours: bool
    late: bool
    """Inside a function: only when it is called."""
    typing: bool
    """Only for whoever checks types."""
    line: int


@dataclass(frozen=True, slots=True)
class Source:
    """One file of ours, by its dotted name without `anabranch`."""

    name: str
    path: Path
    tree: ast.Module
    imports: tuple[Import, ...]

    @property
    def room(self) -> str:
        return room_of(self.name)

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


def room_of(name: str) -> str:
    """The room of a file: the folder in engine/, `cluster`, or the file itself where it is in none.

    `engine.plan.layout` is in `plan`, `engine.errors` in `errors`, the package itself in "".
    """
    top, _, rest = name.partition(".")
    return rest.partition(".")[0] if top == "engine" else top


def read_sources(root: Path = ROOT) -> list[Source]:
    """Every file of engine/, cluster/ and the package itself."""
    files = {"": root / "anabranch" / "__init__.py"}
    for top in ("engine", "cluster"):
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found = []
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found.append(Source(name, path, tree, tuple(imports_of(tree, package, set(files)))))
    return found


def imports_of(tree: ast.Module, package: str, known: set[str]) -> Iterator[Import]:
    """Every import of a file, in order.

    Args:
        tree: the file.
        package: what its relative imports start from, without `anabranch`.
        known: the names of our files.
    """

    def visit(node: ast.AST, late: bool, typing: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    ours = alias.name.split(".")[0] == "anabranch"
                    name = alias.name.removeprefix("anabranch").lstrip(".") if ours else alias.name.split(".")[0]
                    yield Import(name, "", ours, late, typing, child.lineno)
            elif isinstance(child, ast.ImportFrom):
                for name, attribute, ours in _resolved(child, package, known):
                    yield Import(name, attribute, ours, late, typing, child.lineno)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(child, late, typing=True)
            else:
                inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from visit(child, late or inner, typing)

    yield from visit(tree, late=False, typing=False)


def _resolved(node: ast.ImportFrom, package: str, known: set[str]) -> Iterator[tuple[str, str, bool]]:
    """Every module that a `from ... import ...` names: `from . import header` means the module header."""
    if node.level:
        parts = ("anabranch." + package if package else "anabranch").split(".")
        base = ".".join(parts[: len(parts) - node.level + 1] + ([node.module] if node.module else []))
    else:
        base = node.module or ""
    if base != "anabranch" and not base.startswith("anabranch."):
        yield base.split(".")[0], "", False
        return
    base = base.removeprefix("anabranch").lstrip(".")
    for alias in node.names:
        inside = f"{base}.{alias.name}".lstrip(".")
        yield (inside, "", True) if inside in known else (base, alias.name, True)
