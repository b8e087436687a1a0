"""What we call right, mergekit's own parser accepts too, and no method of mergekit is missing without a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..corpus.files import FILES
from ..corpus.test_corpus import MERGEKITS
from . import test_random
from .peer import Job, run_mergekit
from .recipes import CASES

pytestmark = pytest.mark.parity


def test_mergekit_accepts_what_we_accept(tmp_path: Path) -> None:
    right = [file for file in FILES if not file.refused_with]
    answers = run_mergekit([Job(file.path) for file in right], tmp_path).to_jobs
    refused = {file.path.stem: answer for file, answer in zip(right, answers, strict=True) if answer is not None}
    assert not refused


def test_every_method_of_mergekit_is_compared_or_refused_by_name(tmp_path: Path) -> None:
    theirs = set(run_mergekit([], tmp_path).methods)
    assert theirs == MERGEKITS
    compared = {case.data["merge_method"] for case in (*CASES, *test_random.CASES)}
    assert compared == theirs
