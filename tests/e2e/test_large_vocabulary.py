"""Two vocabularies of 150,000 tokens in files of 25 MB, joined under a limit of 512 MiB: measured peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ..merging import load_output, write_checkpoint, write_recipe

TOKENS, OWN, HIDDEN = 150_000, 20_000, 32
LIMIT_MIB = 512


def write_model(folder: Path, tokens: list[str], seed: int) -> torch.Tensor:
    matrix = torch.randn(len(tokens), HIDDEN, generator=torch.Generator().manual_seed(seed))
    write_checkpoint(folder, {"model.embed_tokens.weight": matrix})
    merges = [[token[:4], token[4:]] for token in tokens for _ in range(3)]  # only their bytes matter here
    model = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}
    text = json.dumps({"version": "1.0", "added_tokens": [], "model": model}, indent=2, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return matrix


@pytest.mark.slow
def test_large_vocabularies_stay_under_the_limit(tmp_path: Path) -> None:
    shared = [f"tökén\U0001f600{i}" for i in range(TOKENS - OWN)]
    names = {name: [*shared, *(f"{name}{i}" for i in range(OWN))] for name in ("base", "other")}
    base, other = (write_model(tmp_path / name, tokens, i) for i, (name, tokens) in enumerate(names.items()))
    assert (tmp_path / "base" / "tokenizer.json").stat().st_size > 20_000_000
    entry = {"model": str(tmp_path / "other"), "parameters": {"weight": 0.5}}
    keys = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"), "models": [entry]}
    path = write_recipe(tmp_path / "r.yml", keys | {"tokenizer_source": "union"})
    # A child's peak counts from its parent's size at the fork, so a small process starts and measures it.
    measure = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode;"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    command = [sys.executable, "-m", "anabranch.cluster.cli", "merge", path, tmp_path / "out", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", measure, *map(str, command), "--memory", f"{LIMIT_MIB}MiB"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < LIMIT_MIB * 1024, done.stdout
    merged = load_output(tmp_path / "out")["model.embed_tokens.weight"]
    count = TOKENS - OWN
    expected = torch.cat([base[:count] + (other[:count] - base[:count]) * 0.5, base[count:], other[count:]])
    torch.testing.assert_close(merged, expected, rtol=0, atol=0)
    written = (tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8")
    assert len(json.loads(written)["added_tokens"]) == OWN
