"""`anabranch report` and the `--report` of other commands: where a report goes, and in which form."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ...engine.errors import RecipeError, ResourceError
from ..completion import folders
from ..streams import tell

if TYPE_CHECKING:
    from ...engine.run import MergeReport
    from .page import Page

Decorator = Callable[[Any], Any]
Format = Literal["html", "png", "svg"]
FORMATS: tuple[Format, ...] = ("html", "png", "svg")
NEEDED = "install what draws pictures: pip install 'anabranch[report]'"


def report_option(name: str, text: str, parameter: str = "report_file") -> Decorator:
    """An option for the file of a report; its ending says in which form."""
    return click.option(name, parameter, metavar="FILE", help=f"{text}: FILE.html, FILE.png or FILE.svg.")


def check_report_file(file: str | None, given: Format | None = None) -> Format:
    """The form of a report, before anything else is done.

    Raises:
        RecipeError: the file's ending is none that is known, or it is a folder.
        ResourceError: what draws pictures is not installed.
    """
    ending = Path(file or "report.html").suffix.removeprefix(".").lower()
    found = given or next((each for each in FORMATS if each == ending), None)
    if found is None:
        raise RecipeError(f"{file}: a report ends with .html, .png or .svg, not with {ending!r}", "or give --format")
    if file is not None and os.path.isdir(file):
        raise RecipeError(f"{file} is a folder, expected the name of a file, such as report.html")
    try:
        import altair as _altair  # noqa: F401
        import vl_convert as _vl_convert  # noqa: F401
    except ImportError as error:
        raise ResourceError(f"reports need {error.name}, which is not installed here", NEEDED) from None
    return found


def write_report(page: Page, file: str, form: Format) -> int:
    """Write a report, whole or not at all; returns its bytes.

    Raises:
        ResourceError: the file cannot be written.
    """
    from ...engine.storage import open_store
    from .page import render
    from .pictures import draw

    data = render(page) if form == "html" else draw(page.figures, page.title, form)
    folder, slash, name = file.rpartition("/")
    open_store(folder + slash or ".", create=True).replace(name, data)
    return len(data)


def write_merge_reports(reports: Sequence[MergeReport], file: str, form: Format) -> list[str]:
    """The report of each finished merge, with where its time went; returns the files.

    Raises:
        ResourceError: a file cannot be written.
    """
    from ...engine.output import open_outputs
    from .output import output_page
    from .run import run_figures, run_section

    written = []
    for report in reports:
        [output] = open_outputs(report.out)
        own = file if len(reports) == 1 else _beside(file, report.out.rstrip("/").rpartition("/")[2])
        write_report(output_page(output, [run_section(report)], run_figures(report)), own, form)
        written.append(own)
    return written


def _beside(file: str, name: str) -> str:
    """The file for one of several outputs."""
    stem, dot, ending = file.rpartition(".")
    return f"{stem}-{name}{dot}{ending}"


def add_report(cli: click.Group, json_option: Decorator, reported: Decorator) -> None:
    """Add the command to a group."""

    def command(out: str, report_file: str | None, form: Format | None, as_json: bool) -> None:
        from ...engine.output import open_outputs
        from .output import output_page

        form = check_report_file(report_file, form)
        written = []
        for output in open_outputs(out):
            file = report_file or f"{output.name.rstrip('/') or 'anabranch'}.report.{form}"
            if report_file and output.name:
                file = _beside(report_file, output.name.rstrip("/"))
            written.append((output.store.url, file, write_report(output_page(output), file, form)))
        if as_json:
            reports = [{"out": url, "report": file, "bytes": size} for url, file, size in written]
            tell(json.dumps({"outcome": "done", "reports": reports}))
            return
        for url, file, size in written:
            tell(f"{url}: report in {file}, {size} bytes")

    command.__doc__ = _DOC
    decorators = [
        cli.command(name="report"),
        click.argument("out", shell_complete=folders),
        report_option("--out", "Where the report goes (default: anabranch.report.html here)"),
        click.option("--format", "form", type=click.Choice(FORMATS), help="Instead of what the file's ending says."),
        json_option,
        reported,
    ]
    decorated: Any = command
    for decorator in reversed(decorators):
        decorated = decorator(decorated)


_DOC = """Show what the merge in OUT did: a page with pictures that loads nothing from a network.

Density, kept share and overlap by layer and kind of tensor, norms before and after, what models share, and which
tensors were copied and why. The page is one file for any browser; --out FILE.png and FILE.svg hold the pictures alone.
"""
