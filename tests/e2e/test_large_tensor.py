"""One tensor, three models and TIES under a limit of a third of its size: measured peak memory, and every output byte.

Each model repeats one tile of 4096 distinct magnitudes, so the exact cut of the whole tensor is known on paper: the 819
largest of a tile are kept everywhere, the next one only in the first tiles, because equal magnitudes go by index.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from anabranch.engine.models.header import build_header

from ..merging import write_recipe

TILE = 4096
COLUMNS = 32768
DENSITY = 0.2
BLOCK_TILES = 2048


def tile_bits(seed: int) -> np.ndarray:
    """bf16 bit patterns u16 [TILE] of distinct magnitudes with random signs, shuffled."""
    random = np.random.default_rng(seed)
    bits = (0x3000 + np.arange(TILE)).astype(np.uint16)
    bits |= (random.integers(0, 2, TILE) << 15).astype(np.uint16)
    return random.permutation(bits)


def write_tensor(folder: Path, tile: np.ndarray, rows: int) -> Path:
    """A checkpoint of one tensor that repeats a tile."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16"}))
    header, _ = build_header([("w", "BF16", (rows, COLUMNS))], {"format": "pt"})
    block = np.tile(tile, BLOCK_TILES).tobytes()
    with open(folder / "model.safetensors", "wb", buffering=0) as file:
        file.write(header)
        if not tile.any():
            file.truncate(len(header) + 2 * rows * COLUMNS)  # zeros that take no place on the disk
            return folder
        for _ in range(rows * COLUMNS // (TILE * BLOCK_TILES)):
            file.write(block)
    return folder


def merged_tile(tiles: list[np.ndarray], kept: int) -> np.ndarray:
    """TIES of one tile in fp32, `kept` largest magnitudes per model, over a base of zeros; bf16 bits u16 [TILE]."""
    values = np.stack([(tile.astype(np.uint32) << 16).view(np.float32) for tile in tiles])
    trimmed = np.zeros_like(values)
    for row, full in zip(trimmed, values, strict=True):
        largest = np.argsort(-np.abs(full), kind="stable")[:kept]
        row[largest] = full[largest]
    sign = np.where(trimmed.sum(0) >= 0, 1, -1)
    agreeing = (trimmed != 0) & (np.sign(trimmed) == sign)
    total = np.zeros(TILE, np.float32)
    for row, agrees in zip(trimmed, agreeing, strict=True):
        total += np.where(agrees, row, np.float32(0))
    mean = total / np.maximum(agreeing.sum(0), 1).astype(np.float32)
    return torch.from_numpy(mean).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize("limit_mib", [384, pytest.param(512, marks=pytest.mark.slow)])
def test_a_tensor_three_times_the_memory_limit_is_merged_within_it(tmp_path: Path, limit_mib: int) -> None:
    rows = 3 * (limit_mib << 20) // (2 * COLUMNS)
    tiles = [tile_bits(seed) for seed in (1, 2, 3)]
    base = write_tensor(tmp_path / "base", np.zeros(TILE, np.uint16), rows)
    models = [write_tensor(tmp_path / f"model{i}", tile, rows) for i, tile in enumerate(tiles)]
    recipe = {
        "merge_method": "ties",
        "base_model": str(base),
        "models": [{"model": str(model)} for model in models],
        "parameters": {"density": DENSITY},
    }
    command = [sys.executable, "-m", "anabranch.cluster.cli", "merge", str(write_recipe(tmp_path / "r.yml", recipe))]
    # A child's peak counts from its parent's size at the fork, so a small process starts and measures it.
    measure = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode;"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", measure, *command, str(tmp_path / "out"), "--memory", f"{limit_mib}MiB", "--json"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak_mib = int(done.stdout.splitlines()[-1]) / 1024
    assert peak_mib < limit_mib

    count = rows * COLUMNS
    kept = int(DENSITY * count)
    everywhere, partly = divmod(kept, count // TILE)
    assert partly > 0, "the cut lies between equal magnitudes"
    with_next, without = merged_tile(tiles, everywhere + 1), merged_tile(tiles, everywhere)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        merged = file.get_slice("w")
        row_tiles = COLUMNS // TILE
        for first in range(0, rows, 1024):
            found = merged[first : first + 1024].view(torch.int16).numpy().view(np.uint16).reshape(-1, TILE)
            index = first * row_tiles + np.arange(len(found))
            assert np.array_equal(found, np.where((index < partly)[:, None], with_next, without))
