"""`anabranch verify --repair`: what it says, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from anabranch.cluster.cli import cli

from ..merging import merge, write_merge


def test_the_command_says_what_it_did_and_leaves_what_is_not_ours(tmp_path: Path) -> None:
    keys = {"merge_method": "task_arithmetic", "output": {"shard_size": "11KB"}}
    recipe = write_merge(tmp_path, {f"t{i}": (40, 32) for i in range(5)}, 3, **keys)
    out = tmp_path / "out"
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
