"""What a search costs beside as many separate merges: of ours, and of mergekit.

    python -m benchmarks.search [--size 0.5b] [--candidates 32] [--together 8] [--methods ties,task_arithmetic]

The evaluation is a command that looks at nothing, so that merging is what is measured. Separate merges are measured a
few times (`--separate`, `--mergekit`) and multiplied: the table says how many were measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .generate import checkpoints
from .measure import Cost, run, warm
from .merge import MERGEKIT_BIN

DENSITIES = {"cabs": 0.25, "ties": 0.25}
EVALUATE = """sh -c 'echo "{\\"score\\": 1}"' {model}"""


def recipe(folder: Path, name: str, models: Sequence[Path], method: str, weights: Sequence[object]) -> Path:
    """A recipe of ours, of mergekit and of a search: they differ in weights."""
    base, *others = (str(model.resolve()) for model in models)
    content = {
        "merge_method": method,
        "base_model": base,
        "models": [{"model": m, "parameters": {"weight": w}} for m, w in zip(others, weights, strict=True)],
        "parameters": {"density": DENSITIES[method]} if method in DENSITIES else {},
        "dtype": "bfloat16",
    }
    path = folder / f"{name}.yml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def cost(command: Sequence[str], out: Path) -> Cost:
    """From the start of the process until its output is on the disk; the output is removed."""
    out.mkdir()
    try:
        with tempfile.TemporaryFile() as log:
            return run(command, log, out, {"HF_HUB_OFFLINE": "1"})
    finally:
        shutil.rmtree(out)


def measure(options: argparse.Namespace, method: str, models: Sequence[Path], folder: Path) -> list[str]:
    """The rows of one method."""
    out, count = folder / "out", options.candidates
    search = {"search": {"from": 0.2, "to": 2.0}}
    ours = [sys.executable, "-m", "anabranch.cluster.cli"]
    separate = [recipe(folder, f"{method}-{i}", models, method, [0.4 + 0.1 * i, 1.2]) for i in range(options.separate)]
    cost([*ours, "merge", str(separate[0]), str(out)], out)  # kernels and programs into their caches
    space = recipe(folder, f"{method}-search", models, method, [search] * (len(models) - 1))
    words = ["search", str(space), str(out), "--evaluate", EVALUATE, "--sampler", "random"]
    words += ["--trials", str(count), "--together", str(options.together)]
    found = {f"search, {options.together} together": [cost([*ours, *words], out)]}
    found["separate merges"] = [cost([*ours, "merge", str(path), str(out)], out) for path in separate]
    mergekit = [str(MERGEKIT_BIN / "mergekit-yaml"), str(separate[0]), str(out)]
    mergekit += ["--copy-tokenizer", "--lazy-unpickle", "--quiet"]
    found["mergekit"] = [cost(mergekit, out) for _ in range(options.mergekit)]
    rows = []
    whole = found[f"search, {options.together} together"][0].seconds
    for name, costs in found.items():
        if not costs:
            continue
        times = 1 if name.startswith("search") else count
        seconds = times * statistics.median(each.seconds for each in costs)
        cpu = times * statistics.median(each.cpu_seconds for each in costs)
        read = times * statistics.median(each.read_bytes for each in costs) / 1e9
        peak = max(each.peak_bytes for each in costs) >> 20
        shown = "mapped" if name == "mergekit" else f"{read:.1f}"
        measured = "all of it" if times == 1 else f"{len(costs)} of {count}"
        others = statistics.mean(each.others_cores for each in costs)
        rows.append(
            f"| {method} | {name} | {measured} | {seconds:.0f} | {seconds / whole:.1f} | {cpu:.0f} | {shown} | {peak} "
            f"| {others:.1f} |"
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure a search beside separate merges.")
    parser.add_argument("--size", default="0.5b")
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--together", type=int, default=8)
    parser.add_argument("--methods", default="ties,task_arithmetic")
    parser.add_argument("--separate", type=int, default=3, help="separate merges that are measured")
    parser.add_argument("--mergekit", type=int, default=1, help="merges of mergekit that are measured; 0: none")
    options = parser.parse_args(arguments)
    models = checkpoints(options.size, 2)
    folder = Path(tempfile.mkdtemp(prefix="anabranch-search-", dir=".bench"))
    lines = [
        "| method | how | measured | seconds | x search | CPU s | GB read | peak MiB | other cores |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    try:
        for method in options.methods.split(","):
            warm([path for model in models for path in model.glob("*.safetensors")])
            lines += measure(options, method, models, folder)
    finally:
        shutil.rmtree(folder)
    print(f"{options.size}, {options.candidates} candidates, 2 models and their base, {os.cpu_count()} cores, ", end="")
    print(f"Python {platform.python_version()}\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
