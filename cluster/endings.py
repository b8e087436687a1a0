"""Every way for a command to end badly, as an error with words, a hint and an exit code."""

from __future__ import annotations

import json

import click

from ..engine.errors import AnabranchError, InputError, Interrupted, ResourceError
from ..engine.storage import translate
from .streams import ReaderLeft, tell

RESUMES = "the same command goes on where it stopped"


def report(error: BaseException, as_json: bool, debug: bool) -> int:
    """Say what went wrong, on standard error and for --json on standard output; returns the exit code."""
    known = error if isinstance(error, AnabranchError) else explained(error, debug)
    if not isinstance(known, ReaderLeft):
        for line in (f"error: {known.message}", *([f"  {known.hint}"] if known.hint else [])):
            click.echo(line, err=True)
    if as_json:
        problem = {"outcome": "failed", "error": known.message, "hint": known.hint, "exit_code": known.exit_code}
        tell(json.dumps(problem))
    return known.exit_code


def explained(error: BaseException, debug: bool) -> AnabranchError:
    """What a user should read of an error that is none of ours."""
    if isinstance(error, KeyboardInterrupt | SystemExit):  # Ray's own handler of SIGTERM exits
        return Interrupted("interrupted", RESUMES)
    if isinstance(error, MemoryError):
        return ResourceError(
            "the machine has no memory left", f"free some, or use fewer workers or a smaller --memory; {RESUMES}"
        )
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return ResourceError(
            "the system lets this user start no more threads",
            f"raise the limit (ulimit -u, the container's pids), end other processes or use fewer --workers; {RESUMES}",
        )
    if isinstance(error, FileNotFoundError):
        return InputError(f"{error.filename or error}: vanished while it was in use", RESUMES)
    if isinstance(error, OSError) and error.errno is not None:
        found = translate(error, str(error.filename or "the system"))
        if isinstance(found, AnabranchError):
            return found
    if isinstance(error, ImportError) and error.name is not None:
        return ResourceError(
            f"the Python package {error.name.partition('.')[0]} cannot be loaded: {error}",
            "install anabranch again (`pip install --force-reinstall anabranch`)",
        )
    where = "see the traceback above" if debug else "run it again with --debug for a traceback"
    return AnabranchError(
        f"this is a bug in anabranch: {type(error).__name__}: {error}", f"{where}, and report it with the recipe"
    )
