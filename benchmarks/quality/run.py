"""Fine-tune, merge and measure: `make evidence`, or python -m benchmarks.quality.run --seeds 5 --processes 2

Every specialist and every cell is kept in a file of its own as soon as it is done; the same command goes on from there.
Seeds are done in blocks of cells, the first block for every seed first.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from anabranch.cluster.demo.factors import Method, choose_factor
from anabranch.cluster.demo.models import Judge, Training, load_tensors, make_base, prepare_torch, train_specialist
from anabranch.cluster.demo.models_in_memory import ModelsInMemory, Sum
from anabranch.cluster.search.suggest import suggest
from anabranch.engine.methods import tadrop

from .cells import Cell, cells
from .report import write_results
from .tasks import load

FOLDER = Path(".bench/quality")
DATA = Path(".demo-data")
MEMORY_BYTES = 2 << 30
BLOCKS = (17, 45)
"""Cells of the first blocks: densities 0.1 and 0.05 and EMR; then parts of CABS and TADrop and other densities; then
other models."""


class Seed:
    """Models of one seed: other samples in every split, another order of training."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed = seed
        self.folder = folder / f"seed-{seed}"
        self.tasks = load(DATA, seed)
        self._memory: dict[str, ModelsInMemory] = {}
        self._judges: dict[tuple[tuple[str, ...], str], Judge] = {}

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def train(self, name: str) -> None:
        """Fine-tune on one task, unless that is done."""
        head = self.folder / "heads" / f"{name}.safetensors"
        if head.exists():
            return
        training = Training(seed=self.seed)
        if not (self.base / "vocab.txt").exists():
            make_base(self.base, training)
        train_specialist(self.tasks[name], self.base, self.folder / name, head, training)

    def memory(self, dtype: str, models: tuple[str, ...]) -> ModelsInMemory:
        """The models of a cell; kept for the next one, which mostly wants the same."""
        key = f"{dtype} {sorted(models)}"
        if key not in self._memory:
            self._memory = {key: ModelsInMemory(self.base, {n: self.folder / n for n in models}, getattr(torch, dtype))}
        return self._memory[key]

    def judge(self, models: tuple[str, ...], split: str) -> Judge:
        key = tuple(sorted(models)), split
        if key not in self._judges:
            self._judges[key] = Judge(self.base, self.folder / "heads", [self.tasks[n] for n in key[0]], split)
        return self._judges[key]

    def specialists(self) -> dict[str, float]:
        """Each on its own task, of those that were trained."""
        found = {}
        for name in self.tasks:
            if (self.folder / "heads" / f"{name}.safetensors").exists():
                found |= self.judge((name,), "test").accuracies(load_tensors(self.folder / name))
        return found

    def measure(self, cell: Cell) -> dict[str, Any]:
        """A cell's accuracy on test samples, with the factor that is best on validation samples."""
        method, models = Method(cell.title, cell.method, cell.parameters), self.memory(cell.dtype, cell.models)
        test = self.judge(cell.models, "test")
        if cell.method == "emr":
            own = models.own_masks(method, cell.models)
            return {"accuracy": {n: test.accuracies(each.at(1.0), n)[n] for n, each in own.items()}}
        total = self._summed(cell, method, models)
        judge = self.judge(cell.models, "validation")

        def score(factor: float) -> float:
            accuracy = judge.accuracies(total.at(factor))
            return sum(accuracy.values()) / len(accuracy)

        chosen = choose_factor(score)
        return {
            "accuracy": test.accuracies(total.at(chosen.factor)),
            "factor": chosen.factor,
            "at_edge": chosen.at_edge,
            "kept": total.kept,
            "overlap": total.overlap,
            "curve": {str(factor): score for factor, score in chosen.tried.items()},
        }

    def _summed(self, cell: Cell, method: Method, models: ModelsInMemory) -> Sum:
        if cell.alone:
            return added([models.sum(method, [name]) for name in cell.models])
        if cell.energy:
            return models.sum(method, cell.models, [{"weight": weight} for weight in self._weights(cell, models)])
        if cell.suggested:
            return models.sum(method, cell.models, [{"weight": w} for w in suggested_weights(method, cell, models)])
        if is_gini(cell.parameters):
            method, mean = Method(cell.title, cell.method), cell.parameters["density"]["tadrop"]["mean"]
            return models.sum(method, cell.models, [self._densities(name, mean, models) for name in cell.models])
        return models.sum(method, cell.models)

    def _densities(self, name: str, mean: float, models: ModelsInMemory) -> dict[str, Any]:
        """Of every tensor of a model, from the Gini index of its changes, as a recipe says it."""
        tensors = load_tensors(self.folder / name)
        changes = {n: (tensors[n].float() - t.float()).abs() for n, t in models.base.items() if n in tensors}
        evenness = [1.0 - gini(change) for change in changes.values()]
        densities = tadrop.budget_densities(
            evenness, [c.numel() for c in changes.values()], mean, tadrop.TadropDensity().spread
        )
        rules = sorted(zip(changes, densities, strict=True), key=lambda rule: -len(rule[0]))  # a filter finds parts
        return {"density": [{"filter": n, "value": d} for n, d in rules]}

    def _weights(self, cell: Cell, models: ModelsInMemory) -> list[float]:
        """The inverse of each task vector's norm, times their mean."""
        norms = []
        for name in cell.models:
            tensors = load_tensors(self.folder / name)
            norms.append(
                sum(float((tensors[n].float() - t.float()).square().sum()) for n, t in models.base.items()) ** 0.5
            )
        return [sum(norms) / len(norms) / norm for norm in norms]


def suggested_weights(method: Method, cell: Cell, models: ModelsInMemory) -> list[Any]:
    """What `anabranch suggest` makes of the recipe."""
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        file.write(json.dumps(models.recipe(method, cell.models)))  # JSON is YAML
        file.flush()
        return suggest(file.name, MEMORY_BYTES, 1).after


def is_gini(parameters: Mapping[str, Any]) -> bool:
    """Whether densities follow from a statistic that the product does not have."""
    density = parameters.get("density")
    return isinstance(density, Mapping) and density["tadrop"].get("statistic") == "gini"


def gini(magnitudes: torch.Tensor) -> float:
    """Gini index: 0 for equal magnitudes, 0.414 for a Gaussian, towards 1 the fewer there are; NaN for zeros alone."""
    values = magnitudes.double().flatten().sort().values
    total, count = float(values.sum()), values.numel()
    if total == 0:
        return math.nan
    ranks = torch.arange(1, count + 1, dtype=torch.float64)
    return 2 * float(ranks @ values) / (count * total) - (count + 1) / count


def added(sums: list[Sum]) -> Sum:
    """What several sums make together; how much of their masks is shared is not known."""
    changes = {name: functools.reduce(torch.add, (each.changes[name] for each in sums)) for name in sums[0].changes}
    return Sum(sums[0].base, changes, sum(each.kept for each in sums) / len(sums), float("nan"))


@functools.lru_cache(maxsize=1)
def _seed(seed: int, folder: Path) -> Seed:
    prepare_torch()
    return Seed(seed, folder)


def do_cells(seed: int, wanted: list[Cell], folder: Path) -> int:
    """Train what cells need and measure those that are not done; returns how many were."""
    here, done = _seed(seed, folder), 0
    for cell in wanted:
        file = here.folder / "cells" / f"{cell.key}.json"
        if file.exists():
            continue
        for name in cell.models:
            here.train(name)
        begin = time.perf_counter()
        row = {"seed": seed, **asdict(cell), **here.measure(cell), "seconds": time.perf_counter() - begin}
        write_json(file, row)
        done += 1
        print(f"seed {seed}: {cell.group}, {cell.title}: {row['seconds']:.0f} s", flush=True)
    write_json(here.folder / "specialists.json", {"seed": seed, "accuracy": here.specialists()})
    return done


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, so that a run that is killed leaves nothing that looks done."""
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = file.with_suffix(f".{os.getpid()}.tmp")
    whole.write_text(json.dumps(content))
    whole.replace(file)


def blocks(wanted: list[Cell]) -> list[list[Cell]]:
    first, second = BLOCKS
    return [part for part in (wanted[:first], wanted[first:second], wanted[second:]) if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    wanted = list({cell.key: cell for cell in cells()}.values())
    begin = time.perf_counter()
    for block in blocks(wanted):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.processes, context) as pool:
            running = [pool.submit(do_cells, seed, block, options.folder) for seed in range(options.seeds)]
            for each in running:
                each.result()
    print(f"{time.perf_counter() - begin:.0f} s")
    write_results(options.folder, options.results)


if __name__ == "__main__":
    main()
