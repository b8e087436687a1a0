"""What is wrong with files of an output, and one file against its size and digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import InputError, IntegrityError
from ..storage import FileInfo, Store
from .manifest import FileEntry

CHUNK_BYTES = 8 << 20
"""Read and hashed at a time."""
LOOKS = 5
"""At a file that something else changes meanwhile."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one file."""

    file: str
    text: str


def problems_error(url: str, problems: Sequence[Problem]) -> IntegrityError:
    """What to raise when an output is not whole."""
    return IntegrityError(
        f"{url}: {len(problems)} {'problem' if len(problems) == 1 else 'problems'} found",
        "`anabranch verify OUT --repair RECIPE` makes what is damaged or missing again from the inputs; files that are "
        "unexpected are yours to remove",
    )


def inputs_error(url: str, problems: Sequence[Problem]) -> IntegrityError:
    """What to raise when inputs are no longer those that an output was merged from."""
    files = len({problem.file for problem in problems})
    which = "a file of its inputs is" if files == 1 else f"{files} files of its inputs are"
    return IntegrityError(
        f"{url}: {which} not what was merged, or cannot be compared",
        "Either the input changed since the merge, or its bytes changed on their way then or now. Fetch it again and "
        "repeat this; if it still differs, merge into another output directory.",
    )


def check_file(
    store: Store, name: str, entry: FileEntry, progress: Callable[[int], None], chunk: memoryview | None = None
) -> Problem | None:
    """Size and SHA-256 of one file, read through `chunk`; None: a buffer that goes with the call.

    A file that is replaced while it is read is read again: what counts is what is there in the end.
    """
    chunk = memoryview(bytearray(min(CHUNK_BYTES, max(1, entry.size)))) if chunk is None else chunk
    for _ in range(LOOKS):
        try:
            info = store.info(name)
            problem = _look(store, name, entry, info, progress, chunk)
            if store.info(name) == info:
                return problem
        except FileNotFoundError:
            progress(entry.size)
            return Problem(name, "missing")
        except InputError as error:  # no regular file
            return Problem(name, f"damaged: {error.message}")
        progress = _told_already
    return Problem(name, f"something else changes it while it is read, {LOOKS} times in a row")


def _told_already(_size_bytes: int) -> None:
    """Bytes that are read once more are no progress."""


def _look(
    store: Store, name: str, entry: FileEntry, info: FileInfo, progress: Callable[[int], None], chunk: memoryview
) -> Problem | None:
    """What is wrong with the file that `info` tells of; another one in its place is an error of reading like others."""
    if info.size != entry.size:
        progress(entry.size)
        return Problem(name, f"damaged: {info.size} bytes, expected {entry.size}")
    digest = hashlib.sha256()
    try:
        for offset in range(0, entry.size, len(chunk)):
            part = chunk[: entry.size - offset]
            store.read_into(name, offset, part, info.version)
            digest.update(part)
            progress(len(part))
    except InputError as error:
        return Problem(name, f"damaged: {error.message}")
    if digest.hexdigest() != entry.sha256:
        return Problem(name, f"damaged: its SHA-256 is {digest.hexdigest()[:16]}..., expected {entry.sha256[:16]}...")
    return None
