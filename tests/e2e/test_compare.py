"""The whole command: what differs between two checkpoints, whatever files they are cut into."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ..adapters import write_adapter
from ..merging import write_checkpoint
from .conftest import Command, Workplace

W, V = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    found = {W: torch.randn(700, 900, generator=generator).bfloat16(), V: torch.randn(30, generator=generator)}
    return found | {"ids": torch.arange(6), "empty": torch.zeros(0, 3), "flags": torch.tensor([True, False])}


class Pair:
    def __init__(self, folder: Path, anabranch: Command) -> None:
        self.folder, self._anabranch = folder, anabranch

    def write(self, first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], shards: int = 1) -> None:
        write_checkpoint(self.folder / "a", first)
        write_checkpoint(self.folder / "b", second, shards)

    def compare(self, *options: str, code: int) -> str:
        result = self._anabranch("compare", self.folder / "a", self.folder / "b", *options)
        assert result.exit_code == code, result.output
        return result.output

    def rows(self, code: int = 1) -> dict[str, dict[str, Any]]:
        found = json.loads(self.compare("--json", code=code))
        return {row["tensor"]: row for row in found["differences"]}


@pytest.fixture
def pair(tmp_path: Path, anabranch: Command) -> Pair:
    return Pair(tmp_path, anabranch)


def test_the_same_tensors_in_other_files_are_equal(pair: Pair, tensors: dict[str, torch.Tensor]) -> None:
    pair.write(tensors, dict(reversed(tensors.items())), shards=3)
    assert "equal: 5 tensors with the same dtypes, shapes and bits" in pair.compare(code=0)
    assert pair.rows(code=0) == {}


def test_values_are_counted_and_measured(pair: Pair, tensors: dict[str, torch.Tensor]) -> None:
    other = {name: tensor.clone() for name, tensor in tensors.items()}
    other[W][5, :100] += 1
    other["ids"][2], other["flags"][0] = 9, False
    pair.write(tensors, other)
    rows = pair.rows()
    a, b = (each[W].double().flatten() for each in (tensors, other))
    assert {name: row["state"] for name, row in rows.items()} == dict.fromkeys((W, "ids", "flags"), "values")
    assert rows[W]["differing"] == int((a != b).sum()) > 90 and rows["ids"]["differing"] == 1
    assert rows[W]["largest"] == float((a - b).abs().max())
    assert rows[W]["relative"] == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-12)
    assert rows[W]["cosine"] == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-12)
    said = pair.compare(code=1)
    assert "different: 3 of 5 tensors" in said and f"{W} " in said
    assert pair.compare("--json", "--workers", "1", code=1) == pair.compare("--json", "--workers", "3", code=1)


def test_names_shapes_and_dtypes(pair: Pair, tensors: dict[str, torch.Tensor]) -> None:
    other = {W: tensors[W].float(), V: tensors[V][:29], "ids": tensors["ids"].int(), "more": torch.ones(2)}
    pair.write(tensors, other | {"flags": tensors["flags"]})
    assert {name: row["state"] for name, row in pair.rows().items()} == {
        W: "dtype",
        V: "shape",
        "ids": "dtype",
        "empty": "only in A",
        "more": "only in B",
    }
    said = pair.compare(code=1)
    for words in (f"other dtype, same values: {W}", "other dtype, not compared: ids", "only in B: more"):
        assert words in said
    assert f"other shape: {V}" in said


def test_zeros_and_nans_with_other_bits(pair: Pair) -> None:
    pair.write({"z": torch.tensor([0.0, math.nan])}, {"z": torch.tensor([-0.0, -math.nan])})
    assert "same values, other bits: z" in pair.compare(code=1)
    pair.write({"z": torch.tensor([1.0, math.nan])}, {"z": torch.tensor([math.inf, math.nan])})
    row = pair.rows()["z"]
    assert (row["state"], row["differing"], row["nonfinite"], row["largest"]) == ("values", 1, 1, 0.0)


def test_an_adapter_is_applied(pair: Pair, anabranch: Command, tmp_path: Path) -> None:
    base = {"layer.weight": torch.zeros(2, 3)}
    pair.write(base, {"layer.weight": torch.ones(2, 3)})
    factors = {"layer.lora_A.weight": torch.ones(1, 3), "layer.lora_B.weight": torch.ones(2, 1)}
    write_adapter(tmp_path / "adapter", factors, r=1, lora_alpha=1)
    assert anabranch("compare", f"{tmp_path / 'a'}+{tmp_path / 'adapter'}", tmp_path / "b").exit_code == 0


def test_two_outputs_say_how_they_came_about(workplace: Workplace, anabranch: Command) -> None:
    other = [dict(entry) for entry in workplace.recipe["models"]]
    other[0]["parameters"] = {"weight": 1.0, "density": 0.5}
    recipes = [workplace.write(), workplace.write("other.yml", models=other, output={"shard_size": "1GB"})]
    outs = [workplace.folder / "one", workplace.folder / "two"]
    for recipe, out in zip(recipes, outs, strict=True):
        assert anabranch("merge", recipe, out).exit_code == 0
    result = anabranch("compare", *outs)
    assert result.exit_code == 1
    assert "models[0].parameters.density: 0.25 -> 0.5" in result.output
    assert "output.shard_size: 12000 -> 1000000000" in result.output
    assert "model 0 kept: 0.249847 -> 0.460797" in result.output
    assert "density: other in " in result.output and "kept share: other in " in result.output
    assert "other files that differ: README.md, mergekit_config.yml" in result.output
    assert "model.embed_tokens.weight" not in result.output and "card" not in result.output
    found = json.loads(anabranch("compare", *outs, "--json").output)
    assert {"where": "models[0].parameters.density", "a": 0.25, "b": 0.5} in found["outputs"]["recipe"]
    result = anabranch("compare", outs[0], outs[0])
    assert result.exit_code == 0 and "the same recipe, inputs, masks and other files" in result.output


def test_what_cannot_be_compared(workplace: Workplace, anabranch: Command) -> None:
    base = workplace.recipe["base_model"]
    missing = anabranch("compare", base, workplace.folder / "nowhere", "--json")
    assert missing.exit_code == 2 and json.loads(missing.output.splitlines()[-1])["outcome"] == "failed"
    (workplace.out / ".anabranch").mkdir(parents=True)
    (workplace.out / ".anabranch" / "plan.json").write_text("{}")
    unfinished = anabranch("compare", base, workplace.out)
    assert unfinished.exit_code == 4 and "is not finished" in unfinished.output
    small = anabranch("compare", base, base, "--memory", "256MiB")
    assert small.exit_code == 6 and "give more with --memory" in small.output


def test_memory_stays_under_the_limit(tmp_path: Path) -> None:
    """Two times 300 MB within 512 MiB, and not by being read whole."""
    large = torch.randn(1, 75_000_000)
    for name in ("a", "b"):
        write_checkpoint(tmp_path / name, {"w": large})
        large[0, 74_999_999] += 1
    del large
    code = (
        "import sys, anabranch\n"
        "from anabranch.engine.run.machine import peak_rss_bytes\n"
        "found = anabranch.compare(*sys.argv[1:], memory_bytes=512 << 20)\n"
        "print(found.differing[0].elements.differing, peak_rss_bytes() >> 20)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a", tmp_path / "b"], capture_output=True, text=True, check=True
    )
    differing, peak_mib = map(int, done.stdout.split())
    assert differing == 1 and peak_mib < 512
