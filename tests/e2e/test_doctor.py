"""The whole command: a machine that can merge, and merges that it cannot do."""

from __future__ import annotations

import json

import pytest

from .conftest import Command, Workplace


def test_a_machine_that_can_merge(anabranch: Command, workplace: Workplace) -> None:
    result = anabranch("doctor", workplace.write(), workplace.out, "--memory", "512MiB")
    assert result.exit_code == 0, result.output
    for what in ("versions", "cores and memory", "disk", "kernels", "GPU", "Ray", "S3", "this merge"):
        assert f" {what} " in result.output or f"\n{what}" in result.output, what
    assert not workplace.out.exists(), "it only looks"


@pytest.mark.parametrize(
    ("options", "keys", "words"),
    [
        (["--memory", "200MiB"], {}, "give more with --memory"),
        ([], {"merge_method": "tise"}, "unknown method"),
        ([], {"base_model": "/nowhere/at/all"}, "does not exist"),
    ],
)
def test_a_merge_that_could_not_run(
    anabranch: Command, workplace: Workplace, options: list[str], keys: dict[str, str], words: str
) -> None:
    result = anabranch("doctor", workplace.write(**keys), workplace.out, "--json", *options)
    assert result.exit_code == 6, result.output
    found = json.loads(result.output)
    assert found["outcome"] == "problems"
    [problem] = [each for each in found["findings"] if each["state"] == "problem"]
    assert problem["what"] == "this merge" and words in problem["text"] + problem["advice"]


def test_an_output_is_needed_with_a_recipe(anabranch: Command, workplace: Workplace) -> None:
    assert anabranch("doctor", workplace.write()).exit_code == 2
