"""Merge many tiny tensors: CPU milliseconds of each, beside the loop of `peers/torch_loop.py`.

    python -m benchmarks.tiny_tensors --tensors 6000 --methods task_arithmetic,ties,cabs

Tensors of 64 bf16 elements in one file per model, so that everything is overhead. What a merge of one such tensor costs
is taken off; the loop adds task vectors, whatever the method. Several checkouts (``--trees``) take turns.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .measure import run
from .planning import names

WORK = Path(".bench")
ELEMENTS = 64
LOOP = Path(__file__).parent / "peers" / "torch_loop.py"
MERGE = "from anabranch.cluster.cli import main; raise SystemExit(main())"


def write_models(folder: Path, tensors: int, models: int) -> list[Path]:
    """A base and its models, each a folder with one file and its index."""
    draws = np.random.default_rng(tensors)
    base = draws.standard_normal((tensors, ELEMENTS), np.float32)
    folders = [folder / str(number) for number in range(models + 1)]
    for number, path in enumerate(folders):
        change = draws.standard_normal(base.shape, np.float32) * 0.05 if number else 0
        values: npt.NDArray[np.float32] = base + change
        _write_model(path, (values.view(np.uint32) >> 16).astype("<u2").tobytes(), tensors)
    return folders


def _write_model(folder: Path, data: bytes, tensors: int) -> None:
    folder.mkdir(parents=True)
    catalog, size = sorted(names(tensors)), 2 * ELEMENTS
    header = {
        name: {"dtype": "BF16", "shape": [ELEMENTS], "data_offsets": [place * size, (place + 1) * size]}
        for place, name in enumerate(catalog)
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    index = {"metadata": {"total_size": len(data)}, "weight_map": dict.fromkeys(catalog, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "bfloat16"}))


def write_recipe(path: Path, method: str, folders: Sequence[Path]) -> None:
    base, *models = map(str, folders)
    parameters = {"weight": 0.5} | ({} if method == "task_arithmetic" else {"density": 0.25})
    entries = [{"model": model, "parameters": parameters} for model in models]
    recipe = {"merge_method": method, "base_model": base, "models": entries}
    path.write_text(json.dumps(recipe | {"out_dtype": "bfloat16"}))


def cpu_seconds(command: Sequence[str], work: Path, tree: Path | None = None) -> float:
    """What one command takes, of the given checkout's code."""
    environment = {} if tree is None else {"PYTHONPATH": str(tree.resolve())}
    out = work / "out"
    with open(work / "log", "wb") as log:
        cost = run([sys.executable, *command, str(out)], log, extra_environment=environment)
    shutil.rmtree(out)
    return cost.cpu_seconds


def measure(
    work: Path, tensors: int, models: int, method: str, trees: Sequence[Path], repeats: int
) -> list[list[float]]:
    """Per repeat, milliseconds of one tensor: in the loop, then by each checkout."""
    recipes = {}
    for count in (1, tensors):
        folders = write_models(work / str(count), count, models)
        for kind in {method, "task_arithmetic"}:
            recipes[kind, count] = work / str(count) / f"{kind}.yml"
            write_recipe(recipes[kind, count], kind, folders)
    found = []
    for _ in range(repeats + 1):
        loops = [[str(LOOP), str(recipes["task_arithmetic", count])] for count in (1, tensors)]
        merges = [["-c", MERGE, "merge", str(recipes[method, count])] for count in (1, tensors)]
        row = [[cpu_seconds(each, work) for each in loops]]
        row += [[cpu_seconds(each, work, tree) for each in merges] for tree in trees]
        print(method, *(f"{one:.2f} {many:.2f}" for one, many in row), sep="  ", file=sys.stderr)
        found.append([(many - one) / (tensors - 1) * 1e3 for one, many in row])
    return found[1:]  # the first compiles what is not kept yet


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="CPU milliseconds of tiny tensors.")
    parser.add_argument("--tensors", type=int, default=6_000)
    parser.add_argument("--models", type=int, default=2)
    parser.add_argument("--methods", default="task_arithmetic,ties,cabs")
    parser.add_argument("--trees", type=Path, nargs="+", default=[Path()], help="checkouts that take turns")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    WORK.mkdir(exist_ok=True)
    trees: list[Path] = options.trees
    print(f"{options.tensors} tensors of {ELEMENTS}, base and {options.models} models; CPU ms a tensor, less a start\n")
    print("| | loop |" + "".join(f" {tree.resolve().name} | / loop | / first |" for tree in trees))
    print("|---|---:|" + "---:|---:|---:|" * len(trees))
    for method in options.methods.split(","):
        work = Path(tempfile.mkdtemp(prefix="tiny-", dir=WORK)).resolve()
        try:
            rows = measure(work, options.tensors, options.models, method, trees, options.repeats)
        finally:
            shutil.rmtree(work)
        cells = [statistics.median(row[0] for row in rows)]
        for place in range(1, len(trees) + 1):
            cells.append(statistics.median(row[place] for row in rows))
            cells += [statistics.median(row[place] / row[other] for row in rows) for other in (0, 1)]
        print(f"| {method} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
