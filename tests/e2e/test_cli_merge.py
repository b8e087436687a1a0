"""The commands as a user runs them: plan, merge, again, verify, and every exit code on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anabranch import merge_all
from anabranch.engine.run import commands
from anabranch.engine.storage.local import LocalStore

from ..merging import load_output, write_checkpoint
from .conftest import Command, Workplace

SHARDS = 4


def test_plan_says_what_a_merge_would_do_and_writes_nothing(anabranch: Command, workplace: Workplace) -> None:
    result = anabranch("plan", workplace.recipe_path, workplace.out, "--workers", 2)
    assert result.exit_code == 0, result.stderr
    assert "20 merged, 1 copied" in result.stdout
    assert "excluded: model.embed_tokens.weight" in result.stdout
    assert "limit 2048 MiB" in result.stdout
    assert "roughly 1 s" in result.stdout
    assert not workplace.out.exists()


def test_plan_as_json_agrees_with_what_the_merge_then_does(anabranch: Command, workplace: Workplace) -> None:
    planned = json.loads(anabranch("plan", workplace.recipe_path, workplace.out, "--json").stdout)
    done = json.loads(anabranch("merge", workplace.recipe_path, workplace.out, "--json").stdout)
    assert planned["plan_id"] == done["plan_id"]
    assert planned["state"] == "new"
    assert (planned["merged_tensors"], done["merged_tensors"]) == (20, 20)
    assert planned["copied"] == {"excluded": ["model.embed_tokens.weight"]}
    assert planned["read_bytes"] == done["read_bytes"]
    assert planned["write_bytes"] == done["written_bytes"]
    assert [shard["name"] for shard in planned["shards"]] == sorted(f.name for f in workplace.out.glob("*.safetensors"))
    for shard in planned["shards"]:
        assert (workplace.out / shard["name"]).stat().st_size == shard["bytes"]
    assert done["peak_rss_bytes"] > 0
    assert done["phases"]["fold"]["bytes"] == planned["fold_bytes"]


def test_merge_then_again_then_verify(anabranch: Command, workplace: Workplace) -> None:
    first = anabranch("merge", workplace.recipe_path, workplace.out)
    assert first.exit_code == 0, first.stderr
    assert f"merged into {workplace.out}" in first.stdout
    assert "20 tensors merged, 1 copied" in first.stdout
    assert "25.0% kept" in first.stdout
    assert "fold" in first.stdout
    assert f"model-00001-of-0000{SHARDS}.safetensors done" in first.stderr
    before = workplace.files()
    second = anabranch("merge", workplace.recipe_path, workplace.out)
    assert second.exit_code == 0
    assert "already complete" in second.stdout
    assert workplace.files() == before
    verified = anabranch("verify", workplace.out)
    assert verified.exit_code == 0, verified.output
    assert "are what was written" in verified.stdout


def test_the_merged_values_are_those_of_the_recipe(anabranch: Command, workplace: Workplace, llamas: Path) -> None:
    recipe = workplace.write(merge_method="task_arithmetic", parameters={})
    assert anabranch("merge", recipe, workplace.out).exit_code == 0
    base, first, second = (load_output(llamas / name) for name in ("base", "model0", "model1"))
    merged = load_output(workplace.out)
    assert merged.keys() == base.keys()
    for name, tensor in merged.items():
        b, one, two = (source[name].float() for source in (base, first, second))
        expected = (b + ((one - b) * 1.0 + (two - b) * 0.5)).bfloat16() if "embed" not in name else base[name]
        assert torch.equal(tensor, expected), name


def test_nothing_about_the_execution_changes_a_byte(anabranch: Command, workplace: Workplace) -> None:
    assert anabranch("merge", workplace.recipe_path, workplace.out, "--workers", 1).exit_code == 0
    other = workplace.folder / "other"
    result = anabranch("merge", workplace.recipe_path, other, "--workers", 3, "--memory", "512MiB")
    assert result.exit_code == 0, result.stderr
    assert workplace.files(other) == workplace.files()


def test_a_shard_that_vanished_is_made_again(anabranch: Command, workplace: Workplace) -> None:
    assert anabranch("merge", workplace.recipe_path, workplace.out).exit_code == 0
    whole = workplace.files()
    (workplace.out / "anabranch.manifest.json").unlink()
    (workplace.out / f"model-00002-of-0000{SHARDS}.safetensors").unlink()
    planned = anabranch("plan", workplace.recipe_path, workplace.out)
    assert f"{SHARDS - 1} of {SHARDS} shards are there" in planned.stdout
    again = json.loads(anabranch("merge", workplace.recipe_path, workplace.out, "--json").stdout)
    assert (again["shards_merged"], again["shards_resumed"]) == (1, SHARDS - 1)
    assert workplace.files() == whole


@pytest.fixture
def several(workplace: Workplace) -> list[Path]:
    """Three recipes of one layout and one whose output is cut into other files."""
    lighter = [dict(entry, parameters={"weight": 0.1}) for entry in workplace.recipe["models"]]
    return [
        workplace.write("half.yml", parameters={"density": 0.5, "block": 32}),
        workplace.write("light.yml", models=lighter),
        workplace.write("large.yml", output={"shard_size": "1MB"}),
        workplace.recipe_path,
    ]


def test_several_recipes_go_into_folders_of_their_names_as_if_alone(
    anabranch: Command, workplace: Workplace, several: list[Path]
) -> None:
    planned = json.loads(anabranch("plan", *several, workplace.out, "--json").stdout)
    result = anabranch("merge", *several, workplace.out, "--json")
    assert result.exit_code == 0, result.stderr
    merges = json.loads(result.stdout)["merges"]
    assert [merge["out"] for merge in merges] == [str(workplace.out / recipe.stem) for recipe in several]
    together = [str(several[i]) for i in (0, 1, 3)]
    assert [reading["recipes"] for reading in planned["readings"]] == [together, [str(several[2])]]
    assert "cut into other files" in planned["readings"][1]["apart"]
    assert merges[0]["read_with"] == together[1:]
    assert merges[2]["read_with"] == []
    for reading in planned["readings"]:
        [read] = {merge["read_bytes"] for merge in merges if merge["recipe"] in reading["recipes"]}
        assert read == reading["read_bytes"] == reading["alone_bytes"] / len(reading["recipes"])
    for recipe, merge, plan in zip(several, merges, planned["plans"], strict=True):
        assert merge["written_bytes"] == plan["write_bytes"]
        alone = workplace.folder / f"alone-{recipe.stem}"
        assert anabranch("merge", recipe, alone).exit_code == 0
        assert workplace.files(workplace.out / recipe.stem) == workplace.files(alone)
        assert anabranch("verify", workplace.out / recipe.stem).exit_code == 0


def test_what_several_recipes_share_is_said_in_words(
    anabranch: Command, workplace: Workplace, several: list[Path]
) -> None:
    planned = anabranch("plan", *several, workplace.out)
    assert planned.exit_code == 0, planned.stderr
    together, alone = planned.stdout.splitlines()[-2:]
    assert together.startswith(f"read together: {several[0]}, {several[1]}, {several[3]}, ")
    assert " instead of " in together
    assert alone.startswith(f"read alone: {several[2]}, ")
    assert "`shard_size`" in alone
    assert not workplace.out.exists()
    merged = anabranch("merge", *several, workplace.out)
    assert merged.exit_code == 0, merged.stderr
    for recipe in several:
        assert f"merged into {workplace.out / recipe.stem}\n" in merged.stdout
    assert merged.stdout.count("limit 2048 MiB") == 2, "time and memory are said once for each reading"
    for line in (together, alone):
        assert line in merged.stdout
    again = anabranch("merge", *several, workplace.out)
    assert again.stdout.count("is already complete") == 4


def test_recipes_for_which_memory_is_too_small_are_read_in_turns(anabranch: Command, workplace: Workplace) -> None:
    recipes = [workplace.write(f"r{i}.yml", parameters={"density": i / 90, "block": 32}) for i in range(60)]
    command = ("plan", *recipes, workplace.out, "--json", "--workers", 2)
    assert len(json.loads(anabranch(*command).stdout)["readings"]) == 1
    readings = json.loads(anabranch(*command, "--memory", "512MiB").stdout)["readings"]
    assert len(readings) > 1
    assert "give more with --memory" in readings[1]["apart"]
    for reading in readings:
        assert reading["threads"] == 2
        assert reading["peak_memory_bytes"] <= 512 << 20


def test_several_recipes_from_python(workplace: Workplace, several: list[Path]) -> None:
    reports = merge_all(several, workplace.out)
    assert [report.out for report in reports] == [str(workplace.out / recipe.stem) for recipe in several]
    assert reports[0].beside == (str(several[1]), str(several[3]))
    again = merge_all(several[:1], workplace.out)
    assert [report.outcome.already_complete for report in again] == [True]


def test_recipes_of_one_name_are_refused(anabranch: Command, workplace: Workplace) -> None:
    other = workplace.folder / "elsewhere"
    workplace.write("elsewhere/recipe.yml")
    result = anabranch("merge", workplace.recipe_path, other / "recipe.yml", workplace.out)
    assert result.exit_code == 2
    assert "several recipes are called 'recipe'" in result.stderr


# -- ways to end badly -------------------------------------------------------------------------------------------------


def test_an_output_of_another_recipe_is_refused(anabranch: Command, workplace: Workplace) -> None:
    assert anabranch("merge", workplace.recipe_path, workplace.out).exit_code == 0
    before = workplace.files()
    other = workplace.write("other.yml", parameters={"density": 0.5, "block": 32})
    for command in ("plan", "merge"):
        result = anabranch(command, other, workplace.out)
        assert result.exit_code == 5, command
        assert result.stderr.startswith("error: ")
        assert "another plan" in result.stderr
    assert workplace.files() == before


def test_an_unfinished_output_of_another_recipe_is_refused(anabranch: Command, workplace: Workplace) -> None:
    assert anabranch("merge", workplace.recipe_path, workplace.out).exit_code == 0
    (workplace.out / "anabranch.manifest.json").unlink()
    other = workplace.write("other.yml", parameters={"density": 0.5, "block": 32})
    for command in ("plan", "merge"):
        result = anabranch(command, other, workplace.out)
        assert result.exit_code == 5, command
        assert "belongs to another plan" in result.stderr


def test_a_folder_with_other_files_is_refused(anabranch: Command, workplace: Workplace) -> None:
    workplace.out.mkdir()
    (workplace.out / "thesis.txt").write_text("mine")
    for command in ("plan", "merge"):
        result = anabranch(command, workplace.recipe_path, workplace.out)
        assert result.exit_code == 5, command
        assert "holds no plan" in result.stderr
    assert [path.name for path in workplace.out.iterdir()] == ["thesis.txt"]


def test_an_unknown_recipe_key_is_exit_2(anabranch: Command, workplace: Workplace) -> None:
    result = anabranch("merge", workplace.write("typo.yml", densty=0.3), workplace.out)
    assert result.exit_code == 2
    assert "densty" in result.stderr
    assert not workplace.out.exists()


@pytest.mark.parametrize(
    "arguments", [("merge", "recipe.yml"), ("plan", "a", "b", "--memory", "lots"), ("verify",), ("nonsense",)]
)
def test_wrong_usage_is_exit_2(anabranch: Command, arguments: tuple[str, ...]) -> None:
    assert anabranch(*arguments).exit_code == 2


@pytest.mark.parametrize("command", ["plan", "merge"])
@pytest.mark.parametrize("given", [(), ("r.yml",)])
def test_without_an_output_the_usage_says_what_is_expected(
    anabranch: Command, command: str, given: tuple[str, ...]
) -> None:
    result = anabranch(command, *given)
    assert result.exit_code == 2
    assert f"Expected a recipe and the place of the output: `anabranch {command} recipe.yml out/`" in result.stderr


def test_a_truncated_input_is_exit_3(anabranch: Command, workplace: Workplace, llamas: Path) -> None:
    damaged = workplace.folder / "damaged"
    shutil.copytree(llamas / "model1", damaged)
    shard = damaged / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    models = [workplace.recipe["models"][0], {"model": str(damaged), "parameters": {"weight": 1.0}}]
    result = anabranch("merge", workplace.write(models=models), workplace.out)
    assert result.exit_code == 3
    assert str(shard) in result.stderr
    assert "Traceback" not in result.stderr
    assert not workplace.out.exists()


def test_a_value_that_is_no_number_is_exit_3_and_nothing_looks_finished(
    anabranch: Command, workplace: Workplace, llamas: Path
) -> None:
    tensors = load_output(llamas / "model1")
    tensors["model.norm.weight"][3] = torch.nan
    write_checkpoint(workplace.folder / "nan", tensors)
    models = [workplace.recipe["models"][0], {"model": str(workplace.folder / "nan"), "parameters": {"weight": 1.0}}]
    result = anabranch("merge", workplace.write(models=models), workplace.out)
    assert result.exit_code == 3
    assert "model.norm.weight" in result.stderr
    assert anabranch("verify", workplace.out).exit_code == 4


def test_too_small_a_memory_limit_is_exit_6(anabranch: Command, workplace: Workplace) -> None:
    for command in ("plan", "merge"):
        result = anabranch(command, workplace.recipe_path, workplace.out, "--memory", "100MiB")
        assert result.exit_code == 6, command
        assert "the limit is 100 MiB" in result.stderr
        assert "--memory" in result.stderr
    assert not workplace.out.exists()


def test_too_small_a_disk_is_exit_6_before_anything_is_written(
    anabranch: Command, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalStore, "free_bytes", lambda self: 50_000)
    for command in ("plan", "merge"):
        result = anabranch(command, workplace.recipe_path, workplace.out)
        assert result.exit_code == 6, command
        assert "50000 are free" in result.stderr
    assert not workplace.out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_cuda_device_is_exit_6(anabranch: Command, workplace: Workplace) -> None:
    result = anabranch("merge", workplace.recipe_path, workplace.out, "--device", "cuda")
    assert result.exit_code == 6
    assert "CUDA" in result.stderr


@pytest.mark.parametrize(
    ("error", "exit_code", "text"),
    [
        (KeyboardInterrupt(), 130, "goes on where it stopped"),
        (MemoryError(), 6, "no memory left"),
        (FileNotFoundError(2, "gone", "/x/model.safetensors"), 3, "/x/model.safetensors: vanished"),
        (ZeroDivisionError("oops"), 1, "this is a bug in anabranch: ZeroDivisionError: oops"),
    ],
)
def test_every_other_end_has_its_exit_code_too(
    anabranch: Command,
    workplace: Workplace,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    exit_code: int,
    text: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(commands, "run", fail)
    result = anabranch("merge", workplace.recipe_path, workplace.out)
    assert result.exit_code == exit_code
    assert text in result.stderr
    assert "Traceback" not in result.stderr
    debug = anabranch("merge", workplace.recipe_path, workplace.out, "--debug")
    assert debug.exit_code == exit_code
    assert "Traceback" in debug.stderr


def test_json_also_says_what_went_wrong(anabranch: Command, workplace: Workplace) -> None:
    result = anabranch("merge", workplace.recipe_path, workplace.out, "--memory", "100MiB", "--json")
    problem = json.loads(result.stdout)
    assert (problem["outcome"], problem["exit_code"], result.exit_code) == ("failed", 6, 6)
    assert "the limit is 100 MiB" in problem["error"]


# -- interrupted -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_merge_says_so_and_goes_on(
    anabranch: Command, tmp_path: Path, workplace: Workplace, number: signal.Signals
) -> None:
    """The signal comes after the first shard of many; what the next run makes equals an undisturbed run."""
    generator = torch.Generator().manual_seed(1)
    for name in ("base", "model"):
        tensors = {f"t{i:03d}": torch.randn(64, 64, generator=generator) for i in range(150)}
        write_checkpoint(tmp_path / name, tensors)
    many = workplace.write(
        base_model=str(tmp_path / "base"),
        models=[{"model": str(tmp_path / "model"), "parameters": {"weight": 1.0}}],
        output={"shard_size": "16KB"},
    )
    command = [sys.executable, "-m", "anabranch.cluster.cli", "merge", str(many), str(workplace.out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if " done" in line:  # the first of 150 shards; all may be folded by then, but hardly any is durable
                process.send_signal(number)
                break
        rest = process.stderr.read()
        assert process.wait(60) == 130, rest
    assert "error: interrupted\n  the same command goes on where it stopped" in rest
    assert not (workplace.out / "anabranch.manifest.json").exists()
    assert not list(workplace.out.rglob("*.tmp"))
    resumed = json.loads(anabranch("merge", many, workplace.out, "--json").stdout)
    assert resumed["shards_resumed"] > 0
    assert resumed["shards_merged"] > 0
    assert anabranch("merge", many, tmp_path / "undisturbed").exit_code == 0
    assert workplace.files() == workplace.files(tmp_path / "undisturbed")


# -- compiling -------------------------------------------------------------------------------------------------------


def test_a_merge_that_compiles_kernels_says_so(tmp_path: Path, workplace: Workplace) -> None:
    """Once, on standard error; nothing when they come from files, and nothing beside JSON."""
    workplace.recipe = {"merge_method": "linear", "models": [{"model": str(tmp_path / "vector")}]}
    write_checkpoint(tmp_path / "vector", {"w": torch.ones(10)})
    recipe = workplace.write()

    def said(cache: str, out: str, *options: str) -> int:
        command = [sys.executable, "-m", "anabranch.cluster.cli", "merge", str(recipe), str(tmp_path / out), *options]
        # Of a processor for which this checkout has compiled nothing before.
        environment = os.environ | {"ANABRANCH_KERNELS": str(tmp_path / cache), "NUMBA_CPU_NAME": "x86-64-v3"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100)
        assert "compiling" not in done.stdout
        return done.stderr.count(f"{commands.COMPILING}\n")

    assert [said("one", "first"), said("one", "second"), said("two", "third", "--json")] == [1, 0, 0]
