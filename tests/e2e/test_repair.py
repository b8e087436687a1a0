"""`anabranch verify --repair`: what it says, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from click.testing import CliRunner

from anabranch.cluster.cli import cli

from ..merging import merge, write_checkpoint, write_recipe


def test_the_command_says_what_it_did_and_leaves_what_is_not_ours(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    for name in ("base", "model"):
        write_checkpoint(tmp_path / name, {f"t{i}": torch.randn(40, 32, generator=generator) for i in range(5)})
    content = {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / "model"), "parameters": {"weight": 1.0}}],
        "output": {"shard_size": "11KB"},
    }
    recipe, out = write_recipe(tmp_path / "recipe.yml", content), tmp_path / "out"
    merge(recipe, out)
    shard = out / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (out / "notes.txt").write_text("mine")
    told = CliRunner().invoke(cli, ["verify", str(out), "--repair", str(recipe)])
    assert f"{shard.name}: damaged: its SHA-256 is" in told.stdout
    assert told.exit_code == 4 and "notes.txt: unexpected" in told.stdout
    assert shard.read_bytes() == whole
    (out / "notes.txt").unlink()
    told = CliRunner().invoke(cli, ["verify", str(out), "--repair", str(recipe), "--json"])
    assert told.exit_code == 0
    assert json.loads(told.stdout)["repaired"] == []
