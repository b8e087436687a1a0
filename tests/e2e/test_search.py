"""`anabranch search` with real merges and real evaluation commands, on models of a few hundred numbers."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet
import pytest
import torch
import yaml

from ..merging import load_output, write_checkpoint, write_recipe
from .conftest import Command

EVALUATE = """
import os, struct, sys, time

model, log = sys.argv[1:3]
with open(log, "a") as file:
    file.write(os.path.basename(model) + " begins\\n")
with open(model + "/model.safetensors", "rb") as file:
    a, b, _, _ = struct.unpack("<4f", file.read()[-16:])
time.sleep(float(os.environ.get("EVALUATION_SECONDS", "0")))
print("looked at", model)
print('{"first": %r, "second": %r}' % (-(a - 0.7) ** 2, -(b - 1.3) ** 2))
"""
"""The merge has w = (weight of model 0, weight of model 1): the best pair is (0.7, 1.3)."""
BEST = [0.7, 1.3]


@dataclass
class Place:
    """A folder with two models, a recipe that searches their weights, and a command that knows the best."""

    folder: Path
    recipe: dict[str, Any]

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def evaluated(self) -> list[str]:
        """Names of the models at which the command has looked, in order."""
        log = self.folder / "log"
        return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []

    def write(self, **changes: Any) -> Path:
        return write_recipe(self.folder / "recipe.yml", self.recipe | changes)

    def script(self, text: str) -> str:
        path = self.folder / "evaluate.py"
        path.write_text(text)
        return f"{sys.executable} -I -S {path} {{model}} {self.folder / 'log'}"

    def arguments(self, *more: object, out: Path | None = None) -> list[str]:
        """Of `anabranch search`."""
        evaluate = self.script(EVALUATE)
        words = ["search", self.folder / "recipe.yml", out or self.out, "--evaluate", evaluate, "--workers", 1, *more]
        return [str(word) for word in words]

    def rows(self, out: Path | None = None) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table((out or self.out) / "trials.parquet").to_pylist()
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def weight(low: float, high: float, step: float | None = None) -> dict[str, Any]:
    return {"weight": {"search": {"from": low, "to": high} | ({"step": step} if step else {})}}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    write_checkpoint(tmp_path / "base", {"w": torch.zeros(4)})
    for i in range(2):
        write_checkpoint(tmp_path / f"m{i}", {"w": torch.eye(4)[i]})
    models = [{"model": f"m{i}", "parameters": weight(0.1, 2.0, 0.1)} for i in range(2)]
    found = Place(tmp_path, {"merge_method": "task_arithmetic", "base_model": "base", "models": models})
    found.write()
    return found


@pytest.mark.parametrize(
    ("options", "step"),
    [
        (["--sampler", "cmaes", "--trials", 18, "--together", 6, "--evaluators", 2], 0.2),
        pytest.param(["--sampler", "cmaes", "--trials", 36, "--together", 6], 0.1, marks=pytest.mark.slow),
        pytest.param(["--sampler", "tpe", "--trials", 60, "--together", 3], 0.1, marks=pytest.mark.slow),
    ],
)
def test_a_planted_best_pair_is_found_within_one_step(
    anabranch: Command, place: Place, options: list[object], step: float
) -> None:
    place.write(models=[{"model": f"m{i}", "parameters": weight(0.1, 1.9, step)} for i in range(2)])
    found = anabranch(*place.arguments(*options, "--seed", 3, "--json"))
    assert found.exit_code == 0, found.output
    best = list(json.loads(found.stdout)["best"]["parameters"].values())
    assert best == pytest.approx(BEST, abs=step + 0.01)
    recipe = yaml.safe_load((place.out / "best.yml").read_text())
    assert [entry["parameters"]["weight"] for entry in recipe["models"]] == best
    assert place.rows()[0]["state"] == "finished"


def test_a_grid_tries_every_recipe_once_and_the_best_makes_the_same_bytes_again(
    anabranch: Command, place: Place
) -> None:
    models = [{"model": f"m{i}", "parameters": weight(0.6, 1.4, 0.4)} for i in range(2)]
    place.write(models=models)
    found = anabranch(*place.arguments("--sampler", "grid", "--together", 5, "--keep", 2, "--evaluators", 2))
    assert found.exit_code == 0, found.output
    assert len(place.rows()) == 9
    assert sorted(place.evaluated) == [f"{i:05d}" for i in range(9)]
    assert "9 of 9 trials" in found.stderr
    assert "models[0].parameters.weight=0.6, models[1].parameters.weight=1.4" in found.stdout
    page = place.out / "search.html"
    assert f"pictures: {page}" in found.stdout
    assert all(f"<section id={name}" in page.read_text() for name in ("history", "importance", "slices"))
    kept = sorted(path.name for path in (place.out / "models").iterdir())
    assert len(kept) == 2
    again = anabranch("merge", place.out / "best.yml", place.folder / "again")
    assert again.exit_code == 0, again.output
    [best] = [
        name for name in kept if load_output(place.out / "models" / name)["w"].tolist()[:2] == pytest.approx([0.6, 1.4])
    ]
    for name in ("model.safetensors", "config.json", "anabranch.manifest.json"):
        assert (place.folder / "again" / name).read_bytes() == (place.out / "models" / best / name).read_bytes()
    assert anabranch("verify", place.out / "models" / best).exit_code == 0


def test_the_same_seed_gives_the_same_trials_and_a_finished_search_does_nothing(
    anabranch: Command, place: Place
) -> None:
    options = ["--trials", 6, "--together", 3, "--seed", 5]
    for out in ("one", "two"):
        assert anabranch(*place.arguments(*options, out=place.folder / out)).exit_code == 0
    assert place.rows(place.folder / "one") == place.rows(place.folder / "two")
    before = len(place.evaluated)
    assert anabranch(*place.arguments(*options, out=place.folder / "one")).exit_code == 0
    assert len(place.evaluated) == before
    other = anabranch(*place.arguments("--trials", 6, "--together", 3, "--seed", 6, out=place.folder / "one"))
    assert other.exit_code == 5 and "holds another search: its seed was 5, now it is 6" in other.stderr


@pytest.mark.faults
@pytest.mark.parametrize(
    ("sampler", "trials", "least_kills"),
    [
        ("tpe", 4, 1),
        pytest.param("tpe", 16, 3, marks=pytest.mark.slow),
        pytest.param("cmaes", 12, 3, marks=pytest.mark.slow),
    ],
)
def test_a_killed_search_goes_on_with_the_same_trials_and_evaluates_none_again(
    anabranch: Command, place: Place, sampler: str, trials: int, least_kills: int
) -> None:
    options = ["--sampler", sampler, "--trials", trials, "--together", 4, "--evaluators", 2]
    command = [sys.executable, "-m", "anabranch.cluster.cli"]
    whole = anabranch(*place.arguments(*options, out=place.folder / "whole"))
    assert whole.exit_code == 0, whole.output
    (place.folder / "log").unlink()
    draws, kills = random.Random(11), 0
    environment = os.environ | {"EVALUATION_SECONDS": "0.1"}
    finished: list[str] = []
    for _ in range(30):
        known = len(place.evaluated)
        process = subprocess.Popen([*command, *place.arguments(*options)], env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(place.evaluated) == known:
            time.sleep(0.02)
        try:
            process.wait(draws.uniform(0.0, 0.5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            time.sleep(0.3)  # evaluations that outlive the search end by themselves
        begun = place.evaluated[known:]
        assert not {*begun} & {*finished}, "a finished trial was evaluated again"
        finished = finished_trials(place.out)
        if process.returncode == 0:
            break
    assert kills >= least_kills
    assert place.rows() == place.rows(place.folder / "whole")


def finished_trials(out: Path) -> list[str]:
    """Names of the models of trials that have an outcome, by the journal."""
    backend = optuna.storages.journal.JournalFileBackend(str(out / "search.journal"))
    with open(out / "search.journal", "rb") as file:
        if not file.read().endswith(b"\n"):
            return []
    study = optuna.load_study(study_name="anabranch", storage=optuna.storages.JournalStorage(backend))
    return [f"{trial.number:05d}" for trial in study.trials if "outcome" in trial.user_attrs]


def test_a_second_search_in_the_same_place_is_refused(anabranch: Command, place: Place) -> None:
    place.out.mkdir()
    with (place.out / "search.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = anabranch(*place.arguments())
    assert refused.exit_code == 5 and "another search is running here" in refused.stderr
    assert place.evaluated == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("print('what'); sys.exit(3)", "ended with exit code 3\n    what"),
        ("time.sleep(60)", "took longer than 0.5 s"),
        ("print('fine')", 'printed no scores, expected a JSON object such as {"task": 0.5} as its last line\n    fine'),
        ("print('{\"a\": NaN}')", "gave nan as the score of a, expected a finite number"),
        ("print('{\"a\": true}')", "gave True as the score of a"),
        ("print('{\"b\": 1}')", "gave scores for b, expected a as in earlier trials"),
    ],
)
def test_a_trial_whose_evaluation_fails_is_left_out(anabranch: Command, place: Place, body: str, said: str) -> None:
    place.write(models=[{"model": "m0", "parameters": weight(1.0, 1.2, 0.1)}, {"model": "m1"}])
    evaluate = place.script(
        f"import sys, time\nif sys.argv[1].endswith('00001'):\n    {body}\nelse:\n    print('{{\"a\": 1}}')\n"
    )
    command = ["search", place.folder / "recipe.yml", place.out, "--evaluate", evaluate, "--sampler", "grid"]
    found = anabranch(*command, "--timeout", 0.5 if "sleep" in body else 30, "--workers", 1)
    assert found.exit_code == 0, found.output
    assert f"trial 1 failed: {said}" in found.stdout
    assert [row["state"] for row in place.rows()] == ["finished", "failed", "finished"]
    assert said in place.rows()[1]["failure"]


def test_failures_end_a_search_and_more_of_them_allowed_let_it_go_on(anabranch: Command, place: Place) -> None:
    evaluate = place.script("import sys\nif '0000' in sys.argv[1]: sys.exit(1)\nprint('{\"a\": 1}')")
    command = ["search", place.folder / "recipe.yml", place.out, "--evaluate", evaluate, "--trials", 12]
    ended = anabranch(*command, "--max-failures", 2)
    assert ended.exit_code == 3 and "3 trials failed" in ended.stderr
    assert len(place.rows()) == 3
    assert anabranch(*command, "--max-failures", 10).exit_code == 0
    assert len(place.rows()) == 12


def test_a_recipe_that_overflows_is_a_failed_trial(anabranch: Command, place: Place) -> None:
    place.write(
        out_dtype="float16",
        models=[{"model": "m0", "parameters": {"weight": {"search": {"choice": [1, 1e9]}}}}, {"model": "m1"}],
    )
    found = anabranch(*place.arguments("--sampler", "grid", "--together", 2))
    assert found.exit_code == 0, found.output
    assert [row["state"] for row in place.rows()] == ["finished", "failed"]


def test_several_objectives_print_the_trials_that_no_other_one_beats(anabranch: Command, place: Place) -> None:
    options = ["--sampler", "grid", "--objective", "task:first", "--objective", "task:second", "--json"]
    place.write(
        models=[{"model": f"m{i}", "parameters": {"weight": {"search": {"choice": [0.7, 1.3]}}}} for i in (0, 1)]
    )
    found = anabranch(*place.arguments(*options))
    assert found.exit_code == 0, found.output
    assert [list(row["parameters"].values()) for row in json.loads(found.stdout)["pareto"]] == [[0.7, 1.3]]


def test_the_search_of_cabs_plus_begins_at_one_and_never_falls_behind_the_reference(
    anabranch: Command, place: Place
) -> None:
    reference = [{"model": f"m{i}", "parameters": {"weight": 1.0}} for i in range(2)]
    write_recipe(place.folder / "reference.yml", place.recipe | {"models": reference})
    place.write(models=[{"model": f"m{i}", "parameters": weight(0.1, 2.0)} for i in range(2)])
    options = ["--preset", "cabs+", "--reference", place.folder / "reference.yml", "--trials", 12, "--json"]
    found = anabranch(*place.arguments(*options))
    assert found.exit_code == 0, found.output
    assert place.evaluated[0] == "reference"
    rows = place.rows()
    first = [row[f"models[{i}].parameters.weight"] for row in rows[:6] for i in range(2)]
    assert all(0.7 < number < 1.3 for number in first)
    assert json.loads(found.stdout)["best"]["objectives"]["asymmetric"] > 0
    assert "reference" not in [path.name for path in (place.out / "models").iterdir()]


def test_a_search_keeps_no_more_merges_than_it_says(anabranch: Command, place: Place) -> None:
    evaluate = place.script(
        "import os, sys\nprint(len(os.listdir(os.path.dirname(sys.argv[1]))))\n"
        "print('{\"a\": %d}' % int(sys.argv[1][-5:]))"
    )
    command = ["search", place.folder / "recipe.yml", place.out, "--evaluate", evaluate, "--trials", 9]
    assert anabranch(*command, "--together", 3, "--keep", 2, "--sampler", "random").exit_code == 0
    counts = [int(path.read_text().splitlines()[0]) for path in sorted((place.out / "logs").glob("*.out"))]
    assert max(counts) == 5


def test_plan_shows_the_space_and_what_a_trial_costs(anabranch: Command, place: Place) -> None:
    planned = anabranch("plan", place.folder / "recipe.yml", place.out)
    assert planned.exit_code == 0, planned.output
    assert "400 recipes" in planned.stdout
    assert "models[0].parameters.weight: 0.1 to 2.0 in steps of 0.1" in planned.stdout
    assert "trial       reads 48 bytes" in planned.stdout
    assert json.loads(anabranch("plan", place.folder / "recipe.yml", place.out, "--json").stdout)["recipes"] == 400
    refused = anabranch("merge", place.folder / "recipe.yml", place.out)
    assert refused.exit_code == 2 and "use `anabranch search RECIPE OUT --evaluate COMMAND`" in refused.stderr
    assert not place.out.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--objective", "best"], "expected mean, min, task:NAME"),
        (["--objective", "asymmetric"], "name it with --reference RECIPE"),
        (["--preset", "cabs+", "--sampler", "tpe"], "--preset cabs+ decides"),
        (["--sampler", "cmaes", "--objective", "min", "--objective", "mean"], "takes one objective"),
        (["--evaluate", "true"], "expected {model} where the path"),
        (["--evaluate", "'"], "No closing quotation"),
        (["--evaluate-args", "--limit 3"], "goes with --evaluate lm-eval:TASKS"),
    ],
)
def test_options_that_make_no_sense(anabranch: Command, place: Place, options: list[str], said: str) -> None:
    refused = anabranch(*place.arguments(*options))
    assert refused.exit_code == 2 and said in refused.stderr
    assert not place.out.exists()


def test_a_search_that_the_disk_does_not_hold_is_refused_before_it_begins(anabranch: Command, place: Place) -> None:
    refused = anabranch(*place.arguments("--keep", 10**15))
    assert refused.exit_code == 6 and "a smaller --keep or --together" in refused.stderr
    assert not place.out.exists() and place.evaluated == []
