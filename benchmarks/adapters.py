"""Merge LoRA adapters of large and of ordinary rank, beside a loop that calls torch.matmul.

    python -m benchmarks.adapters --ranks 1024,64,16 --before ../before

One matrix in bf16 and an adapter on it. The loop does what is the least with torch: it reads everything, adds
scale * (B @ A) in fp32 (products fused, in any order), rounds to bf16 and writes the file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anabranch.engine.models.header import build_header

from .measure import CommandFailed, Cost, run

if TYPE_CHECKING:
    import numpy as np

ANABRANCH = str(Path(sys.executable).parent / "anabranch")
WORK = Path(".bench")
MODULE = "model.layers.0.mlp.up_proj"
LOOP = "torch loop"


def write_case(folder: Path, rows: int, columns: int, rank: int) -> None:
    """A base of one matrix, an adapter, and a recipe that adds the adapter to it; in a process of its own."""
    import numpy as np

    rng = np.random.default_rng(0)
    _write(folder / "base" / "model.safetensors", {f"{MODULE}.weight": _bf16(rng, rows, columns)})
    (folder / "base" / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "bfloat16"}))
    factors = {"lora_A": _bf16(rng, rank, columns), "lora_B": _bf16(rng, rows, rank)}
    prefix = f"base_model.model.{MODULE}"
    tensors = {f"{prefix}.{side}.weight": values for side, values in factors.items()}
    _write(folder / "adapter" / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    base = folder / "base"
    lines = ["merge_method: task_arithmetic", f"base_model: {base}", f"models: [{{model: {base}+{folder}/adapter}}]"]
    (folder / "recipe.yml").write_text("\n".join(lines) + "\n")


def _bf16(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Codes of bf16 numbers between 0.004 and 0.03 of both signs, u16."""
    codes: np.ndarray = rng.integers(0x3B80, 0x3CF0, (rows, columns), "u2")
    codes |= rng.integers(0, 2, codes.shape, "u2") << 15
    return codes


def _write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True)
    header, infos = build_header([(name, "BF16", codes.shape) for name, codes in tensors.items()], {"format": "pt"})
    with open(path, "wb") as file:
        file.write(header)
        for info in infos:
            tensors[info.name].tofile(file)


def loop(folder: Path, out: Path) -> None:
    """What one writes without a tool."""
    from safetensors.torch import load_file, save_file

    base = load_file(folder / "base" / "model.safetensors")
    factors = load_file(folder / "adapter" / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.{MODULE}.lora_{side}.weight"].float() for side in "AB")
    weight = base[f"{MODULE}.weight"]
    out.mkdir()
    save_file({f"{MODULE}.weight": (weight.float() + b @ a).to(weight.dtype)}, out / "model.safetensors")


def contenders(folder: Path, before: Path | None) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Command without its output folder, and environment."""
    merge = [ANABRANCH, "merge", str(folder / "recipe.yml")]
    found: dict[str, tuple[list[str], dict[str, str]]] = {
        LOOP: ([sys.executable, "-m", "benchmarks.adapters", "--loop", str(folder)], {}),
        "anabranch": (merge, {"PYTHONPATH": str(Path.cwd())}),
    }
    if before is not None:
        found["before"] = merge, {"PYTHONPATH": str(before.resolve())}
    return found


def measure(work: Path, shape: tuple[int, int], rank: int, repeats: int, before: Path | None) -> dict[str, list[Cost]]:
    """By contender the costs of each round; one more before them compiles kernels and fills the page cache."""
    folder = work / str(rank)
    _alone("--write", str(folder), "--rows", str(shape[0]), "--columns", str(shape[1]), "--ranks", str(rank))
    costs: dict[str, list[Cost]] = {}
    for turn in range(repeats + 1):
        for name, (command, environment) in contenders(folder, before).items():
            out = folder / "out"
            try:
                with open(work / "log", "wb") as log:
                    cost = run([*command, str(out)], log, out, environment)
            except CommandFailed as error:
                raise SystemExit(f"{error}\n{(work / 'log').read_text(errors='replace')[-2000:]}") from error
            shutil.rmtree(out)
            costs.setdefault(name, []).extend([cost] if turn else [])
    shutil.rmtree(folder)
    return costs


def _alone(*arguments: str) -> None:
    """This module in a process of its own, as the memory of this one would count as that of what it measures."""
    subprocess.run([sys.executable, "-m", "benchmarks.adapters", *arguments], check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What it costs to merge a LoRA adapter into its base.")
    parser.add_argument("--rows", type=int, default=28672)
    parser.add_argument("--columns", type=int, default=8192)
    parser.add_argument("--ranks", default="1024,64,16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--before", type=Path, help="another tree of the sources, measured in turns")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--loop", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("out", nargs="?", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.write is not None:
        write_case(options.write, options.rows, options.columns, int(options.ranks))
        return 0
    if options.loop is not None:
        loop(options.loop, options.out)
        return 0
    WORK.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="adapters-", dir=WORK)).resolve()
    megabytes = 2 * options.rows * options.columns / 1e6
    print(f"{options.rows} x {options.columns}, {megabytes:.0f} MB of output, medians of {options.repeats} rounds\n")
    print("| rank | contender | seconds | MB/s | CPU s | CPU beside the loop | peak MiB | other cores |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    try:
        for rank in map(int, options.ranks.split(",")):
            costs = measure(work, (options.rows, options.columns), rank, options.repeats, options.before)
            for name, rounds in costs.items():
                pairs = zip(rounds, costs[LOOP], strict=True)
                ratio = statistics.median(cost.cpu_seconds / other.cpu_seconds for cost, other in pairs)
                seconds = statistics.median(cost.seconds for cost in rounds)
                cpu = statistics.median(cost.cpu_seconds for cost in rounds)
                peak = max(cost.peak_bytes for cost in rounds) >> 20
                others = statistics.median(cost.others_cores for cost in rounds)
                cells = f"{seconds:.1f} | {megabytes / seconds:.1f} | {cpu:.1f} | {ratio:.2f} | {peak} | {others:.1f}"
                print(f"| {rank} | {name} | {cells} |", flush=True)
    finally:
        shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
