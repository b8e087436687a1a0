"""`anabranch demo`: fine-tune a published model on four tasks, merge it by the normal command, print the table."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from ...engine.errors import AnabranchError, OutputConflictError, ResourceError
from .texts import TASKS, Task, load_tasks

if TYPE_CHECKING:
    from .models import Training

DENSITY = 0.1
"""Four masks of this density fit beside each other (4 x 0.1 < 1), so conflict-aware masks need not overlap."""
LAMBDAS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.0, 16.0, 22.0, 32.0)
"""Factors of the summed task vectors; each method gets the one that is best on the validation samples."""
FIRST = 6
"""Every method is tried with so many factors; more follow until its best has a worse one on either side."""
MORE = 2
"""Factors that are tried at once, where the largest so far was the best."""
MEMORY = "1GiB"
SHARD_SIZE = "20MB"
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
SPECIALISTS = "specialists"
"""Each on its own task; what a merge would like to reach."""
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


def main(texts: str, out: str | None = None, fresh: bool = False, training: Training | None = None) -> list[Row]:
    """Fine-tune models in a folder (or find them there), merge them, print the table; returns its rows.

    Args:
        texts: the wheel that holds the tasks, see `texts.WHEEL`.
        out: folder for models, recipes and merges; None: a new temporary folder.
        fresh: train again even when the folder holds models of the same training.
        training: how long to train; None: the demo's own.

    Raises:
        ResourceError: transformers or the package of the pretrained model is not installed.
        InputError: the wheel is missing or another one.
        OutputConflictError: the folder holds something else.
        AnabranchError: a merge failed, with its own message.
    """
    try:
        from . import models

        models.published()
    except ImportError as error:
        raise ResourceError(
            f"the demo trains models, and {error.name} is missing", "pip install 'anabranch[demo]'"
        ) from None
    models.prepare_torch()
    tasks = load_tasks(Path(texts))
    folder = Path(out) if out else Path(tempfile.mkdtemp(prefix="anabranch-demo-"))
    click.echo(f"models, recipes and merges are in {folder}")
    demo = Demo(folder.absolute(), tasks, training or models.Training())
    demo.train(fresh)
    rows = list(demo.rows())
    click.echo("")
    for line in table(rows):
        click.echo(line)
    click.echo("")
    for line in remarks(rows, {name: len(task.test.classes) for name, task in tasks.items()}):
        click.echo(line)
    (folder / "table.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return rows


class Demo:
    """The steps of the demo in one folder."""

    def __init__(self, folder: Path, tasks: Mapping[str, Task], training: Training) -> None:
        self.folder = folder
        self.tasks = tasks
        self.training = training
        self.models = folder / "models"
        self.heads = folder / "heads"

    # -- training ----------------------------------------------------------------------------------------------------

    def train(self, fresh: bool) -> None:
        """Make the base and fine-tune the specialists, unless the same training has already left them here."""
        from .models import make_base, train_specialist

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
        make_base(self.models / "base", self.training)
        begin = time.perf_counter()
        for name, task in self.tasks.items():
            train_specialist(task, self.models / "base", self.models / name, self._head(name), self.training)
        click.echo(f"{len(TASKS)} specialists: trained in {time.perf_counter() - begin:.0f} s")
        marker.write_text(json.dumps(wanted))

    def _head(self, name: str) -> Path:
        return self.heads / f"{name}.safetensors"

    def measure(self, model: Path, split: str, only: str | None = None) -> dict[str, float]:
        """Accuracy of an encoder with each task's own head, at all tasks or one."""
        from .models import accuracies

        tasks = [task for name, task in self.tasks.items() if only in (None, name)]
        return accuracies(model, self.heads, tasks, split)

    # -- merging -----------------------------------------------------------------------------------------------------

    def rows(self) -> Iterator[Row]:
        """The base, the specialists and the merges, measured on the test samples."""
        yield Row("base", self.measure(self.models / "base", "test"))
        yield Row(
            SPECIALISTS,
            {name: self.measure(self.models / name, "test", name)[name] for name in TASKS},
        )
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
                self.measure(out, "test"),
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
            accuracy[name] = self.measure(merged / f"emr-{name}", "test", name)[name]
        return Row(EMR, accuracy)

    def _specialists(self) -> list[dict[str, str]]:
        return [{"model": str(self.models / name)} for name in TASKS]

    def choose_factors(self) -> dict[Method, float]:
        """Merge by every method with growing lambda, and keep what answers most validation samples."""
        begin = time.perf_counter()
        means: dict[Method, list[float]] = {method: [] for method in METHODS}
        waiting = {method: list(LAMBDAS[:FIRST]) for method in METHODS}
        while waiting:
            for method, found in self.try_factors(waiting).items():
                means[method] += found
            waiting = {
                method: list(LAMBDAS[len(means[method]) :][:MORE]) for method in waiting if best_at_end(means[method])
            }
            waiting = {method: factors for method, factors in waiting.items() if factors}
        best = {method: found.index(max(found)) for method, found in means.items()}  # equal means: the smaller lambda
        for method, i in best.items():
            if i == 0 or best_at_end(means[method]):
                click.echo(
                    f"{method.title}: best with lambda {LAMBDAS[i]}, an end of what was tried; it may lie beyond"
                )
        count = sum(map(len, means.values()))
        click.echo(f"lambda: chosen among {count} merges in {time.perf_counter() - begin:.0f} s")
        return {method: LAMBDAS[i] for method, i in best.items()}

    def try_factors(self, factors: Mapping[Method, Sequence[float]]) -> dict[Method, list[float]]:
        """Merge by every method with every factor in one command; mean accuracy on validation samples of each."""
        trials = self.folder / "trials"
        shutil.rmtree(trials, ignore_errors=True)
        recipes = {
            (method, factor): self.write_recipe(method, factor, trials / f"{method.name}-{factor}.yml")
            for method, wanted in factors.items()
            for factor in wanted
        }
        anabranch("merge", *recipes.values(), trials / "merged", "--memory", MEMORY, "--json")
        found: dict[Method, list[float]] = {method: [] for method in factors}
        for (method, _), recipe in recipes.items():
            accuracy = self.measure(trials / "merged" / recipe.stem, "validation")
            found[method].append(sum(accuracy.values()) / len(accuracy))
        shutil.rmtree(trials)
        return found

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


def best_at_end(means: Sequence[float]) -> bool:
    """Whether the last factor tried was (as good as) the best."""
    return means[-1] == max(means)


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
    kept = [f"{row.title} {100 * row.density:.1f}" for row in merges if row.title in OURS and row.density is not None]
    if len(kept) == len(OURS):
        yield f"Elements kept, in %: {', '.join(kept)}. Where shares differ, the gap is not the method's alone."
    if any(row.title == EMR for row in rows):
        made = "the base, one unified task vector for all, and a bit per parameter and a factor for the task"
        yield f"{EMR}: each task is answered by a model of its own, made of {made}."
    spread = [best.accuracy[name] * (1 - best.accuracy[name]) / count for name, count in test_counts.items()]
    error = 100 * math.sqrt(sum(spread)) / len(spread)
    counts = ", ".join(f"{name} {count}" for name, count in test_counts.items())
    yield (
        f"Test samples: {counts}. The standard error of a mean is about {error:.1f} points; one seed, "
        "so smaller differences say nothing."
    )
    yield "lambda was chosen for each method on other samples, the validation split; all else is the default."
    yield "Accuracies are the same on every run; seconds and MiB are this run's."
