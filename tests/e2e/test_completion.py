"""Shells complete commands, options and recipe files, each asked in its own language."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ASK = {
    "bash": """eval "$(_ANABRANCH_COMPLETE=bash_source anabranch)"
COMP_WORDS=({words}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_anabranch_completion anabranch 2>/dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
""",
    "zsh": """_ANABRANCH_COMPLETE=zsh_source anabranch > source.zsh && zsh -n source.zsh
env COMP_WORDS="$(printf '%s\\n' {words})" COMP_CWORD={last} _ANABRANCH_COMPLETE=zsh_complete anabranch
""",
    "fish": """_ANABRANCH_COMPLETE=fish_source anabranch | source
complete -C '{line}'
""",
}


@pytest.fixture(params=ASK)
def shell(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    command = tmp_path / "bin" / "anabranch"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m anabranch.cluster.cli "$@"\n')
    command.chmod(0o755)
    work = tmp_path / "work"
    (work / "recipes" / "deep").mkdir(parents=True)
    for name in ("first.yml", "fish.yaml", "fine.txt", ".hidden.yml", "recipes/deep/only.yml"):
        (work / name).touch()
    return work


def completed(shell: str, folder: Path, *words: str) -> set[str]:
    quoted = " ".join(f"'{word}'" for word in ("anabranch", *words))
    script = ASK[shell].format(words=quoted, last=len(words), line=" ".join(("anabranch", *words)))
    path = f"{folder.parent / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(folder.parent)}
    done = subprocess.run(
        [shell, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {line.partition("\t")[0] for line in done.stdout.splitlines()}


def test_commands_and_options(shell: str, folder: Path) -> None:
    assert {"merge", "plan", "compare", "doctor"} <= completed(shell, folder, "")
    assert {"--memory"} == {word for word in completed(shell, folder, "merge", "--mem") if word.startswith("--")}
    assert {"cpu", "cuda"} <= completed(shell, folder, "merge", "--device", "c")


def test_recipe_files(shell: str, folder: Path) -> None:
    assert {"first.yml", "fish.yaml"} == completed(shell, folder, "merge", "fi") - {"plain", "_"}
    assert {"recipes/deep/only.yml"} == completed(shell, folder, "plan", "re") - {"plain", "_"}
    assert {"first.yml"} == completed(shell, folder, "doctor", "fir") - {"plain", "_"}
