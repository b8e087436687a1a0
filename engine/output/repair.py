"""What is damaged in an output is taken out of it, so that a merge makes it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import IntegrityError, OutputConflictError
from .commit import OutputDirectory
from .manifest import MANIFEST_NAME, PLAN_NAME
from .problems import Problem
from .verify import UNEXPECTED, read_manifest, verify


def withdraw_damaged(
    output: OutputDirectory, threads: int, progress: Callable[[int], None] = lambda _: None
) -> Sequence[Problem]:
    """Remove the files of a finished output that are not what was written, and first of all the manifest over them.

    Files that are no output of the plan stay where they are: nobody here knows whose they are.

    Args:
        output: the directory, with the plan that it should belong to.
        threads: files that are read at the same time.
        progress: called from any thread with the number of bytes that were just read.

    Returns:
        What was wrong; nothing where the output is whole, or was never finished: a merge goes on with it.

    Raises:
        OutputConflictError: the directory belongs to another plan, holds other files, or is empty.
    """
    try:
        if (state := output.check()) == "new":
            raise OutputConflictError(f"{output.store.url} holds no output that could be repaired", "check the path")
        if state == "started" and MANIFEST_NAME not in output.store.list():
            return ()
        manifest = read_manifest(output.store)
    except IntegrityError as error:  # the plan is ours, its manifest cannot be read
        output.store.delete(MANIFEST_NAME)
        return (Problem(MANIFEST_NAME, error.message),)
    problems = verify(output.store, threads, progress, manifest).problems
    ours = [problem.file for problem in problems if problem.text != UNEXPECTED]
    for name in dict.fromkeys([MANIFEST_NAME, *ours] if ours else ()):
        if name != PLAN_NAME:  # it says whose directory this is; a merge writes it again where it is damaged
            output.store.delete(name)
    return problems
