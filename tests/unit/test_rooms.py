"""Imports point one way: read every source file and compare its imports with the layers below."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A module may import modules of its own or a lower number. Folders stand for all their files.
LAYERS = {
    "engine.errors": 0,
    "engine.windows": 1,  # arithmetic on element numbers
    "engine.order": 1,  # arithmetic on histograms
    "engine.density": 1,  # arithmetic on statistics
    "engine.coefficients": 1,  # arithmetic on dot products
    "engine.meter": 1,
    "engine.work": 1,
    "engine.kernels": 1,
    "engine.storage": 1,
    "engine.methods": 2,
    "engine.select": 3,  # masks from stages, kernels and order statistics
    "engine.header": 3,
    "engine.json_members": 1,
    "engine.tokenizer_file": 1,
    "engine.declared_tokens": 2,
    "engine.vocabulary": 2,  # tokens to rows
    "engine.chat_templates": 1,
    "engine.tokenizer_keys": 3,
    "engine.recipe": 3,
    "engine.recipe_slices": 3,
    "engine.canonical": 3,
    "engine.model_groups": 3,
    "engine.layers": 3,
    "engine.recipe_text": 3,
    "engine.recipe_dialect": 3,
    "engine.recipe_schema": 3,
    "engine.settings": 3,
    "engine.model_url": 3,
    "engine.parameters": 3,
    "engine.manifest": 3,
    "engine.source": 4,  # where one tensor's elements come from
    "engine.derived": 4,
    "engine.checkpoint": 4,
    "engine.activations": 5,  # what orders task vectors besides their magnitude
    "engine.reading": 5,
    "engine.quantised": 5,  # what a checkpoint's configuration says of its weights
    "engine.adapter": 5,
    "engine.ties": 5,
    "engine.model": 8,  # a checkpoint with all of that
    "engine.blueprint": 5,
    "engine.task": 5,  # one tensor of the output
    "engine.demands": 5,
    "engine.layout": 5,
    "engine.plan": 5,
    "engine.parts": 6,  # plans of several outputs of one recipe
    "engine.task_model": 7,
    "engine.group": 6,  # plans that share a reading
    "engine.tensor": 6,  # one tensor's state between passes
    "engine.scans": 7,
    "engine.brackets": 8,
    "engine.memory": 7,
    "engine.job": 7,
    "engine.pipeline": 8,
    "engine.results": 7,
    "engine.copying": 8,
    "engine.average": 8,
    "engine.columns": 9,
    "engine.nearswap": 8,
    "engine.fusion": 8,
    "engine.election": 8,
    "engine.task_sum": 8,
    "engine.survey": 9,
    "engine.whole_window": 9,
    "engine.kept": 9,
    "engine.fold": 9,
    "engine.shard": 10,
    "engine.tables": 10,
    "engine.commit": 11,
    "engine.embeddings": 6,  # which tensors have rows of tokens
    "engine.tokenizer_output": 6,
    "engine.tokenizer_plan": 7,  # reads tokenizers
    "engine.inputs": 12,  # opens what a recipe names
    "engine.verify": 12,
    "engine": 13,  # the package itself may offer what lies below it
    "cluster": 14,
    "": 15,  # `import anabranch` offers plan, merge, survey and verify
}

# These may import nothing of ours but what is listed, on top of their own folder.
ONLY = {
    "engine.errors": set(),
    "engine.windows": set(),
    "engine.order": set(),
    "engine.density": set(),
    "engine.coefficients": set(),
    "engine.kernels": {"engine.errors"},
    "engine.storage": {"engine.errors"},
    "engine.methods": {"engine.errors", "engine.kernels", "engine.coefficients"},
}

PURE = (
    "engine.vocabulary",
    "engine.tokenizer_file",
    "engine.plan",
    "engine.blueprint",
    "engine.layers",
    "engine.task",
    "engine.demands",
    "engine.layout",
    "engine.manifest",
    "cluster.scheduler",
)
INPUT_OUTPUT = {
    "datetime",
    "io",
    "os",
    "pathlib",
    "random",
    "shutil",
    "socket",
    "subprocess",
    "tempfile",
    "time",
}
INPUT_OUTPUT |= {"asyncio", "fsspec", "multiprocessing", "s3fs", "threading"}

HEAVY = {"accelerate", "sklearn", "torch", "transformers"}
MAY_BE_HEAVY = {
    "engine.kernels.reference",
    "engine.kernels.torch_election",
    "engine.kernels.torch_rows",
    "cluster.demo_models",
}


@dataclass(frozen=True)
class Import:
    """One imported module: ours without `anabranch` (`engine.header`), others by their first name."""

    name: str
    ours: bool
    at_import_time: bool
    line: int


@dataclass(frozen=True)
class Source:
    """One file of ours, by its dotted name without `anabranch`."""

    name: str
    tree: ast.Module
    imports: tuple[Import, ...]

    @property
    def layer(self) -> str:
        return layer_of(self.name)


def layer_of(module: str) -> str:
    """The entry of LAYERS that a module falls under."""
    if module in ("engine", ""):
        return module
    if module.startswith("cluster"):
        return "cluster"
    return ".".join(module.split(".")[:2])


def resolve(node: ast.ImportFrom, package: str, known: set[str]) -> Iterator[tuple[str, bool]]:
    """Every module that a `from ... import ...` names: `from . import header` means the module header."""
    if node.level:
        parts = ("anabranch." + package if package else "anabranch").split(".")
        base = ".".join(parts[: len(parts) - node.level + 1] + ([node.module] if node.module else []))
    else:
        base = node.module or ""
    if base != "anabranch" and not base.startswith("anabranch."):
        yield base.split(".")[0], False
        return
    base = base.removeprefix("anabranch").lstrip(".")
    for alias in node.names:
        inside = f"{base}.{alias.name}".lstrip(".")
        yield (inside if inside in known else base), True


def imports_of(tree: ast.Module, package: str, known: set[str]) -> Iterator[Import]:
    def visit(node: ast.AST, at_import_time: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    ours = alias.name.split(".")[0] == "anabranch"
                    name = alias.name.removeprefix("anabranch").lstrip(".") if ours else alias.name.split(".")[0]
                    yield Import(name, ours, at_import_time, child.lineno)
            elif isinstance(child, ast.ImportFrom):
                for name, ours in resolve(child, package, known):
                    yield Import(name, ours, at_import_time, child.lineno)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(child, False)
            else:
                inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from visit(child, at_import_time and not inner)

    yield from visit(tree, True)


def sources() -> list[Source]:
    files = {"": ROOT / "anabranch" / "__init__.py"}
    for top in ("engine", "cluster"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found = []
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found.append(Source(name, tree, tuple(imports_of(tree, package, set(files)))))
    return found


SOURCES = sources()
every_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name or "anabranch")


@every_source
def test_every_file_has_a_layer(source: Source) -> None:
    assert source.layer in LAYERS, f"{source.name}: give the new file a place in LAYERS, or another home"


@every_source
def test_no_file_imports_a_higher_layer(source: Source) -> None:
    for item in source.imports:
        if item.ours:
            assert LAYERS[layer_of(item.name)] <= LAYERS[source.layer], (
                f"{source.name}:{item.line} imports {item.name or 'anabranch'}, which stands above it"
            )


@every_source
def test_the_lowest_layers_import_only_what_is_listed(source: Source) -> None:
    if source.layer not in ONLY:
        return
    allowed = ONLY[source.layer] | {source.layer}
    for item in source.imports:
        if item.ours:
            assert layer_of(item.name) in allowed, f"{source.name}:{item.line} imports {item.name}"


def test_no_import_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for source in SOURCES:
        # A package and its own files may name each other, as Python allows; only cycles between files count.
        own = {source.name, source.name.rpartition(".")[0]}
        graph[source.name] = {i.name for i in source.imports if i.ours and i.at_import_time} - own
    while True:
        leaves = {name for name, needs in graph.items() if not needs & set(graph)}
        if not leaves:
            break
        graph = {name: needs for name, needs in graph.items() if name not in leaves}
    assert not graph, f"these files import each other: {sorted(graph)}"


@every_source
def test_engine_knows_no_cluster(source: Source) -> None:
    if source.name.startswith("engine"):
        names = {item.name.split(".")[0] for item in source.imports}
        assert not names & {"cluster", "ray"}


@every_source
def test_pure_files_do_no_input_or_output(source: Source) -> None:
    if source.name not in PURE:
        return
    for item in source.imports:
        banned = layer_of(item.name) == "engine.storage" if item.ours else item.name in INPUT_OUTPUT | {"ray"}
        assert not banned, f"{source.name}:{item.line} imports {item.name}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "print", "input"), f"{source.name}:{node.lineno} calls {node.func.id}"


@every_source
def test_heavy_libraries_are_imported_late(source: Source) -> None:
    if source.name in MAY_BE_HEAVY:
        return
    heavy = [item for item in source.imports if item.at_import_time and not item.ours and item.name in HEAVY]
    assert not heavy, f"{source.name} imports {heavy[0].name} at line {heavy[0].line} when it is itself imported"


def test_a_merge_worker_loads_no_heavy_library() -> None:
    """The same by running it, so that an import by way of another library is seen too."""
    modules = [s.name for s in SOURCES if s.name.startswith("engine") and s.name not in MAY_BE_HEAVY]
    script = "import importlib, sys\n"
    script += "".join(f"importlib.import_module('anabranch.{name}')\n" for name in modules)
    script += f"print(*sorted({HEAVY | {'ray'}!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from .errors import InputError", {"engine.errors"}),
        ("from . import header", {"engine.header"}),
        ("from ..cluster.cli import main", {"cluster.cli"}),
        ("from anabranch.engine import plan", {"engine.plan"}),
        ("import anabranch.engine.output.verify", {"engine.verify"}),
        ("def f():\n    from .verify import check", {"engine.verify"}),
    ],
)
def test_imports_are_found_however_they_are_written(text: str, expected: set[str]) -> None:
    known = {
        "engine",
        "engine.errors",
        "engine.header",
        "engine.plan",
        "engine.verify",
        "cluster",
        "cluster.cli",
    }
    assert {item.name for item in imports_of(ast.parse(text), "engine", known) if item.ours} == expected
