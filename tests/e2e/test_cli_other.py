"""survey, verify, gc, the trace of a merge, and what the command imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

import anabranch as package
from anabranch.engine.methods.tadrop import budget_densities

from ..merging import load_output
from .conftest import Command, Workplace

DAY = 24 * 3600


def in_new_process(script: str, *arguments: object) -> str:
    command = [sys.executable, "-c", script, *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- imports -----------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    """Half a second is the promise; what would break it is an import."""
    script = (
        "import sys\nfrom anabranch.cluster.cli import cli\n"
        "try: cli(['--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "heavy = {'accelerate', 'numba', 'numpy', 'pyarrow', 'pydantic', 'ray', 'rich', 'torch', 'yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    assert "Merge fine-tuned checkpoints" in in_new_process(script)


@pytest.mark.parametrize("command", ["plan", "merge", "survey", "verify", "compare", "doctor", "gc", "demo"])
def test_every_command_has_help(anabranch: Command, command: str) -> None:
    result = anabranch(command, "--help")
    assert result.exit_code == 0
    assert "--debug" in result.stdout


def test_a_merge_imports_no_model_library(workplace: Workplace) -> None:
    script = (
        "import sys, anabranch\nreport = anabranch.merge(sys.argv[1], sys.argv[2])\n"
        "assert report.outcome.manifest.merged_tensors == 20\n"
        "print(*sorted({'accelerate', 'ray', 'torch', 'transformers', 'sklearn'} & set(sys.modules)))"
    )
    assert in_new_process(script, workplace.recipe_path, workplace.out).strip() == ""


def test_a_merge_imports_no_more_than_it_needs(workplace: Workplace) -> None:
    """Starting takes most of a small merge: what is for a terminal, a network or a search stays out of it."""
    script = (
        "import sys\nfrom anabranch.cluster.cli import cli\n"
        "try: cli(['merge', *sys.argv[1:]])\nexcept SystemExit as end: assert end.code == 0\n"
        "heavy = {'aiohttp', 'boto3', 'botocore', 'fsspec', 'httpx', 'huggingface_hub', 'numba', 'optuna', 'pandas', "
        "'ray', 'requests', 's3fs', 'safetensors', 'scipy', 'torch', 'transformers', 'rich.console', 'rich.progress'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    in_new_process(script, workplace.recipe_path, workplace.out)  # compiles kernels where nobody has yet
    found = in_new_process(script, workplace.recipe_path, workplace.folder / "again").splitlines()
    assert found[-1] == "", found


def test_the_package_offers_the_commands_as_functions(workplace: Workplace) -> None:
    report = package.plan(workplace.recipe_path, workplace.out)
    assert "20 merged, 1 copied" in str(report)
    merged = package.merge(workplace.recipe_path, workplace.out)
    assert merged.outcome.manifest.plan_id == report.plan.plan_id
    assert package.verify(workplace.out).problems == ()
    assert package.survey(workplace.recipe_path).table.num_rows == 2 * 20
    with pytest.raises(AttributeError):
        package.nonsense  # noqa: B018


# -- trace -------------------------------------------------------------------------------------------------------------


def test_profile_writes_a_trace_with_a_row_per_thread(anabranch: Command, workplace: Workplace) -> None:
    trace = workplace.folder / "trace.json"
    result = anabranch("merge", workplace.recipe_path, workplace.out, "--workers", 2, "--profile", trace, "--json")
    assert result.exit_code == 0, result.stderr
    events = json.loads(trace.read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    spans = [event for event in events if event["ph"] == "X"]
    assert {"read", "fold", "hash", "write", "publish"} <= {event["name"] for event in spans}
    assert all(names[event["tid"]].startswith("fold") for event in spans if event["name"] == "fold")
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in spans)
    phases = json.loads(result.stdout)["phases"]
    stages = sorted((e["ts"], e["ts"] + e["dur"], e["name"]) for e in spans if names[e["tid"]] == "stages")
    assert [name for _, _, name in stages] == ["start", "merge", "commit"]
    assert all(abs(before[1] - after[0]) < 1 for before, after in pairwise(stages))  # microseconds: no gap between
    work = [event for event in spans if event["name"] in ("read", "fold", "hash", "write")]
    merge = stages[1]
    assert all(merge[0] <= event["ts"] and event["ts"] + event["dur"] <= merge[1] + 1 for event in work)
    for event in events:  # what the viewers ask for
        assert set(event) >= {"ph", "name", "pid", "tid", "args"}
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
    for phase in ("read", "fold", "write"):
        assert sum(event["args"]["bytes"] for event in spans if event["name"] == phase) == phases[phase]["bytes"]


def test_stages_explain_the_time_from_the_start_of_the_process(anabranch: Command, workplace: Workplace) -> None:
    report = json.loads(anabranch("merge", workplace.recipe_path, workplace.out, "--json").stdout)
    assert sum(report["stages"].values()) == pytest.approx(report["seconds"], abs=0.01)
    assert report["stages"]["start"] > 0.1  # an interpreter and its libraries
    assert set(report["busy"]) == {"read", "fold", "emit", "publish"}


def test_a_profile_that_cannot_be_written_is_refused_first(anabranch: Command, workplace: Workplace) -> None:
    missing = workplace.folder / "no" / "trace.json"
    assert anabranch("merge", workplace.recipe_path, workplace.out, "--profile", missing).exit_code == 2
    assert not workplace.out.exists()


# -- survey ------------------------------------------------------------------------------------------------------------


def test_survey_writes_the_statistics_of_every_task_vector(
    anabranch: Command, workplace: Workplace, llamas: Path
) -> None:
    recipe = workplace.write(parameters={"density": {"tadrop": {"mean": 0.3, "spread": 0.1}}, "block": 32})
    file = workplace.folder / "tables" / "survey.parquet"
    result = anabranch("survey", recipe, "--out", file)
    assert result.exit_code == 0, result.stderr
    assert "40 rows" in result.stdout
    assert "20 tensors, 0 of them unchanged" in result.stdout
    rows = pyarrow.parquet.read_table(file).to_pylist()
    base, tuned = load_output(llamas / "base"), load_output(llamas / "model1")
    mine = [row for row in rows if row["model"] == 1]
    assert sorted(row["tensor"] for row in mine) == sorted(name for name in base if "embed" not in name)
    for row in mine:
        t = (tuned[row["tensor"]].float() - base[row["tensor"]].float()).abs().double().numpy().ravel()
        assert (row["numel"], row["zeros"]) == (t.size, int((t == 0).sum()))
        assert row["l1"] == pytest.approx(t.sum(), rel=1e-12)
        assert row["l2"] == pytest.approx(np.sqrt((t * t).sum()), rel=1e-12)
        assert row["participation"] == pytest.approx(t.sum() ** 2 / (t.size * (t * t).sum()), rel=1e-12)
        assert row["kurtosis"] == pytest.approx((t * t).mean() ** 2 / (t**4).mean(), rel=1e-9)
        assert row["median"] in t
        assert row["high"] in t
        assert row["quantile"] == pytest.approx(row["median"] / row["high"])
    numel, u = [row["numel"] for row in mine], [row["participation"] for row in mine]
    assert [row["density"] for row in mine] == pytest.approx(budget_densities(u, numel, 0.3, 0.1))


def test_survey_gives_numbers_and_local_densities_too(anabranch: Command, workplace: Workplace) -> None:
    density = [{"filter": "mlp", "value": 0.125}, {"value": {"tadrop": {"statistic": "kurtosis"}}}]
    recipe = workplace.write(parameters={"density": density, "block": 32})
    file = workplace.folder / "survey.parquet"
    report = json.loads(anabranch("survey", recipe, "--out", file, "--json").stdout)
    assert report["rows"] == 40
    for row in pyarrow.parquet.read_table(file).to_pylist():
        expected = 0.125 if "mlp" in row["tensor"] else 1 - min(row["kurtosis"], 0.99)
        assert row["density"] == pytest.approx(expected)


def test_survey_into_a_folder_is_refused_before_it_is_taken(anabranch: Command, workplace: Workplace) -> None:
    for out in (workplace.folder, f"{workplace.folder}/new/"):
        result = anabranch("survey", workplace.recipe_path, "--out", out)
        assert result.exit_code == 2 and "expected the name of a file" in result.stderr
        assert "survey part" not in result.stderr


def test_survey_of_a_method_without_task_vectors_is_refused(anabranch: Command, workplace: Workplace) -> None:
    recipe = workplace.write(merge_method="linear", parameters={}, base_model=None)
    result = anabranch("survey", recipe, "--out", workplace.folder / "survey.parquet")
    assert result.exit_code == 2
    assert "nothing to survey" in result.stderr


# -- verify ------------------------------------------------------------------------------------------------------------


def test_a_changed_byte_is_one_line_and_exit_4(anabranch: Command, workplace: Workplace) -> None:
    assert anabranch("merge", workplace.recipe_path, workplace.out).exit_code == 0
    shard = workplace.out / "model-00002-of-00004.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    result = anabranch("verify", workplace.out)
    assert result.exit_code == 4
    assert len(result.stdout.splitlines()) == 1
    assert result.stdout.startswith(f"{shard.name}: damaged: its SHA-256 is ")
    as_json = anabranch("verify", workplace.out, "--json")
    assert as_json.exit_code == 4
    report = json.loads(as_json.stdout)
    assert report["outcome"] == "damaged"
    assert [problem["file"] for problem in report["problems"]] == [shard.name]


def test_an_unfinished_output_is_exit_4(anabranch: Command, workplace: Workplace) -> None:
    assert anabranch("merge", workplace.recipe_path, workplace.out).exit_code == 0
    (workplace.out / "anabranch.manifest.json").unlink()
    result = anabranch("verify", workplace.out)
    assert result.exit_code == 4
    assert "is not finished" in result.stderr
    elsewhere = anabranch("verify", workplace.out.parent / "elsewhere")
    assert elsewhere.exit_code == 4
    assert "elsewhere is not finished: there are no files\n  check the path" in elsewhere.stderr


@pytest.mark.slow
def test_verify_loads_the_output_with_accelerate(anabranch: Command, workplace: Workplace) -> None:
    assert anabranch("merge", workplace.recipe_path, workplace.out).exit_code == 0
    result = anabranch("verify", workplace.out, "--load")
    assert result.exit_code == 0, result.output
    assert "LlamaForCausalLM loads all 21 tensors" in result.stdout


# -- gc ----------------------------------------------------------------------------------------------------------------


def test_gc_lists_and_removes_only_old_temporaries_of_this_output(anabranch: Command, workplace: Workplace) -> None:
    assert anabranch("merge", workplace.recipe_path, workplace.out).exit_code == 0
    shard = "model-00002-of-00004.safetensors"
    old = workplace.out / f".anabranch-{shard}-deadbeef0123.0badcafe.tmp"
    young = workplace.out / f".anabranch-{shard}-deadbeef4567.0badcafe.tmp"
    foreign = workplace.out / ".anabranch-thesis.txt-deadbeef4567.0badcafe.tmp"
    for path in (old, young, foreign):
        path.write_bytes(b"12345")
    for path in (old, foreign):
        os.utime(path, (time.time() - 2 * DAY,) * 2)
    listed = anabranch("gc", workplace.out)
    assert listed.exit_code == 0, listed.output
    assert listed.stdout.splitlines()[0] == f"found {old.name}: 5 bytes, 48 hours old"
    assert "--yes" in listed.stdout
    assert old.exists()
    removed = json.loads(anabranch("gc", workplace.out, "--yes", "--json").stdout)
    assert [row["token"] for row in removed["leftovers"]] == [old.name]
    assert not old.exists()
    assert young.exists()
    assert foreign.exists()
    assert "nothing is left over" in anabranch("gc", workplace.out).stdout
    assert anabranch("verify", workplace.out).exit_code == 0


def test_gc_of_a_folder_that_nobody_claimed_finds_nothing(anabranch: Command, tmp_path: Path) -> None:
    result = anabranch("gc", tmp_path)
    assert result.exit_code == 0
    assert "nothing is left over" in result.stdout


def test_the_kernels_of_both_kinds_agree_from_the_command_line(
    anabranch: Command, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The torch kernels on the CPU stand in for a CUDA device, where there is none."""
    from anabranch.engine.kernels.torch.reference import TorchKernels
    from anabranch.engine.run import commands

    assert anabranch("merge", workplace.recipe_path, workplace.out).exit_code == 0
    if not torch.cuda.is_available():
        monkeypatch.setattr(commands, "make_kernels", lambda _: TorchKernels("cpu"))
    other = workplace.folder / "other"
    result = anabranch("merge", workplace.recipe_path, other, "--device", "cuda")
    assert result.exit_code == 0, result.stderr
    assert workplace.files(other) == workplace.files()
