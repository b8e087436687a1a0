"""The inputs of an output, read again and compared with what the merge read of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ..errors import InputError, IntegrityError
from ..models import Header, Room, read_file_header
from ..storage import open_store, read_digest
from .finished import Finished
from .input_ranges import RangeRow, table_rows
from .manifest import INPUT_RANGES_NAME, ReadFile
from .problems import Problem
from .tables import table_problem

MOST_PROBLEMS = 20
"""Of one file; another file at its place differs in every tensor."""


@dataclass(frozen=True)
class InputsVerification:
    """What reading the inputs again found."""

    files: int
    size_bytes: int
    """That the merge read of them, each byte once."""
    problems: tuple[Problem, ...]
    """By URL of a file; empty when all are what was merged."""


@dataclass
class _File:
    """One input file, and what all outputs read of it."""

    read: ReadFile
    ranges: set[RangeRow] = field(default_factory=set)


def inputs_bytes(outputs: Sequence[Finished]) -> int:
    """Bytes that `verify_inputs` reads, about; outputs that were made together share files."""
    sizes: dict[str, int] = {}
    for output in outputs:
        for read in output.manifest.read:
            sizes[read.url] = max(sizes.get(read.url, 0), read.bytes)
    return sum(sizes.values())


def verify_inputs(
    outputs: Sequence[Finished],
    threads: int = 1,
    progress: Callable[[int], None] = lambda _: None,
    memory_bytes: int | None = None,
) -> InputsVerification:
    """Read what outputs were made from again, where the merge read it.

    Args:
        outputs: finished outputs.
        threads: files that are read at the same time, each in pieces of a few MiB.
        progress: called from any thread with the number of bytes that were just read.
        memory_bytes: bounds the headers that are parsed; None: any.

    Raises:
        IntegrityError: an output does not say what was read, or its table is damaged.
        ResourceError: an input may not be read, or a header does not fit into the memory.
        TemporaryError: an input cannot be read now.
    """
    files: dict[str, _File] = {}
    for output in outputs:
        _add(output, files)
    room = Room(memory_bytes)

    def check(file: _File) -> list[Problem]:
        url = file.read.url
        try:
            return list(_problems(file, room, progress))
        except FileNotFoundError:
            return [Problem(url, "missing: it cannot be compared; put it back where the merge read it")]
        except InputError as error:
            return [Problem(url, f"cannot be compared: {error.message}")]

    with ThreadPoolExecutor(threads, "inputs") as pool:
        futures = [pool.submit(check, file) for file in files.values()]
        try:
            problems = [problem for future in futures for problem in future.result()]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return InputsVerification(len(files), inputs_bytes(outputs), tuple(problems))


def _add(output: Finished, files: dict[str, _File]) -> None:
    """Take the ranges of an output in; IntegrityError where they are not what was written."""
    digest, where = output.manifest.tables.get(INPUT_RANGES_NAME), f"{output.store.url}/{INPUT_RANGES_NAME}"
    if digest is None:
        raise IntegrityError(
            f"{output.store.url} does not say what was read of its inputs",
            "An older version made it: its inputs can only be compared by merging again.",
        )
    if (problem := table_problem(output.store, INPUT_RANGES_NAME, digest)) is not None:
        raise IntegrityError(f"{where} is {problem.text}", "`anabranch verify OUT --repair RECIPE` makes it again")
    named = {read.url: read for read in output.manifest.read}
    for url, row in table_rows(output.store):
        if url not in named:
            raise IntegrityError(f"{where} names {url!r}, which the manifest does not")
        files.setdefault(url, _File(named[url])).ranges.add(row)


def _problems(file: _File, room: Room, progress: Callable[[int], None]) -> Iterator[Problem]:
    """What differs in one file; FileNotFoundError when it is missing."""
    folder, _, name = file.read.url.rpartition("/")
    store = open_store(folder)
    info = store.info(name)
    try:
        found, header = read_file_header(store, name, room)
    except InputError as error:
        progress(file.read.bytes)
        yield Problem(file.read.url, f"not what was merged: {error.message}")
        return
    if found.header_sha256 != file.read.header_sha256:
        progress(file.read.bytes)
        yield Problem(file.read.url, "not what was merged: it has another header, so other tensors or other places")
        return
    differing = []
    for part in sorted(file.ranges):
        digest = read_digest(store, name, info.version, (part.begin, part.end, part.block), progress)
        if f"{digest:016x}" != part.xxh3_64:
            differing.append(part)
    for part in differing[:MOST_PROBLEMS]:
        where = f"bytes {part.begin} to {part.end}"
        yield Problem(file.read.url, f"not what was merged: {_tensors(header, part)} ({where})")
    if len(differing) > MOST_PROBLEMS:
        yield Problem(file.read.url, f"not what was merged: {len(differing) - MOST_PROBLEMS} more ranges")


def _tensors(header: Header, part: RangeRow) -> str:
    """Which tensors lie in a range."""
    names = [repr(t.name) for t in header.tensors if t.offset < part.end and part.begin < t.offset + t.nbytes]
    return names[0] if len(names) == 1 else f"{len(names)} tensors from {names[0]} on" if names else "no tensor"
