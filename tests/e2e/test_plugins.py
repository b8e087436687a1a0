"""A method in a user's own module: named in a recipe, merged by the real command, without a change to this tree."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anabranch.engine.methods import METHODS
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.recipe.parse import load_recipe

from ..merging import write_recipe
from .conftest import write_llamas

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
(MODULE,) = re.findall(r"^```python\n# my_methods.py\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
NAME = "my_methods:half_ties"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_llamas(tmp_path)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "my_methods.py").write_text(MODULE)
    return tmp_path


def recipe(place: Path, method: str = NAME, parameters: dict[str, Any] | None = None) -> Path:
    models = [{"model": str(place / f"model{i}"), "parameters": {"weight": 0.5 + i}} for i in range(2)]
    own = {"density": 0.25, "lambda": 0.8} if parameters is None else parameters
    whole = {"merge_method": method, "base_model": str(place / "base"), "models": models, "parameters": own}
    return write_recipe(place / "recipe.yml", whole)


def run(place: Path, *words: str, importable: bool = True) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), *([str(place / "lib")] if importable else [])])
    command = [sys.executable, "-m", "anabranch.cluster.cli", *words]
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def merge(place: Path, out: str, **options: Any) -> dict[str, Any]:
    done = run(place, "merge", str(recipe(place, **options)), out)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((place / out / "anabranch.manifest.json").read_bytes())
    return found


def shards(place: Path, out: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((place / out).glob("*.safetensors"))]


def test_a_method_of_ones_own_merges_like_ours(place: Path) -> None:
    """With all defaults it is ties; what it makes is verified where its module is not."""
    manifest = merge(place, "mine", parameters={"density": 0.25, "lambda": 0.8})
    merge(place, "ours", method="ties", parameters={"density": 0.25, "lambda": 0.8, "normalize": False})
    assert shards(place, "mine") == shards(place, "ours")
    told = manifest["recipe"]
    assert told["merge_method"] == NAME
    assert told["parameters"] == {"signs": "elected", "lambda": 0.8}
    assert [model["parameters"] for model in told["models"]] == [
        {"weight": 0.5, "density": 0.25},
        {"weight": 1.5, "density": 0.25},
    ]
    assert run(place, "verify", "mine", importable=False).returncode == 0
    merge(place, "sum", parameters={"density": 0.25, "signs": "all"})
    assert shards(place, "sum") != shards(place, "ours")


def test_an_entry_point_names_a_method(place: Path) -> None:
    info = place / "lib" / "my_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[anabranch.methods]\nhalf-ties = my_methods:half_ties\n")
    assert merge(place, "by-entry-point", method="half-ties")["recipe"]["merge_method"] == "half-ties"
    merge(place, "by-module")
    assert shards(place, "by-entry-point") == shards(place, "by-module")


def test_an_edited_method_is_another_plan(place: Path) -> None:
    first = merge(place, "first")
    lib = place / "lib" / "my_methods.py"
    lib.write_text(MODULE + "\n# a comment\n")
    assert merge(place, "again")["plan_id"] == first["plan_id"]
    lib.write_text(MODULE.replace('"ties" if signs', '"overlap_ties" if signs'))
    edited = merge(place, "edited")
    assert edited["recipe"] == first["recipe"] and edited["plan_id"] != first["plan_id"]


def test_workers_need_no_module_of_the_users(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(place / "lib"))
    plan = open_inputs(load_recipe(recipe(place)), place).plan
    (place / "plan.pickle").write_bytes(pickle.dumps(plan))
    code = (
        "import pickle, sys; plan = pickle.load(open('plan.pickle', 'rb'))\n"
        "print(plan.terms.method, plan.terms.has_base, plan.survey_kind == '', 'my_methods' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", code]
    said = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.split() == [NAME, "True", "True", "False"]


@pytest.mark.parametrize(
    ("method", "edit", "words"),
    [
        ("my_module:half_ties", "", "merge_method: my_module:half_ties cannot be imported (ModuleNotFoundError: No"),
        pytest.param(
            "my_methods:half",
            "",
            "my_methods:half cannot be imported (AttributeError: module 'my_methods' has no",
            marks=pytest.mark.slow,
        ),
        ("my_methods:Top", "", "my_methods:Top is no merge method but type; decorate the function with @merge_method"),
        (NAME, "raise KeyError('x')", "cannot be imported (KeyError: 'x'); put its folder on PYTHONPATH"),
        (NAME, "half_ties = merge_method()(lambda: None)", "its signature must say which stages it returns"),
        ("half_ties", "", "merge_method: unknown method 'half_ties'; supported: task_arithmetic, magnitude"),
    ],
)
def test_what_is_no_method_is_said_with_its_line(place: Path, method: str, edit: str, words: str) -> None:
    with (place / "lib" / "my_methods.py").open("a") as file:
        file.write(f"\n\n{edit}\n")
    done = run(place, "plan", str(recipe(place, method)), "out")
    assert done.returncode == 2
    assert "recipe.yml:1: merge_method: " in done.stderr and words in done.stderr


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (("Top(density)", "Blocks(density, 4)"), "and its signature says TaskVectorMerge, Top"),
        pytest.param(("weights=weight, ", ""), "which has no weights", marks=pytest.mark.slow),
        (("weights=weight", "weights=weight[:1]"), "whose weights are not one per model"),
        pytest.param(("weights=weight", "weights=list(weight)"), "unhashable type: 'list'", marks=pytest.mark.slow),
        (('consensus = "ties"', 'consensus = {}["x"]\n    consensus = "ties"'), "half_ties makes no stages for tensor"),
    ],
)
def test_what_a_method_may_not_return(place: Path, edit: tuple[str, str], words: str) -> None:
    assert edit[0] in MODULE
    text = MODULE.replace(*edit).replace("import Density", "import Blocks, Density")
    (place / "lib" / "my_methods.py").write_text(text)
    done = run(place, "plan", str(recipe(place)), "out")
    assert done.returncode == 2
    assert "recipe.yml:1: merge_method: my_methods:half_ties makes no stages for tensor" in done.stderr
    assert words in done.stderr


def test_parameters_are_checked_as_ours_are(place: Path) -> None:
    done = run(place, "plan", str(recipe(place, parameters={"sings": "all", "block": 3, "signs": "some"})), "out")
    assert done.returncode == 2
    taken = "weight, density, signs, lambda"
    assert f"parameters.sings: unknown parameter; {NAME} takes {taken}; did you mean 'signs'?" in done.stderr
    assert f"parameters.block: {NAME} takes no block; it takes {taken}" in done.stderr
    assert "parameters.signs: expected one of elected, all, got 'some'" in done.stderr
    done = run(place, "plan", str(recipe(place, parameters={})), "out")
    assert f"{NAME} needs a density for" in done.stderr


def test_no_method_of_ours_is_a_plug_in() -> None:
    assert all(method.function.__module__.startswith("anabranch.engine.methods.") for method in METHODS.values())
