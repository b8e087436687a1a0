"""EMR-Merging from the command line: plan, merge, kill, resume, verify, and a task's model beside plain torch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import anabranch as package
from anabranch.engine.run.execution import Execution
from anabranch.engine.run.prepare import prepare, share_readings

from ..merging import load_output, write_recipe
from .conftest import Command, Workplace

TASKS = ("model0", "style")


@pytest.fixture
def emr(workplace: Workplace) -> Path:
    models = [{"model": workplace.recipe["models"][0]["model"]}]
    models.append({"model": workplace.recipe["models"][1]["model"], "name": "style"})
    recipe = workplace.recipe | {"merge_method": "emr", "models": models}
    del recipe["parameters"]
    return write_recipe(workplace.folder / "emr.yml", recipe)


def plain_task(workplace: Workplace, task: int) -> dict[str, torch.Tensor]:
    """The paper's formulas on whole tensors in fp32; the unified vector is rounded to bf16, as it is stored."""
    folders = [Path(workplace.recipe["base_model"]), *(Path(m["model"]) for m in workplace.recipe["models"])]
    base, *models = [{n: t for f in sorted(d.glob("*.safetensors")) for n, t in load_file(f).items()} for d in folders]
    merged = [name for name in base if "embed_tokens" not in name]
    vectors = [{name: model[name].float() - base[name].float() for name in merged} for model in models]
    unified = {}
    for name in merged:
        gamma = torch.where(sum(v[name] for v in vectors) > 0, 1.0, -1.0)
        unified[name] = gamma * torch.stack([(gamma * v[name]).clamp(min=0) for v in vectors]).amax(0)
    masks = {name: vectors[task][name] * unified[name] > 0 for name in merged}
    changed = sum(vectors[task][name].abs().double().sum() for name in merged)
    scale = changed / sum((masks[name] * unified[name]).abs().double().sum() for name in merged)
    made = {n: base[n].float() + scale.float() * (masks[n] * unified[n].bfloat16().float()) for n in merged}
    return {name: made[name].bfloat16() if name in made else tensor for name, tensor in base.items()}


def test_merge_verify_and_write_the_model_of_a_task(workplace: Workplace, emr: Path, anabranch: Command) -> None:
    planned = anabranch("plan", emr, workplace.out)
    assert planned.exit_code == 0, planned.output
    for name, what in (
        ("unified", "unified task vector"),
        ("model0", "masks of model 0"),
        ("style", "masks of model 1"),
    ):
        assert what in planned.output and f"{workplace.out}/{name}\n" in planned.output
    assert f"read together: {emr}, " in planned.output
    plans = json.loads(anabranch("plan", emr, workplace.out, "--json").output)["plans"]
    merged = anabranch("merge", emr, workplace.out, "--json")
    assert merged.exit_code == 0, merged.output
    for plan, report in zip(plans, json.loads(merged.output)["merges"], strict=True):
        assert plan["plan_id"] == report["plan_id"] and plan["out"] == report["out"]
        sizes = {path.name: path.stat().st_size for path in Path(plan["out"]).glob("*.safetensors")}
        assert sizes == {shard["name"]: shard["bytes"] for shard in plan["shards"]} and len(sizes) > 1
        verified = anabranch("verify", plan["out"])
        assert verified.exit_code == 0, verified.output
    for number, task in enumerate(TASKS):
        content = {"merge_method": "passthrough", "models": [{"model": f"{workplace.recipe['base_model']}+out/{task}"}]}
        recipe = write_recipe(workplace.folder / "task.yml", content)
        full = workplace.folder / f"full-{task}"
        assert anabranch("merge", recipe, full).exit_code == 0
        found, expected = load_output(full), plain_task(workplace, number)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        loaded = anabranch("verify", full, "--load")
        assert loaded.exit_code == 0 and "LlamaForCausalLM loads all" in loaded.output, loaded.output


def test_a_scale_beyond_fp32_stops_whatever_reads_the_masks(
    workplace: Workplace, emr: Path, anabranch: Command
) -> None:
    assert anabranch("merge", emr, workplace.out).exit_code == 0
    part = workplace.out / "style" / "anabranch.emr.json"
    part.write_text(json.dumps(json.loads(part.read_text()) | {"scale": 1e308}))
    task = f"{workplace.recipe['base_model']}+{workplace.out}/style"
    for place, keys in enumerate(
        ({"merge_method": "passthrough"}, {"merge_method": "linear"}, {"merge_method": "linear", "exclude": ["*"]})
    ):
        recipe = write_recipe(workplace.folder / "task.yml", {**keys, "models": [{"model": task}]})
        out = workplace.folder / f"task{place}"
        result = anabranch("merge", recipe, out)
        assert result.exit_code == 3, result.output
        assert "NaN or Inf values" in result.stderr
        assert not list(out.glob("*.safetensors")) and not (out / "anabranch.manifest.json").exists()


def test_damage_of_a_part_is_found(workplace: Workplace, emr: Path, anabranch: Command) -> None:
    assert anabranch("merge", emr, workplace.out).exit_code == 0
    for name in ("anabranch.emr.json", "model-00001-of-", "README.md"):
        [path, *_] = sorted(workplace.out.glob(f"style/{name}*"))
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)
        result = anabranch("verify", workplace.out / "style")
        assert result.exit_code == 4 and path.name in result.output
        data[-2] ^= 1
        path.write_bytes(data)
    assert anabranch("verify", workplace.out / "style").exit_code == 0


def test_all_parts_are_verified_together(workplace: Workplace, emr: Path, anabranch: Command) -> None:
    assert anabranch("merge", emr, workplace.out).exit_code == 0
    every = [json.loads(anabranch("verify", workplace.out / part, "--json").output) for part in ("unified", *TASKS)]
    whole = anabranch("verify", workplace.out)
    files, size = (sum(each[key] for each in every) for key in ("files", "bytes"))
    said = f"{workplace.out}: {files} files, {size} bytes are what was written\n"
    assert whole.exit_code == 0 and whole.output.endswith(said)
    assert package.verify(workplace.out).files == files
    (workplace.out / "style" / "README.md").write_text("other")
    damaged = anabranch("verify", workplace.out)
    assert damaged.exit_code == 4 and "\nstyle/README.md: damaged" in damaged.output, damaged.output
    refused = anabranch("verify", workplace.out, "--load")
    assert refused.exit_code == 2 and "is a part of EMR-Merging and no model" in refused.output
    (workplace.out / "model0" / "anabranch.manifest.json").unlink()
    assert "model0 is not finished" in anabranch("verify", workplace.out).output
    names = workplace.out / "unified" / "anabranch.emr.json"
    names.write_text(names.read_text().replace('"style"', '"../style"'))
    assert anabranch("verify", workplace.out).exit_code == 3


@pytest.mark.parametrize("shards", [pytest.param(3, marks=pytest.mark.slow), 9])
def test_a_kill_is_survived(workplace: Workplace, emr: Path, anabranch: Command, shards: int) -> None:
    """kill -9 as soon as a few more shards of any part are finished, again and again, until a run comes to its end."""
    whole = workplace.folder / "whole"
    assert anabranch("merge", emr, whole).exit_code == 0
    command = [sys.executable, "-m", "anabranch.cluster.cli", "merge", str(emr), str(workplace.out), "--workers", "1"]
    kills = 0
    for attempt in range(20):
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while run.poll() is None and len(list(workplace.out.glob("*/.anabranch/receipts/*"))) <= shards * attempt:
            time.sleep(0.001)
        run.send_signal(signal.SIGKILL)
        if run.wait() == 0:
            break
        kills += 1
    assert kills and run.returncode == 0
    assert workplace.files() == workplace.files(whole)


def test_the_functions_report_every_part(workplace: Workplace, emr: Path) -> None:
    planned = package.plan(emr, workplace.out)
    report = package.merge(emr, workplace.out)
    names = ["unified", *TASKS]
    assert [Path(each.out).name for each in (planned, *planned.parts)] == names
    assert [Path(each.out).name for each in (report, *report.parts)] == names
    assert all(each.outcome.manifest.plan_id == each.plan.plan_id for each in (report, *report.parts))
    assert "scale " in str(report)
    assert package.merge(emr, workplace.out).outcome.already_complete


def test_parts_stay_together_where_memory_is_tight(workplace: Workplace, emr: Path) -> None:
    """Buffers for every part are smaller than those for one, and one reading is still better than three."""
    roomy, tight = Execution(2, 2 << 30), Execution(2, 340 << 20)
    for execution in (roomy, tight):
        jobs = prepare(emr, workplace.out, execution)
        [reading] = share_readings(jobs, execution)
        assert reading.read_bytes == jobs[0].inputs.plan.read_bytes < reading.alone_bytes
    assert reading.memory.slab_bytes < min(job.memory.slab_bytes for job in jobs)


def test_a_survey_of_the_models(workplace: Workplace, emr: Path, anabranch: Command) -> None:
    table = workplace.folder / "survey.parquet"
    result = anabranch("survey", emr, "--out", table)
    assert result.exit_code == 0 and table.exists(), result.output
