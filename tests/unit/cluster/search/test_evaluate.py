"""What an evaluation command says, and what lm-evaluation-harness writes."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from anabranch.cluster.search.evaluate import Evaluator, Failed, read_harness, read_scores
from anabranch.engine.errors import RecipeError


def test_scores_may_come_in_a_file(tmp_path: Path) -> None:
    script = "import sys; open(sys.argv[2], 'w').write('{\"a\": 1}'); print(sys.argv[1])"
    (tmp_path / "e.py").write_text(script)
    evaluator = Evaluator(f"{sys.executable} {tmp_path / 'e.py'} {{model}} {{scores}}", "", tmp_path, None)
    assert evaluator.run("0", Path("/m o d")).scores == {"a": 1.0}
    assert (tmp_path / "0.out").read_text() == "/m o d\n"


def test_scores_of_an_earlier_run_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "0.scores.json").write_text('{"a": 1}')
    evaluator = Evaluator("true {model} {scores}", "", tmp_path, None)
    assert "printed no scores" in evaluator.run("0", Path("m")).failure


def test_what_a_command_started_ends_with_it(tmp_path: Path) -> None:
    evaluator = Evaluator(f"sh -c 'sleep 60 & echo $! > {tmp_path}/child; wait; : {{model}}'", "", tmp_path, 0.3)
    assert evaluator.run("0", Path("m")).failure == "took longer than 0.3 s"
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _is_running(child):
        time.sleep(0.02)
    assert not _is_running(child)


def _is_running(process: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_command_that_is_not_there_fails_the_trial(tmp_path: Path) -> None:
    assert "cannot run /no/such" in Evaluator("/no/such {model}", "", tmp_path, None).run("0", Path("m")).failure


def test_a_stopped_evaluator_starts_nothing(tmp_path: Path) -> None:
    evaluator = Evaluator("touch {model}", "", tmp_path, None)
    evaluator.stop()
    assert evaluator.run("0", tmp_path / "m").failure == "the search was stopped"
    assert not os.path.exists(tmp_path / "m")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "7", "nothing", '{"a": "1"}', '{"a": null}', '{"a": Infinity}', '{"a": 1' + "0" * 400 + "}"],
)
def test_what_are_no_scores(text: str) -> None:
    with pytest.raises(Failed):
        read_scores(text, "as its last line")


def test_the_harness_is_a_command_with_its_tasks_and_further_arguments(tmp_path: Path) -> None:
    words = Evaluator("lm-eval:arc_easy,gsm8k", "--limit 200", tmp_path, None)._words
    assert words[1:] == [
        *("-m", "lm_eval", "--model", "hf", "--model_args", "pretrained={model}", "--tasks", "arc_easy,gsm8k"),
        *("--output_path", "{scores}", "--limit", "200"),
    ]
    with pytest.raises(RecipeError, match="expected names of tasks"):
        Evaluator("lm-eval:", "", tmp_path, None)


def test_results_of_the_harness_give_one_score_per_task(tmp_path: Path) -> None:
    folder = tmp_path / "model__name"
    folder.mkdir()
    results = {
        "arc_easy": {"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.6},
        "gsm8k": {"exact_match,flexible-extract": 0.4, "exact_match,strict-match": 0.3},
        "wiki": {"bits_per_byte,none": 0.9, "bits_per_byte_stderr,none": "N/A"},
    }
    (folder / "results_2026-01-01T00-00-00.json").write_text(json.dumps({"results": results}))
    assert read_harness(tmp_path) == {"arc_easy": 0.6, "gsm8k": 0.3, "wiki": 0.9}


@pytest.mark.parametrize("text", ["", "{}", '{"results": []}', '{"results": {"a": 7}}', '{"results": {"a": {}}}'])
def test_results_that_are_not_those_of_the_harness(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(Failed):
        read_harness(tmp_path)
