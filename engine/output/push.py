"""A finished output, local or in an object store, to a repository of the Hugging Face hub: seen whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass

from ..errors import IntegrityError, OutputConflictError, RecipeError, TemporaryError, some_names
from ..storage import Store, Upload, open_hub_upload, open_store
from .finished import Finished
from .manifest import MANIFEST_NAME, FileEntry
from .problems import CHUNK_BYTES, Problem, problems_error
from .verify import MAX_MANIFEST_BYTES

COMMITS = 5
"""Tries while others commit to the same branch."""


@dataclass(frozen=True)
class Pushed:
    """What a push did."""

    url: str
    """`hf://owner/name@commit`, as a recipe may name it."""
    commit: str
    files: int
    size_bytes: int
    uploaded_bytes: int
    """Of these; the hub had the rest already."""
    already_there: bool
    """Nothing was to be done."""


def push(
    outputs: Collection[Finished],
    url: str,
    *,
    revision: str = "main",
    public: bool = False,
    replace: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Pushed:
    """Upload every file of a finished output, then make all of them visible with one commit.

    Run again after whatever stopped it, it goes on: contents that the hub has are not uploaded again.

    Args:
        outputs: of `open_outputs`: one.
        url: `hf://owner/name`; made where it is missing.
        revision: the branch; made where it is missing.
        public: whether a new repository can be seen by all, and an old one may be.
        replace: take files of another model away with the same commit.
        progress: is called with bytes as they are read, or found to be there.

    Raises:
        RecipeError: there are several outputs.
        IntegrityError: a file is missing, or is not what was written.
        OutputConflictError: another model is there.
        ResourceError: no token, or one without the right to write.
        TemporaryError: the hub does not answer, or others commit all the time.
    """
    if len(outputs) > 1:
        raise RecipeError("a push takes one output, and these are several", "push the folder of each to its repository")
    [output] = outputs
    upload = open_hub_upload(url, revision)
    data = output.store.read_bytes(MANIFEST_NAME, MAX_MANIFEST_BYTES)
    files = _files(output, data)
    upload.open(public)
    added = False
    for _ in range(COMMITS):
        head, present = upload.head()
        if set(files) <= set(present) and _manifest_at(upload, head, present) == data:
            return _pushed(upload, head, files, already_there=not added)
        others = upload.others(present, files)
        if (others or _manifest_at(upload, head, present) not in (None, data)) and not replace:
            raise OutputConflictError(
                f"{upload.url}@{revision} holds another model: {some_names(others or [MANIFEST_NAME])}",
                "name another repository, or pass --replace: with the same commit its files go, into the history",
            )
        if not added:
            for name, entry in sorted(files.items(), key=lambda each: (-each[1].size, each[0])):
                upload.add(output.store, name, entry.size, entry.sha256, progress)
            added = True
        commit = upload.commit(f"Merge made by anabranch, plan {output.manifest.plan_id[:16]}", head, others)
        if commit is not None:
            return _pushed(upload, commit, files, already_there=False)
    raise TemporaryError(
        f"{upload.url}@{revision}: others commit there all the time",
        "Run the same command again: what is uploaded is not uploaded again.",
    )


def _files(output: Finished, manifest: bytes) -> dict[str, FileEntry]:
    """What is pushed: all that the manifest names, and itself; working files stay where they are."""
    store, files = output.store, dict(output.manifest.files)
    problems = []
    for name in (*output.manifest.files, *output.manifest.tables):
        try:
            size = store.info(name).size
            if name in output.manifest.tables:
                files[name] = FileEntry(size=size, sha256=_sha256(store, name, size))
            elif size != files[name].size:
                problems.append(Problem(name, f"damaged: {size} bytes, expected {files[name].size}"))
        except FileNotFoundError:
            problems.append(Problem(name, "missing"))
    if problems:
        first = problems[0]
        error = problems_error(store.url, problems)
        raise IntegrityError(f"{error.message}, the first is {first.file}: {first.text}", error.hint)
    return files | {MANIFEST_NAME: FileEntry(size=len(manifest), sha256=hashlib.sha256(manifest).hexdigest())}


def _sha256(store: Store, name: str, size: int) -> str:
    digest, chunk = hashlib.sha256(), memoryview(bytearray(min(CHUNK_BYTES, max(1, size))))
    for offset in range(0, size, len(chunk)):
        part = chunk[: size - offset]
        store.read_into(name, offset, part)
        digest.update(part)
    return digest.hexdigest()


def _manifest_at(upload: Upload, commit: str, present: Collection[str]) -> bytes | None:
    if MANIFEST_NAME not in present:
        return None
    return open_store(f"{upload.url}@{commit}").read_bytes(MANIFEST_NAME, MAX_MANIFEST_BYTES)


def _pushed(upload: Upload, commit: str, files: dict[str, FileEntry], *, already_there: bool) -> Pushed:
    size = sum(entry.size for entry in files.values())
    return Pushed(f"{upload.url}@{commit}", commit, len(files), size, upload.uploaded_bytes, already_there)
