"""A finished output against its manifest: every byte read again and hashed, headers, index and plan id compared."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..errors import InputError, IntegrityError
from ..models import (
    FIRST_READ_BYTES,
    INDEX_NAME,
    MAX_INDEX_BYTES,
    Header,
    check_file_name,
    header_length,
    parse_header,
    parse_index,
)
from ..plan import plan_id
from ..storage import Store
from .input_ranges import read_problem
from .manifest import INPUT_RANGES_NAME, MANIFEST_NAME, Manifest, decode_manifest
from .problems import CHUNK_BYTES, Problem, check_file
from .tables import table_problem
from .verify_state import state_problems

MAX_MANIFEST_BYTES = 1 << 30
UNEXPECTED = "unexpected"
"""What is said of a file that the manifest does not name."""

OF_THE_HUB = ".gitattributes"
"""A file that the Hugging Face hub adds to every repository, and a download of one brings along."""


@dataclass(frozen=True)
class Verification:
    """What a verification found."""

    url: str
    plan_id: str
    files: int
    """Files of the manifest."""
    size_bytes: int
    problems: tuple[Problem, ...]
    """By file; empty when the output is whole."""


def read_manifest(store: Store) -> Manifest:
    """The manifest of a finished output.

    Raises:
        IntegrityError: there is none, so the output is not finished; or it cannot be read.
    """
    try:
        data = store.read_bytes(MANIFEST_NAME, MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        if not store.list():
            raise IntegrityError(f"{store.url} is not finished: there are no files", "check the path") from None
        raise IntegrityError(
            f"{store.url} is not finished: it has no {MANIFEST_NAME}",
            "run the merge again; it goes on where it stopped",
        ) from None
    manifest = decode_manifest(data, f"{store.url}/{MANIFEST_NAME}")
    try:
        for name in (*manifest.files, *manifest.tables):
            for part in name.split("/"):
                check_file_name(part, f"{store.url}/{MANIFEST_NAME}")
    except InputError as error:
        raise IntegrityError(error.message) from None
    return manifest


def verify(
    store: Store, threads: int = 1, progress: Callable[[int], None] = lambda _: None, manifest: Manifest | None = None
) -> Verification:
    """Read every file of an output again.

    Args:
        store: the output directory.
        threads: files that are read at the same time.
        progress: called from any thread with the number of bytes that were just read.
        manifest: the manifest, when it has been read already.

    Raises:
        IntegrityError: the output is not finished, or its manifest cannot be read.
        TemporaryError: a file cannot be read now.
    """
    manifest = manifest or read_manifest(store)
    buffers = threading.local()

    def check(name: str) -> Problem | None:
        if not hasattr(buffers, "chunk"):
            buffers.chunk = memoryview(bytearray(CHUNK_BYTES))
        return check_file(store, name, manifest.files[name], progress, buffers.chunk)

    largest_first = sorted(manifest.files, key=lambda name: -manifest.files[name].size)
    with ThreadPoolExecutor(threads, "verify") as pool:
        futures = [pool.submit(check, name) for name in largest_first]
        try:
            problems = [problem for future in futures if (problem := future.result()) is not None]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    damaged = {problem.file for problem in problems}
    problems += _check_structure(store, manifest, damaged)
    if not problems:  # else receipts could only repeat what is told
        problems += state_problems(store, manifest)
    return Verification(
        url=store.url,
        plan_id=manifest.plan_id,
        files=len(manifest.files),
        size_bytes=sum(entry.size for entry in manifest.files.values()),
        problems=tuple(sorted(problems, key=lambda problem: problem.file)),
    )


# -- what the files say about each other -----------------------------------------------------------------------------


def _check_structure(store: Store, manifest: Manifest, damaged: set[str]) -> list[Problem]:
    """Unexpected files, headers, index and plan id; files that are known to be damaged are not looked at again."""
    expected = {*manifest.files, *manifest.tables, MANIFEST_NAME}
    folders = sorted({name.rpartition("/")[0] for name in manifest.files} | {""})
    listed = [name for folder in folders for name in store.list(folder)]
    problems = [Problem(name, UNEXPECTED) for name in listed if name not in expected and name != OF_THE_HUB]
    found = [table_problem(store, name, digest) for name, digest in manifest.tables.items()]
    problems += [problem for problem in found if problem is not None]
    if INPUT_RANGES_NAME in manifest.tables and not any(problem.file == INPUT_RANGES_NAME for problem in problems):
        problems += [problem for problem in [read_problem(store, manifest)] if problem is not None]
    shards = sorted(name for name in manifest.files if name.endswith(".safetensors") and "/" not in name)
    if damaged & set(shards):
        return problems
    headers: dict[str, Header] = {}
    digests: dict[str, str] = {}
    for name in shards:
        try:
            data = _read_header(store, name, manifest.files[name].size)
            headers[name] = parse_header(data, manifest.files[name].size, name)
            digests[name] = hashlib.sha256(data).hexdigest()
        except FileNotFoundError:  # it was there when it was hashed
            problems.append(Problem(name, "missing"))
        except InputError as error:
            problems.append(Problem(name, f"damaged: {error.message}"))
    if len(headers) < len(shards):
        return problems
    if _plan_id(manifest, digests) != manifest.plan_id:
        problems.append(Problem(MANIFEST_NAME, "damaged: recipe, inputs and shards do not give its plan id"))
    if len(shards) > 1 and INDEX_NAME not in damaged:
        problems += _check_index(store, headers)
    return problems


def _read_header(store: Store, name: str, size: int) -> bytes:
    data = bytearray(min(size, FIRST_READ_BYTES))
    store.read_into(name, 0, memoryview(data))
    length = header_length(bytes(data[:8]), size, name)
    if length > len(data):
        rest = bytearray(length - len(data))
        store.read_into(name, len(data), memoryview(rest))
        data += rest
    return bytes(data[:length])


def _plan_id(manifest: Manifest, header_digests: Mapping[str, str]) -> str:
    """The plan id that recipe, inputs and shards of a manifest give."""
    layout = [
        {"name": name, "size": manifest.files[name].size, "header_sha256": digest}
        for name, digest in sorted(header_digests.items())
    ]
    return plan_id(manifest.numerics, manifest.recipe, manifest.inputs, layout)


def _check_index(store: Store, headers: Mapping[str, Header]) -> list[Problem]:
    """The index names every tensor in its file, and the sum of their bytes."""
    try:
        data = store.read_bytes(INDEX_NAME, MAX_INDEX_BYTES)
        weight_map = parse_index(data, INDEX_NAME)
        total = json.loads(data)["metadata"]["total_size"]
    except FileNotFoundError:
        return [Problem(INDEX_NAME, "missing")]
    except (InputError, ValueError, KeyError, TypeError) as error:
        return [Problem(INDEX_NAME, f"damaged: {error}")]
    found = {info.name: name for name, header in headers.items() for info in header.tensors}
    if found != weight_map:
        wrong = sorted(n for n in {*found, *weight_map} if found.get(n) != weight_map.get(n))
        return [Problem(INDEX_NAME, f"does not fit the shards: {len(wrong)} tensors, the first is {wrong[0]!r}")]
    size = sum(info.nbytes for header in headers.values() for info in header.tensors)
    return [] if total == size else [Problem(INDEX_NAME, f"its total_size is {total}, the tensors have {size} bytes")]
