"""Merge the same synthetic models with Anabranch and with others, taking turns on the same files.

    python -m benchmarks.merge --size 0.1b --methods cabs,ties --repeats 3

Every round runs each contender once, so that whatever else happens on the machine hits all of them; the table
shows medians. A first round is not measured: it compiles kernels, and its outputs are compared by value.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from .measure import CommandFailed, Cost, evict, run, warm
from .table import markdown, plot

PEERS = Path(__file__).parent / "peers"
ANABRANCH = str(Path(sys.executable).parent / "anabranch")
WORK = Path(".bench")
MERGEKIT_BIN = WORK / "mergekit-venv" / "bin"
SPARE_BYTES = 2 << 30  # left free on the disk


@dataclass(frozen=True, slots=True)
class Form:
    """What a recipe of a method says."""

    per_model: str = "weight"  # parameters of each model
    common: str = ""  # parameters of all, in YAML's flow style
    base: bool = True  # whether there is a base model
    most: int | None = None  # models at most


SPARSE = "weight density"
FORMS = {
    "linear": Form(base=False),
    "task_arithmetic": Form(),
    "magnitude": Form(SPARSE),
    "ties": Form(SPARSE),
    "dare_linear": Form(SPARSE),
    "dare_ties": Form(SPARSE),
    "breadcrumbs": Form(SPARSE),
    "breadcrumbs_ties": Form(SPARSE),
    "della": Form(SPARSE),
    "della_linear": Form(SPARSE),
    "cabs": Form(SPARSE, "block: 256"),
    "sce": Form("", "select_topk: 0.3"),
    "model_stock": Form(""),
    "karcher": Form("", base=False),
    "multislerp": Form(base=False),
    "nuslerp": Form(base=False, most=2),
    "slerp": Form("", "t: 0.4", most=1),
    "nearswap": Form("", "t: 0.0001", most=1),
    "arcee_fusion": Form("", most=1),
}
METHODS = tuple(FORMS)
TORCH_METHODS = ("linear", "task_arithmetic", "magnitude", "cabs")
MERGEKIT_METHODS = tuple(method for method in METHODS if method not in ("magnitude", "cabs"))  # CABS by our plug-in
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")  # masks differ by design


@dataclass(frozen=True, slots=True)
class Contender:
    """A command that makes ``out`` from a recipe."""

    name: str
    command: tuple[str, ...]
    out: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def recipe_text(method: str, base: Path, models: Sequence[Path], density: float, dtype: str) -> str:
    """The recipe that all contenders read. ``dtype`` is what mergekit computes in; the output is bf16."""
    lines = [f"merge_method: {method}"]
    form = FORMS[method]
    if form.base:
        lines.append(f"base_model: {base}")
    lines.append("models:")
    for number, model in enumerate(models[: form.most]):
        values = {"weight": f"{0.6 - 0.1 * (number % 5):.1f}", "density": f"{density}"}
        parameters = ", ".join(f"{name}: {values[name]}" for name in form.per_model.split())
        lines.append(f"  - {{model: {model}, parameters: {{{parameters}}}}}")
    if form.common:
        lines.append(f"parameters: {{{form.common}}}")
    lines += [f"dtype: {dtype}", "out_dtype: bfloat16"]
    return "\n".join(lines) + "\n"


def contenders(options: argparse.Namespace, method: str, paths: Sequence[Path], work: Path) -> list[Contender]:
    """Everyone who takes part in ``method``, the floor first."""
    base, *models = (path.resolve() for path in paths)
    models = models[: FORMS[method].most]
    inputs = [base, *models] if FORMS[method].base else models

    def recipe(dtype: str) -> str:
        path = work / f"{method}-{dtype}.yml"
        path.write_text(recipe_text(method, base, models, options.density, dtype))
        return str(path)

    wanted = options.contenders.split(",")
    found: list[Contender] = []
    if "floor" in wanted:
        read = f"cat {_shards_of(inputs)} > /dev/null"
        write = f"mkdir $1 && cat {_shards_of(inputs[:1])} > $1/copy && sync $1/copy"
        script = f"{read} && {write}"
        found.append(Contender("floor", ("sh", "-c", script, "floor", str(work / "floor")), work / "floor"))
    if "anabranch" in wanted:
        for memory in options.memory.split(","):
            out = work / f"anabranch-{memory}"
            ours = (ANABRANCH, "merge", recipe("bfloat16"), str(out), "--memory", memory)
            found.append(Contender(f"anabranch {memory}", ours, out))
    if "torch" in wanted and method in TORCH_METHODS:
        script = str(PEERS / "torch_loop.py")
        loop = (sys.executable, script, recipe("bfloat16"), str(work / "torch"))
        found.append(Contender("torch loop", loop, work / "torch"))
    for name, dtype in (("mergekit", "bfloat16"), ("mergekit-fp32", "float32")):
        if name not in wanted or method not in (*MERGEKIT_METHODS, "cabs"):
            continue
        tool: tuple[str, ...] = (str(MERGEKIT_BIN / "mergekit-yaml"),)
        if method == "cabs":
            tool = (str(MERGEKIT_BIN / "python"), str(PEERS / "mergekit_cabs.py"))
        theirs = (*tool, recipe(dtype), str(work / name), "--copy-tokenizer", "--lazy-unpickle", "--quiet")
        found.append(Contender(name.replace("-", " "), theirs, work / name, {"HF_HUB_OFFLINE": "1"}))
    return found


def _shards_of(folders: Sequence[Path]) -> str:
    return " ".join(f"{folder}/*.safetensors" for folder in folders)


def measure_method(options: argparse.Namespace, method: str, paths: Sequence[Path]) -> list[dict[str, object]]:
    """Rows of results: one per contender and case."""
    work = WORK / "merge"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    inputs = [shard for path in paths for shard in sorted(path.glob("*.safetensors"))]
    taking_part = contenders(options, method, paths, work)
    unlike = _first_round(taking_part, method, work)
    costs: dict[tuple[str, str], list[Cost]] = {}
    for case in options.cases.split(","):
        for number in range(options.repeats):
            turn = number % len(taking_part)
            for contender in taking_part[turn:] + taking_part[:turn]:
                (warm if case == "warm" else evict)(inputs)
                cost = _run_once(contender, method, work)
                shutil.rmtree(contender.out)
                costs.setdefault((case, contender.name), []).append(cost)
                print(f"{method} {case} {contender.name}: {cost.seconds:.2f} s", file=sys.stderr, flush=True)
    shutil.rmtree(work)
    return [
        {
            "method": method,
            "case": case,
            "contender": name,
            "unlike_ours": unlike.get(name),
            "runs": [dataclasses.asdict(cost) for cost in runs],
        }
        for (case, name), runs in costs.items()
    ]


def _first_round(taking_part: Sequence[Contender], method: str, work: Path) -> dict[str, float | None]:
    """Run everyone once, unmeasured; share of elements in which each differs from our first output."""
    unlike: dict[str, float | None] = {}
    ours: Path | None = None
    for contender in taking_part:
        _run_once(contender, method, work)
        if contender.name.startswith("anabranch") and ours is None:
            ours = contender.out
        elif ours is not None and method not in RANDOM:
            command = [sys.executable, "-m", "benchmarks.differences", str(ours), str(contender.out)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            unlike[contender.name] = json.loads(said)["share"]
        if contender.out != ours:
            shutil.rmtree(contender.out)
    if ours is not None:
        shutil.rmtree(ours)
    return unlike


def _run_once(contender: Contender, method: str, work: Path) -> Cost:
    log_path = work / f"{contender.out.name}.log"
    try:
        with open(log_path, "wb") as log:
            return run(contender.command, log, contender.out, contender.environment)
    except CommandFailed as error:
        tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-20:])
        raise SystemExit(f"{method}, {contender.name}: {error}\n{tail}") from error


def facts(options: argparse.Namespace) -> dict[str, object]:
    """Where and how the figures were taken."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "processor": f"{model}, {os.cpu_count()} cores",
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "torch")),
        "size": options.size,
        "models": options.models,
        "density": options.density,
        "repeats": options.repeats,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Merge synthetic models with Anabranch and with others, in turns.")
    parser.add_argument("--size", default="0.1b", help="see benchmarks/generate.py (default 0.1b)")
    parser.add_argument("--models", type=int, default=2, help="fine-tuned models to merge (default 2)")
    parser.add_argument("--methods", default="cabs,task_arithmetic,ties", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--contenders", default="floor,anabranch,torch,mergekit", help="also mergekit-fp32")
    parser.add_argument("--memory", default="2GiB", help="limits for Anabranch, by commas: 2GiB,512MiB")
    parser.add_argument("--cases", default="warm,cold", help="inputs in the page cache, or not")
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where the single runs go (default .bench/results/...)")
    parser.add_argument("--plot", type=Path, help="draw the medians into this PNG or SVG")
    options = parser.parse_args(arguments)
    unknown = set(options.methods.split(",")) - set(METHODS)
    if unknown:
        parser.error(f"unknown methods: {', '.join(sorted(unknown))}")
    if "mergekit" in options.contenders and not (MERGEKIT_BIN / "mergekit-yaml").exists():
        parser.error("mergekit is not installed: run benchmarks/peers/setup.sh, or leave it out of --contenders")

    generate = [sys.executable, "-m", "benchmarks.generate", options.size, "--models", str(options.models)]
    listed = subprocess.run(generate, check=True, capture_output=True, text=True).stdout
    paths = [Path(line) for line in listed.splitlines()]
    written = sum(shard.stat().st_size for shard in paths[0].glob("*.safetensors"))
    free = shutil.disk_usage(WORK).free
    compared = set(options.contenders.split(",")) - {"floor", "anabranch"} or "," in options.memory
    needed = (2 if compared else 1) * written + SPARE_BYTES  # the first round keeps an output to compare with
    if free < needed:
        raise SystemExit(f"{WORK}: needs {needed} free bytes, has {free}")

    rows = [row for method in options.methods.split(",") for row in measure_method(options, method, paths)]
    results = {"facts": facts(options), "rows": rows}
    path = options.json or WORK / "results" / f"merge-{options.size}-{options.models}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(markdown(results))
    if options.plot:
        plot(results, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
