"""The tutorial of docs/search.md does what it says."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

from ..merging import load_output, write_checkpoint, write_recipe
from .conftest import Command

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_commands_of_the_tutorial_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anabranch: Command) -> None:
    write_checkpoint(tmp_path / "models/base", {"w": torch.zeros(4)})
    for i, name in enumerate(("math", "code")):
        write_checkpoint(tmp_path / f"models/{name}", {"w": torch.eye(4)[i]})
    weight = {"weight": {"search": {"from": 0.2, "to": 2.0, "step": 0.1}}}
    models = [{"model": f"./models/{name}", "parameters": weight} for name in ("math", "code")]
    write_recipe(
        tmp_path / "recipe.yml", {"merge_method": "task_arithmetic", "base_model": "./models/base", "models": models}
    )
    (tmp_path / "score.py").write_text(block("python"))
    monkeypatch.chdir(tmp_path)
    planned = ""
    for line in block("sh").splitlines():
        words = [word.replace("python ", f"{sys.executable} ") for word in shlex.split(line)]
        assert words[0] == "anabranch"
        done = anabranch(*words[1:])
        assert done.exit_code == 0, done.output
        planned = planned or done.stdout
    assert pyarrow.parquet.read_table(tmp_path / "out/trials.parquet").num_rows == 12
    assert torch.equal(load_output(tmp_path / "best")["w"], load_output(next((tmp_path / "out/models").iterdir()))["w"])
    shown = block("text").splitlines()
    assert shown[0] == "$ anabranch plan recipe.yml out/"
    assert planned.splitlines()[:-1] == shown[1:-1]
