"""`anabranch search` and `anabranch suggest`: their options, and what these mean together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import click

from ...engine.errors import ResourceError
from ..supervision import supervise

CABS_PLUS = "cabs+"
"""The search of CABS+ (arXiv 2608.12842): what gets worse counts 100 times; CMA-ES from weights of 1, six at a time."""
Decorator = Callable[[Any], Any]


def add_search(cli: click.Group, *shared: Decorator) -> None:
    """Add the commands to a group; `shared` are the decorators that all commands have in common, outermost first."""
    workers = click.option("--workers", type=click.IntRange(min=1), help="Fold threads; default: all cores.")
    _add(cli, "search", _search, [*SEARCH_OPTIONS, workers, *shared])
    _add(cli, "suggest", _suggest, [*SUGGEST_OPTIONS, workers, *shared])


def _add(cli: click.Group, name: str, run: Callable[..., None], decorators: Sequence[Decorator]) -> None:
    def command(**options: Any) -> None:
        run(**options)

    command.__doc__ = run.__doc__
    decorated: Any = command
    for decorator in reversed([cli.command(name=name), *decorators]):
        decorated = decorator(decorated)


_OBJECTIVES = "mean (default), min, task:NAME, weighted:NAME=WEIGHT,... or asymmetric; several: a Pareto set."
SEARCH_OPTIONS: Sequence[Decorator] = (
    click.argument("recipe"),
    click.argument("out"),
    click.option("--evaluate", required=True, metavar="COMMAND", help="Prints scores of {model}; or lm-eval:TASKS."),
    click.option("--evaluate-args", default="", metavar="ARGS", help="More arguments for lm-evaluation-harness."),
    click.option("--objective", "objectives", multiple=True, metavar="FORM", help=_OBJECTIVES),
    click.option("--reference", metavar="RECIPE", help="Whose scores the asymmetric objective compares with."),
    click.option("--sampler", type=click.Choice(["tpe", "cmaes", "random", "grid"]), help="Default: tpe."),
    click.option("--preset", type=click.Choice([CABS_PLUS]), help="The search of a paper; needs --reference."),
    click.option("--trials", type=click.IntRange(min=1), help="Default: 100; with a grid all."),
    click.option("--together", type=click.IntRange(min=1), help="Candidates merged in one reading; default: 1."),
    click.option("--evaluators", type=click.IntRange(min=1), default=1, show_default=True, help="Side by side."),
    click.option("--ray", metavar="local|auto|ADDRESS", default="", help="Evaluate on a Ray cluster."),
    click.option("--insecure-cluster", is_flag=True, help="Use a cluster without token authentication."),
    click.option("--evaluator-gpus", type=click.FloatRange(min=0), default=0.0, help="Of each evaluation with --ray."),
    click.option("--keep", type=click.IntRange(min=1), default=1, show_default=True, help="Best merges that stay."),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
    click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds of one evaluation."),
    click.option(
        "--max-failures", type=click.IntRange(min=0), default=10, show_default=True, help="Failed trials allowed."
    ),
)
SUGGEST_OPTIONS: Sequence[Decorator] = (
    click.argument("recipe"),
    click.option("-o", "file", metavar="FILE", help="Where the recipe goes; default: printed."),
)


def _search(
    recipe: str, out: str, objectives: tuple[str, ...], preset: str | None, as_json: bool, **options: Any
) -> None:
    """Search the space of RECIPE for a good merge, in OUT; goes on where an interrupted search stopped.

    A recipe spans a space with {search: {from: 0.2, to: 2, step: 0.1}} or {search: {choice: [...]}} in place of values.
    Each candidate is merged and handed to COMMAND, which prints {"task": score, ...} as its last line.
    """
    if options["ray"]:
        supervise(options["ray"])
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ResourceError("a search needs optuna", "pip install 'anabranch[search]'") from None
    from ...engine.run import Execution
    from ..ray import RayCluster
    from .models import local_folder
    from .objectives import read_objective
    from .search import Settings, search
    from .study import Sampling

    sampler, together = options["sampler"], options["together"]
    sampling = Sampling(sampler or "tpe", options["seed"], together or 1)
    if preset:
        if objectives or sampler or together:
            raise click.UsageError(f"--preset {preset} decides --objective, --sampler and --together")
        objectives = ("asymmetric",)
        sampling = Sampling("cmaes", options["seed"], together=6, center=1.0, sigma=0.05, population=6)
    settings = Settings(
        recipe=recipe,
        out=local_folder(out),
        command=options["evaluate"],
        command_args=options["evaluate_args"],
        objectives=tuple(read_objective(text) for text in objectives or ("mean",)),
        sampling=sampling,
        trials=options["trials"],
        evaluators=options["evaluators"],
        keep=options["keep"],
        max_failures=options["max_failures"],
        timeout_seconds=options["timeout"],
        reference=options["reference"],
        cluster=RayCluster(options["ray"], options["insecure_cluster"]) if options["ray"] else None,
        evaluator_gpus=options["evaluator_gpus"],
    )

    def say(line: str) -> None:
        if not as_json:
            click.echo(line, err=True)

    results = search(settings, Execution(options["workers"], options["memory"]), say)
    click.echo(json.dumps(results.as_json()) if as_json else str(results))


def _suggest(recipe: str, file: str | None, workers: int | None, memory: int, as_json: bool) -> None:
    """Write RECIPE with weights that need no data: each model gives the same share of its task vector's energy.

    Models are read as a merge reads them, and nothing is merged. All of them together give as much as before.
    """
    from ...engine.storage import open_store
    from .suggest import suggest

    found = suggest(recipe, memory, workers)
    if file is not None:
        folder, name = os.path.split(os.path.abspath(os.path.expanduser(file)))
        open_store(folder).replace(name, found.text().encode())
    if as_json:
        click.echo(json.dumps(found.as_json()))
    elif file is not None:
        click.echo(f"{found}\nrecipe with the new weights: {file}")
    else:
        click.echo(str(found), err=True)
        click.echo(found.text(), nl=False)
