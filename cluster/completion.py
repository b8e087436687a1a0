"""What a shell offers for arguments of the command; nothing here imports more than click does."""

from __future__ import annotations

import os
from collections.abc import Iterator

import click
from click.shell_completion import CompletionItem

RECIPE_ENDINGS = (".yml", ".yaml")


def recipe_files(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Recipe files and folders that begin with what was typed; a folder that is the only one is looked into."""
    found = list(_entries(incomplete))
    while len(found) == 1 and found[0].endswith("/"):
        inside = list(_entries(found[0]))
        if not inside:
            break
        found = inside
    return [CompletionItem(name) for name in found]


def folders(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Whatever folders the shell itself finds."""
    return [CompletionItem(incomplete, type="dir")]


def _entries(typed: str) -> Iterator[str]:
    """Paths as they are typed, folders with a slash at their end; hidden ones only where a dot was typed."""
    folder, slash, start = typed.rpartition("/")
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder + slash) or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if not entry.name.startswith(start) or (entry.name.startswith(".") and not start):
            continue
        if entry.is_dir():
            yield f"{folder}{slash}{entry.name}/"
        elif entry.name.endswith(RECIPE_ENDINGS):
            yield f"{folder}{slash}{entry.name}"
