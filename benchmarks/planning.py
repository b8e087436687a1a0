"""Plan a merge of catalogs with very many tensors: seconds and peak memory of ``anabranch plan``.

    python -m benchmarks.planning --tensors 100000 --models 5

Planning reads headers alone, so the shards are written as headers and holes: correct sizes, no content.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .measure import CommandFailed, Cost, run

ANABRANCH = str(Path(sys.executable).parent / "anabranch")
WORK = Path(".bench")
SHAPE = (128, 1024)  # 256 KiB in bf16, so that 100,000 tensors still fit an ordinary disk as an output
EXPERTS = 512
LIMIT_SECONDS = 10
LIMIT_BYTES = 1 << 30


def names(count: int) -> Iterator[str]:
    """Tensor names as in a model with many experts."""
    for number in range(count):
        expert, part = divmod(number, 3)
        layer, expert = divmod(expert, EXPERTS)
        kind = ("gate_proj", "up_proj", "down_proj")[part]
        yield f"model.layers.{layer}.mlp.experts.{expert}.{kind}.weight"


def write_catalog(folder: Path, tensor_count: int, shard_count: int) -> None:
    """A checkpoint folder whose shards hold their headers only; their data are holes."""
    folder.mkdir(parents=True)
    catalog = list(names(tensor_count))
    nbytes = 2 * SHAPE[0] * SHAPE[1]
    per_shard = -(-tensor_count // shard_count)
    shards = [catalog[first : first + per_shard] for first in range(0, tensor_count, per_shard)]
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        for position, name in enumerate(sorted(shard)):
            offsets = [position * nbytes, (position + 1) * nbytes]
            header[name] = {"dtype": "BF16", "shape": list(SHAPE), "data_offsets": offsets}
            where[name] = file_name
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file_name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + len(shard) * nbytes)
    index = {"metadata": {"total_size": tensor_count * nbytes}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "bfloat16"}))


def write_recipe(path: Path, base: Path, models: Sequence[Path]) -> None:
    lines = ["merge_method: cabs", f"base_model: {base}", "models:"]
    lines += [f"  - {{model: {model}, parameters: {{weight: 0.5, density: 0.15}}}}" for model in models]
    path.write_text("\n".join([*lines, "out_dtype: bfloat16"]) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Seconds and memory of planning a catalog of many tensors.")
    parser.add_argument("--tensors", type=int, default=100_000)
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--shards", type=int, default=160, help="files of each checkpoint (models differ a little)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    WORK.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="planning-", dir=WORK)).resolve()
    try:
        costs = measure(work, options.tensors, options.models, options.shards, options.repeats)
    finally:
        shutil.rmtree(work)
    seconds = statistics.median(cost.seconds for cost in costs)
    peak = max(cost.peak_bytes for cost in costs)
    cpu = statistics.median(cost.cpu_seconds for cost in costs)
    others = statistics.median(cost.others_cores for cost in costs)
    print(f"{options.tensors} tensors, base and {options.models} models, median of {options.repeats} runs")
    print()
    print("| | measured | promised |")
    print("|---|---:|---:|")
    print(f"| seconds | {seconds:.1f} | {LIMIT_SECONDS} |")
    print(f"| CPU seconds | {cpu:.1f} | |")
    print(f"| peak MiB | {peak / (1 << 20):.0f} | {LIMIT_BYTES >> 20} |")
    print(f"\nEverything else on the machine used {others:.1f} cores meanwhile.")
    return 0


def measure(work: Path, tensors: int, models: int, shards: int, repeats: int) -> list[Cost]:
    base, *tuned = [work / ("base" if number == 0 else f"model-{number}") for number in range(models + 1)]
    for number, folder in enumerate([base, *tuned]):
        write_catalog(folder, tensors, shards + 7 * number)
    write_recipe(work / "recipe.yml", base, tuned)
    log_path = work / "plan.log"
    costs = []
    for _ in range(repeats):
        try:
            with open(log_path, "wb") as log:
                costs.append(run([ANABRANCH, "plan", str(work / "recipe.yml"), str(work / "out")], log))
        except CommandFailed as error:
            raise SystemExit(f"{error}\n{log_path.read_text(errors='replace')[-2000:]}") from error
        shutil.rmtree(work / "out", ignore_errors=True)
    return costs


if __name__ == "__main__":
    sys.exit(main())
