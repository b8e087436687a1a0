"""Checkpoints for both tools, and every recipe of the selected tests merged by mergekit in one process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from ..merging import Tensors, load_output, merge
from .checkpoints import write_all
from .families import write_families
from .peer import Job, run_mergekit
from .recipes import Case


@dataclass(frozen=True)
class Peer:
    """What mergekit made of each recipe."""

    folder: Path
    """The checkpoints; recipes name them relative to it."""
    answers: dict[str, str | None]
    """By the name of a case: None, or mergekit's error."""

    def recipe(self, case: Case) -> Path:
        return self.folder / f"{case.file_name}.yml"

    def output(self, case: Case) -> Path:
        assert self.answers[case.name] is None, self.answers[case.name]
        return self.folder / "mergekit" / case.file_name

    def both(self, case: Case, out: Path) -> tuple[Tensors, Tensors]:
        """Merge a case into `out`; returns our tensors and mergekit's."""
        merge(self.recipe(case), out)
        return load_output(out), load_output(self.output(case))

    def refusal(self, case: Case) -> str:
        """What mergekit said instead of merging."""
        answer = self.answers[case.name]
        assert answer is not None
        return answer


@pytest.fixture(scope="session")
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Peer:
    folder = tmp_path_factory.mktemp("parity")
    write_all(folder)
    write_families(folder)
    chosen: dict[str, Case] = {}
    for item in request.session.items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        chosen |= {value.name: value for value in parameters.values() if isinstance(value, Case)}
    jobs = []
    for case in chosen.values():
        recipe = folder / f"{case.file_name}.yml"
        recipe.write_text(case.text, encoding="utf-8")
        jobs.append(Job(recipe, folder / "mergekit" / case.file_name, seed=11))
    return Peer(folder, dict(zip(chosen, run_mergekit(jobs, folder).to_jobs, strict=True)))
