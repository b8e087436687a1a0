"""Fine-tune, merge and measure: `make evidence`, or python -m benchmarks.quality.run --set texts --seeds 5

Every specialist and every cell is kept in a file of its own as soon as it is done; the same command goes on from there.
Blocks of cells are done one after the other, each for every seed.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from anabranch.cluster.demo.factors import Method, choose_factor
from anabranch.cluster.demo.models import Judge, load_tensors, prepare_torch
from anabranch.cluster.demo.models_in_memory import ModelsInMemory, Sum
from anabranch.cluster.search.suggest import suggest
from anabranch.engine.methods import tadrop

from .cells import Cell
from .report import FOLDER, RESULTS, write_results
from .sets import SETS

DATA = Path(".demo-data")
MEMORY_BYTES = 2 << 30
AT_ONCE = 6
"""Cells of one job at most: few enough for all processes to have work, enough to read models seldom."""


class Models:
    """A base and its specialists of one seed: other samples in every split, another order of training.

    Args:
        of: a name in SETS.
        seed: counted from 0.
        layers: how many of the published encoder's.
        folder: of all that is kept; this seed's is named after what its models are made of.
    """

    def __init__(self, of: str, seed: int, layers: int, folder: Path) -> None:
        self._set = SETS[of]
        self._training = replace(self._set.training[layers], seed=seed)
        made_of = repr((self._training, self._set.sizes)).encode()
        name = f"seed-{seed}-layers-{layers}-{hashlib.sha256(made_of).hexdigest()[:8]}"
        self.folder = folder / self._set.place / name
        self.tasks = self._set.load(DATA, seed, self._set.sizes)
        self._memory: dict[str, ModelsInMemory] = {}
        self._judges: dict[tuple[tuple[str, ...], str], Judge] = {}

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def make_base(self) -> None:
        """Unless that is done."""
        if not self.base.exists():
            begun = self.base.with_suffix(".tmp")
            shutil.rmtree(begun, ignore_errors=True)
            self._set.make_base(DATA, begun, self._training)
            begun.rename(self.base)

    def train(self, name: str) -> None:
        """Fine-tune on one task, unless that is done."""
        head = self.folder / "heads" / f"{name}.safetensors"
        if not head.exists():
            self._set.train_specialist(self.tasks[name], self.base, self.folder / name, head, self._training)

    def memory(self, dtype: str, models: tuple[str, ...]) -> ModelsInMemory:
        """The models of a cell; kept for the next one, which mostly wants the same."""
        key = f"{dtype} {sorted(models)}"
        if key not in self._memory:
            self._memory = {key: ModelsInMemory(self.base, {n: self.folder / n for n in models}, getattr(torch, dtype))}
        return self._memory[key]

    def judge(self, models: tuple[str, ...], split: str) -> Judge:
        key = tuple(sorted(models)), split
        if key not in self._judges:
            tasks = [self.tasks[n] for n in key[0]]
            self._judges[key] = self._set.judge(self.base, self.folder / "heads", tasks, split)
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
def _models(of: str, seed: int, layers: int, folder: Path) -> Models:
    prepare_torch()
    return Models(of, seed, layers, folder)


def make_base_of(of: str, folder: Path, seed: int, layers: int) -> None:
    _models(of, seed, layers, folder).make_base()


def train(of: str, folder: Path, seed: int, layers: int, name: str) -> None:
    _models(of, seed, layers, folder).train(name)


def measure(of: str, folder: Path, seed: int, wanted: Sequence[Cell]) -> None:
    """Measure those cells of one encoder that are not done."""
    here = _models(of, seed, wanted[0].layers, folder)
    for cell in wanted:
        file = here.folder / "cells" / f"{cell.key}.json"
        if file.exists():
            continue
        begin = time.process_time()
        row = {"seed": seed, **asdict(cell), **here.measure(cell), "cpu_seconds": time.process_time() - begin}
        write_json(file, row)
        print(f"seed {seed}: {cell.group}, {cell.title}: {row['cpu_seconds']:.0f} s of CPU", flush=True)


def measure_specialists(of: str, folder: Path, seed: int, layers: int) -> None:
    here = _models(of, seed, layers, folder)
    row = {"seed": seed, "layers": layers, "accuracy": here.specialists()}
    write_json(here.folder / "specialists.json", row)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, so that a run that is killed leaves nothing that looks done."""
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = file.with_suffix(f".{os.getpid()}.tmp")
    whole.write_text(json.dumps(content))
    whole.replace(file)


def blocks(of: str, layers: int) -> list[Sequence[Cell]]:
    """Cells of encoders of that size, those that are to be done for every seed before the next ones begin together."""
    wanted = list({cell.key: cell for cell in SETS[of].cells() if cell.layers == layers}.values())
    ends = SETS[of].blocks.get(layers, ())
    return [wanted[first:end] for first, end in itertools.pairwise((0, *ends, len(wanted)))]


def alike(wanted: Iterable[Cell]) -> list[list[Cell]]:
    """Cells that need the same models, in lists for one process each."""
    lists: dict[tuple[object, ...], list[list[Cell]]] = {}
    for cell in wanted:
        of_models = lists.setdefault((cell.layers, cell.dtype, tuple(sorted(cell.models))), [[]])
        if len(of_models[-1]) == AT_ONCE:
            of_models.append([])
        of_models[-1].append(cell)
    return [each for of_models in lists.values() for each in of_models]


def do_block(pool: Executor, of: str, seeds: Sequence[int], block: Sequence[Cell], folder: Path) -> None:
    """Bases, then the specialists that the block's cells need, then the cells; what is done is not done again."""
    bases = sorted({(seed, cell.layers) for seed in seeds for cell in block})
    needed = sorted({(cell.layers, name) for cell in block for name in cell.models})
    in_order: tuple[tuple[Callable[..., None], Iterable[tuple[Any, ...]]], ...] = (
        (make_base_of, bases),
        (train, ((seed, layers, name) for seed in seeds for layers, name in needed)),
        (measure, ((seed, each) for each in alike(block) for seed in seeds)),
        (measure_specialists, bases),
    )
    for do, jobs in in_order:
        for running in [pool.submit(do, of, folder, *job) for job in jobs]:
            running.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=sorted(SETS), default="texts")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--layers", type=int, help="of encoders; the fewest that the set has, unless it is said")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    trained = sorted(SETS[options.set].training)
    layers = options.layers or trained[0]
    if layers not in trained:
        parser.error(f"--layers of {options.set} is one of {trained}")
    begin = time.perf_counter()
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        for block in blocks(options.set, layers):
            do_block(pool, options.set, range(options.seeds), block, options.folder)
    print(f"{time.perf_counter() - begin:.0f} s")
    write_results(SETS[options.set], options.folder, options.results)


if __name__ == "__main__":
    main()
