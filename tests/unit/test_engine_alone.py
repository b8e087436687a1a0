"""One machine needs the engine alone: neither `import anabranch` nor the engine's tests load a file of cluster."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.sources import ROOT, imports_of, read_sources

from ..merging import write_checkpoint, write_recipe

STARTS_A_COMMAND_OR_RAY = ("cluster", "unit/cluster", "property/cluster", "e2e", "s3", "soak", "parity")
"""Folders of tests that may know the cluster."""

EVERYTHING = """
import sys
import anabranch
recipe, out = sys.argv[1:]
anabranch.plan(recipe, out)
anabranch.survey(recipe)
anabranch.merge(recipe, out, anabranch.Execution(workers=1))
anabranch.merge_all([recipe], out + "-all")
assert not anabranch.verify(out).problems
assert anabranch.compare(out, out).equal
print(*sorted(name for name in sys.modules if name.startswith("anabranch.cluster") or name in ("ray", "click")))
"""


def test_what_one_machine_needs_is_the_engine(tmp_path: Path) -> None:
    for name in ("base", "model"):
        write_checkpoint(tmp_path / name, {"a": torch.randn(64, 64).bfloat16()})
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / "model")}],
    }
    path = write_recipe(tmp_path / "recipe.yml", recipe)
    program = [sys.executable, "-c", EVERYTHING, str(path), str(tmp_path / "out")]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


FILES = {source.name for source in read_sources()}


def engine_tests() -> list[Path]:
    tests = ROOT / "tests"
    return [
        path
        for path in sorted(tests.rglob("*.py"))
        if not any(path.is_relative_to(tests / folder) for folder in STARTS_A_COMMAND_OR_RAY)
    ]


@pytest.mark.parametrize("path", engine_tests(), ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_of_the_engine_import_no_cluster(path: Path) -> None:
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [item for item in imports_of(tree, package, FILES) if item.name.split(".")[0] in ("cluster", "ray")]
    assert not found, f"{path.name}:{found[0].line} imports {found[0].name}"
