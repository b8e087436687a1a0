"""The `anabranch` command: options, exit codes, and what is printed where. Heavy modules are imported when needed."""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from ..engine.errors import AnabranchError, Interrupted, ResourceError

Command = TypeVar("Command", bound=Callable[..., None])
RESUMES = "the same command goes on where it stopped"


class Size(click.ParamType[int]):
    """A number of bytes: 2GiB, 512MiB, 1.5GB, or plain."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from pydantic import ByteSize, TypeAdapter, ValidationError

        try:
            return int(TypeAdapter(ByteSize).validate_python(value))
        except ValidationError:
            self.fail(f"{value!r} is not a size such as 2GiB, 512MiB or 1.5GB", param, ctx)


def reported(command: Command) -> Command:
    """Add --debug, and turn every way to end badly into a message and an exit code."""

    @click.option("--debug", is_flag=True, help="Show a traceback with every error.")
    @functools.wraps(command)
    def wrapper(*args: Any, debug: bool, **options: Any) -> None:
        try:
            command(*args, **options)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except BaseException as error:  # noqa: BLE001 - every way to end has an exit code
            if debug:
                import traceback

                traceback.print_exc()
            sys.exit(_report(error, as_json=bool(options.get("as_json")), debug=debug))

    return wrapper  # type: ignore[return-value]


def _report(error: BaseException, as_json: bool, debug: bool) -> int:
    """Say what went wrong, on standard error and for --json on standard output; returns the exit code."""
    if not isinstance(error, AnabranchError):
        error = _explained(error, debug)
    for line in (f"error: {error.message}", *([f"  {error.hint}"] if error.hint else [])):
        click.echo(line, err=True)
    if as_json:
        problem = {"outcome": "failed", "error": error.message, "hint": error.hint, "exit_code": error.exit_code}
        click.echo(json.dumps(problem))
    return error.exit_code


def _explained(error: BaseException, debug: bool) -> AnabranchError:
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted", RESUMES)
    if isinstance(error, MemoryError):
        return ResourceError(
            "the machine has no memory left", f"free some, or use fewer workers or a smaller --memory; {RESUMES}"
        )
    where = "see the traceback above" if debug else "run it again with --debug for a traceback"
    return AnabranchError(
        f"this is a bug in anabranch: {type(error).__name__}: {error}", f"{where}, and report it with the recipe"
    )


memory_option = click.option(
    "--memory", type=Size(), default="2GiB", show_default=True, help="Memory limit of a worker process."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="anabranch")
def cli() -> None:
    """Merge fine-tuned checkpoints of any size on machines that are far smaller than they are."""


@cli.command()
@click.argument("recipe")
@click.argument("out")
@click.option("--workers", type=click.IntRange(min=1), help="Fold threads; default: all cores.")
@memory_option
@json_option
@reported
def plan(recipe: str, out: str, workers: int | None, memory: int, as_json: bool) -> None:
    """Show what a merge of RECIPE into OUT would read, write and need."""
    from .commands import Execution, check_disk, prepare

    job = prepare(recipe, out, Execution(workers, memory))
    if as_json:
        check_disk([job])
        click.echo(json.dumps(job.report.as_json()))
        return
    click.echo(str(job.report))
    check_disk([job])


@cli.command()
@click.argument("recipes", metavar="RECIPE...", nargs=-1, required=True)
@click.argument("out")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Fold threads, or actors with --ray; default: all that fit."
)
@memory_option
@click.option("--ray", metavar="local|auto|ADDRESS", default="", help="Merge on a Ray cluster.")
@click.option("--insecure-cluster", is_flag=True, help="Use a cluster without token authentication.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--profile", metavar="FILE", help="Write a trace for chrome://tracing or ui.perfetto.dev.")
@json_option
@reported
def merge(recipes: tuple[str, ...], out: str, profile: str | None, as_json: bool, **options: Any) -> None:
    """Merge the models of RECIPE into OUT; goes on where an interrupted run stopped.

    Several recipes are merged one after the other, each into OUT/<name of its recipe file>.
    """
    from ..engine.meter import Meter
    from .commands import Execution, check_disk, merge_job, outputs_of, prepare
    from .progress import open_progress
    from .trace import write_trace

    execution = Execution(memory_bytes=options.pop("memory"), **options)
    jobs = [prepare(recipe, to, execution) for recipe, to in zip(recipes, outputs_of(recipes, out), strict=True)]
    check_disk(jobs)
    reports = []
    meters = [Meter(keep_spans=profile is not None) for _ in jobs]
    for job, meter in zip(jobs, meters, strict=True):
        names = [shard.name for shard in job.inputs.plan.shards]
        with open_progress(meter, names, silent=as_json) as progress:
            reports.append(merge_job(job, execution, progress, meter))
        if not as_json:
            click.echo(str(reports[-1]))
    if profile is not None:
        write_trace(profile, meters)
    if as_json:
        results = [report.as_json() for report in reports]
        click.echo(json.dumps(results[0] if len(results) == 1 else {"outcome": "done", "merges": results}))


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, _terminate)
    cli(prog_name="anabranch")


if __name__ == "__main__":
    main()
