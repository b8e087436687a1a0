"""`anabranch push`: a finished output goes to a repository of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from .completion import folders
from .streams import tell

Decorator = Callable[[Any], Any]


def add_push(cli: click.Group, *shared: Decorator) -> None:
    """Add the command to a group; `shared` are decorators that all commands have in common, outermost first."""

    def command(**options: Any) -> None:
        _run(**options)

    command.__doc__ = _run.__doc__
    decorators = [
        cli.command(name="push"),
        click.argument("out", shell_complete=folders),
        click.argument("repository", metavar="hf://OWNER/NAME"),
        click.option("--revision", default="main", show_default=True, help="The branch; made where it is missing."),
        click.option("--public", is_flag=True, help="A new repository can be seen by all; an old one may be."),
        click.option(
            "--replace", is_flag=True, help="Take the files of another model there away, with the same commit."
        ),
        *shared,
    ]
    decorated: Any = command
    for decorator in reversed(decorators):
        decorated = decorator(decorated)


def _run(out: str, repository: str, revision: str, public: bool, replace: bool, as_json: bool) -> None:
    """Upload the finished output OUT to a repository of the Hugging Face hub; private unless told otherwise.

    One commit makes all files visible; before it nothing is. Run again it goes on: what the hub has is not uploaded
    again. The token is that of `hf auth login`, or HF_TOKEN.
    """
    from ..engine.output import open_outputs, push
    from .progress import Tally, open_progress

    outputs, tally = open_outputs(out), Tally()
    with open_progress(tally.read, as_json) as progress:
        progress.phase("push", sum(each.size_bytes for each in outputs), 0)
        done = push(outputs, repository, revision=revision, public=public, replace=replace, progress=tally.add)
    if as_json:
        tell(json.dumps({"outcome": "already there" if done.already_there else "pushed", **asdict(done)}))
    elif done.already_there:
        tell(f"{done.url} has all of it; nothing was done")
    else:
        tell(
            f"{done.files} files, {done.size_bytes} bytes, are in {done.url}; {done.uploaded_bytes} bytes were uploaded"
        )
