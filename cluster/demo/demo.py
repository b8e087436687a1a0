"""`anabranch demo`: train small models, merge them by the normal command, and print what every merge can do."""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from ...engine.errors import AnabranchError, OutputConflictError, ResourceError
from ...engine.run import available_cores

if TYPE_CHECKING:
    from .models import Training

DENSITY = 0.15
"""Six masks of this density fit beside each other (6 x 0.15 < 1), so conflict-aware masks need not overlap."""
LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2)
"""Factors of the summed task vectors; each method gets the one that is best on the validation samples."""
MEMORY = "1GiB"
SHARD_SIZE = "100kB"
MARKER = "anabranch-demo.json"
"""Says that a folder belongs to the demo, and which training made its models."""
TITLE_WIDTH = 20


@dataclass(frozen=True)
class Method:
    """One row of merges."""

    title: str
    merge_method: str
    is_sparse: bool = True
    by_tadrop: bool = False
    """Each tensor's density follows from its distribution; their mean is DENSITY all the same."""

    @property
    def name(self) -> str:
        return self.title.lower().replace(" + ", "_").replace(" ", "_")


METHODS = (
    Method("task arithmetic", "task_arithmetic", is_sparse=False),
    Method("magnitude", "magnitude"),
    Method("TIES", "ties"),
    Method("DARE", "dare_linear"),
    Method("CABS", "cabs"),
    Method("CABS + TADrop", "cabs", by_tadrop=True),
)
OURS = ("CABS", "CABS + TADrop")
EMR = "EMR, own masks"
"""A model per task instead of one for all, so it is no competitor of the others."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    title: str
    accuracy: Mapping[str, float]
    """Fraction of right answers on the test samples of each task."""
    factor: float | None = None
    density: float | None = None
    """Fraction of task-vector elements kept, mean over the models."""
    overlap: float | None = None
    """|A and B| / |A or B| of the masks, mean over all pairs of models."""
    seconds: float | None = None
    peak_bytes: int | None = None

    @property
    def mean(self) -> float:
        return sum(self.accuracy.values()) / len(self.accuracy)


def main(out: str | None = None, fresh: bool = False, training: Training | None = None) -> list[Row]:
    """Train (or find trained) models in a folder, merge them, print the table; returns its rows.

    Args:
        out: folder for models, recipes and merges; None: a new temporary folder.
        fresh: train again even when the folder holds models of the same training.
        training: how long to train; None: the demo's own.

    Raises:
        ResourceError: transformers or scikit-learn is not installed.
        OutputConflictError: the folder holds something else.
        AnabranchError: a merge failed, with its own message.
    """
    try:
        from . import models
    except ImportError as error:
        raise ResourceError(
            f"the demo trains models, and {error.name} is missing", "pip install 'anabranch[demo]'"
        ) from None
    models.prepare_torch()
    folder = Path(out) if out else Path(tempfile.mkdtemp(prefix="anabranch-demo-"))
    click.echo(f"models, recipes and merges are in {folder}")
    demo = Demo(folder.absolute(), training or models.Training())
    demo.train(fresh)
    rows = list(demo.rows())
    click.echo("")
    for line in table(rows):
        click.echo(line)
    click.echo("")
    for line in remarks(rows, demo.test_counts()):
        click.echo(line)
    (folder / "table.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return rows


class Demo:
    """The steps of the demo in one folder."""

    def __init__(self, folder: Path, training: Training) -> None:
        self.folder = folder
        self.training = training
        self.models = folder / "models"

    # -- training ----------------------------------------------------------------------------------------------------

    def train(self, fresh: bool) -> None:
        """Train base and specialists, unless the same training has already left them here."""
        from .models import TASKS, train_base, train_specialist

        marker = self.folder / MARKER
        wanted = {"training": asdict(self.training), "tasks": list(TASKS)}
        found = json.loads(marker.read_text()) if marker.exists() else None
        if found is None and self.folder.exists() and any(self.folder.iterdir()):
            raise OutputConflictError(
                f"{self.folder}: not empty, and not made by a demo", "choose a new folder with --out"
            )
        if found == wanted and not fresh:
            click.echo("models: trained before (--fresh trains them again)")
            return
        shutil.rmtree(self.models, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        marker.write_text("{}")  # ours from here on; complete only when all models are
        begin = time.perf_counter()
        train_base(self.models / "base", self.training)
        click.echo(f"base: trained in {time.perf_counter() - begin:.0f} s")
        begin = time.perf_counter()
        with ProcessPoolExecutor(min(2, available_cores()), mp_context=multiprocessing.get_context("spawn")) as pool:
            jobs = [
                pool.submit(train_specialist, name, self.models / "base", self.models / name, self.training)
                for name in TASKS
            ]
            for job in jobs:
                job.result()
        click.echo(f"{len(TASKS)} specialists: trained in {time.perf_counter() - begin:.0f} s")
        marker.write_text(json.dumps(wanted))

    def test_counts(self) -> dict[str, int]:
        """Test samples of each task."""
        from .models import load_tasks

        return {task.name: len(task.test.classes) for task in load_tasks().values()}

    # -- merging -----------------------------------------------------------------------------------------------------

    def rows(self) -> Iterator[Row]:
        """The base, the specialists and the merges, measured on the test samples."""
        from .models import TASKS, accuracies

        for name in ("base", *TASKS):
            title = name if name == "base" else f"{name} specialist"
            yield Row(title, accuracies(self.models / name, "test"))
        best = self.choose_factors()
        merged = self.folder / "merged"
        shutil.rmtree(merged, ignore_errors=True)
        for method in METHODS:
            out = merged / method.name
            recipe = self.write_recipe(method, best[method], self.folder / "recipes" / f"{method.name}.yml")
            report = anabranch("merge", recipe, out, "--memory", MEMORY, "--json")
            anabranch("verify", out, *(["--load"] if method.title == OURS[0] else []))
            pairs = [share for model in report["models"] for share in model["overlap"].values()]
            kept = [model["kept_fraction"] for model in report["models"]]
            yield Row(
                method.title,
                accuracies(out, "test"),
                best[method],
                sum(kept) / len(kept),
                sum(pairs) / len(pairs),
                report["seconds"],
                report["peak_rss_bytes"],
            )
        yield self.own_masks(merged)
        click.echo(f"verified: every byte of {len(METHODS) + 1} merges, and that {OURS[0]} loads")

    def own_masks(self, merged: Path) -> Row:
        """EMR-Merging: every task by the model that its mask makes of base and unified task vector."""
        from .models import TASKS, accuracies

        recipe = {"merge_method": "emr", "base_model": str(self.models / "base"), "models": self._specialists()}
        path = write_yaml(recipe, self.folder / "recipes" / "emr.yml")
        anabranch("merge", path, merged / "emr", "--memory", MEMORY, "--json")
        anabranch("verify", merged / "emr")
        accuracy = {}
        for name in TASKS:
            model = f"{self.models / 'base'}+{merged / 'emr' / name}"
            recipe = {"merge_method": "passthrough", "models": [{"model": model}]}
            path = write_yaml(recipe, self.folder / "recipes" / f"emr-{name}.yml")
            anabranch("merge", path, merged / f"emr-{name}", "--memory", MEMORY, "--json")
            accuracy[name] = accuracies(merged / f"emr-{name}", "test")[name]
        return Row(EMR, accuracy)

    def _specialists(self) -> list[dict[str, str]]:
        from .models import TASKS

        return [{"model": str(self.models / name)} for name in TASKS]

    def choose_factors(self) -> dict[Method, float]:
        """Merge by every method with every lambda in one command, and keep what answers most validation samples."""
        from .models import accuracies

        trials = self.folder / "trials"
        shutil.rmtree(trials, ignore_errors=True)
        begin = time.perf_counter()
        recipes = {
            (method, factor): self.write_recipe(method, factor, trials / f"{method.name}-{factor}.yml")
            for method in METHODS
            for factor in LAMBDAS
        }
        anabranch("merge", *recipes.values(), trials / "merged", "--memory", MEMORY, "--json")
        best: dict[Method, tuple[float, float]] = {}
        for (method, factor), recipe in recipes.items():
            found = accuracies(trials / "merged" / recipe.stem, "validation")
            mean = sum(found.values()) / len(found)
            best[method] = max(best.get(method, (0.0, 0.0)), (mean, -factor))  # equal means: the smaller lambda
        shutil.rmtree(trials)
        click.echo(f"lambda: chosen among {len(recipes)} merges in {time.perf_counter() - begin:.0f} s")
        return {method: -factor for method, (_, factor) in best.items()}

    def write_recipe(self, method: Method, factor: float, path: Path) -> Path:
        """Write what a user would write: every tensor is treated alike, everything else is the method's default."""
        parameters: dict[str, object] = {"lambda": factor}
        if method.is_sparse:
            parameters["density"] = {"tadrop": {"mean": DENSITY}} if method.by_tadrop else DENSITY
        recipe = {
            "merge_method": method.merge_method,
            "base_model": str(self.models / "base"),
            "models": self._specialists(),
            "parameters": parameters,
            "output": {"shard_size": SHARD_SIZE},
        }
        return write_yaml(recipe, path)


def write_yaml(recipe: Mapping[str, Any], path: Path) -> Path:
    """A recipe file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
    return path


def anabranch(*arguments: object) -> Any:
    """Run the command as a user would, in a process of its own; returns its JSON, if it printed any.

    Raises:
        AnabranchError: it ended badly.
    """
    command = [sys.executable, "-m", "anabranch.cluster.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        shown = " ".join(map(str, arguments[:3]))
        raise AnabranchError(f"anabranch {shown} ended with {done.returncode}", done.stderr.strip())
    return json.loads(done.stdout) if "--json" in arguments else None


# -- the table -------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The table's lines: accuracy in per cent, seconds of the merge, peak memory of its process in MiB."""
    tasks = list(rows[0].accuracy)
    accuracies = "".join(f"  {name}" for name in tasks)
    yield f"{'accuracy in %':<{TITLE_WIDTH}}{accuracies}  mean  lambda  density  overlap  seconds  MiB"
    merges = False
    for row in rows:
        if row.factor is not None and not merges:
            merges = True
            yield ""
        cells = [f"{100 * row.accuracy[name]:{len(name) + 2}.1f}" for name in tasks]
        cells.append(f"{100 * row.mean:6.1f}")
        if row.factor is not None:
            cells += [f"{row.factor:8.1f}", f"{row.density:9.3f}", f"{row.overlap:9.3f}"]
            cells += [f"{row.seconds:9.2f}", f"{(row.peak_bytes or 0) >> 20:5}"]
        yield f"{row.title:<{TITLE_WIDTH}}" + "".join(cells)


def remarks(rows: Sequence[Row], test_counts: Mapping[str, int]) -> Iterator[str]:
    """What the table shows and what it cannot show, in words that follow from its numbers."""
    merges = [row for row in rows if row.factor is not None]
    best = max(merges, key=lambda row: row.mean)
    for row in merges:
        if row.title not in OURS:
            continue
        others = max((other for other in merges if other.title not in OURS), key=lambda other: other.mean)
        gap = 100 * (row.mean - others.mean)
        if gap > 0:
            yield f"{row.title}: {gap:.1f} points above the best other method, {others.title}."
        else:
            yield f"{row.title} does not win here: {-gap:.1f} points below {others.title}."
    if any(row.title == EMR for row in rows):
        made = "the base, one unified task vector for all, and a bit per parameter and a factor for the task"
        yield f"{EMR}: each task is answered by a model of its own, made of {made}."
    spread = [best.accuracy[name] * (1 - best.accuracy[name]) / count for name, count in test_counts.items()]
    error = 100 * math.sqrt(sum(spread)) / len(spread)
    counts = ", ".join(f"{name} {count}" for name, count in test_counts.items())
    yield f"Test samples: {counts}. The standard error of a mean is about {error:.1f} points; one seed."
    yield "lambda was chosen for each method on other samples, the validation split; all else is the default."
    yield "Accuracies are the same on every run; seconds and MiB are this run's."
