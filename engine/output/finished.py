"""Reading outputs again: one, or all parts of a recipe that has several."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import IntegrityError, RecipeError
from ..models import is_part, parts_below
from ..storage import Store, open_store
from .manifest import MANIFEST_NAME, Manifest
from .verify import MAX_MANIFEST_BYTES, Verification, read_manifest, verify


@dataclass(frozen=True)
class Finished:
    """An output with a manifest."""

    name: str
    """Of the part, with a slash behind it; empty for an output that is no part of what is verified."""
    store: Store
    manifest: Manifest

    @property
    def size_bytes(self) -> int:
        return sum(entry.size for entry in self.manifest.files.values())


def open_outputs(out: str | Path) -> list[Finished]:
    """The output at that place, or the parts in its folders where EMR-Merging wrote them there.

    Raises:
        IntegrityError: one of them is not finished.
    """
    store = open_store(os.fspath(out))
    names = [] if MANIFEST_NAME in store.list() else parts_below(store)
    stores = {f"{name}/": open_store(f"{os.fspath(out).rstrip('/')}/{name}") for name in names} or {"": store}
    return [Finished(name, each, read_manifest(each)) for name, each in stores.items()]


def verify_outputs(
    outputs: Sequence[Finished], threads: int, progress: Callable[[int], None] = lambda _: None
) -> Verification:
    """As `verify`, over all of them; problems name the part before the file, the plan id is that of the first."""
    found = [verify(each.store, threads, progress, each.manifest) for each in outputs]
    problems = [
        replace(problem, file=f"{each.name}{problem.file}")
        for each, result in zip(outputs, found, strict=True)
        for problem in result.problems
    ]
    urls = [each.store.url.removesuffix(f"/{each.name}".rstrip("/")) for each in outputs]
    files, size = sum(result.files for result in found), sum(result.size_bytes for result in found)
    return Verification(urls[0], found[0].plan_id, files, size, tuple(problems))


def check_manifest_is(outputs: Sequence[Finished], sha256: str) -> None:
    """Compare the manifest with a digest that was kept elsewhere, such as the one that the merge printed.

    Raises:
        RecipeError: there are several manifests.
        IntegrityError: the manifest is another one, so nothing that it says of files means anything.
    """
    if len(outputs) > 1:
        raise RecipeError("--manifest-sha256: there are several outputs here", "verify each of them by itself")
    [output] = outputs
    found = hashlib.sha256(output.store.read_bytes(MANIFEST_NAME, MAX_MANIFEST_BYTES)).hexdigest()
    if found != sha256.strip().lower():
        raise IntegrityError(
            f"{output.store.url}/{MANIFEST_NAME} is another one: its SHA-256 is {found}, expected {sha256}",
            "it was made by another merge, or somebody changed it: do not trust this output",
        )


def check_is_model(outputs: Sequence[Finished]) -> None:
    """Raises RecipeError for parts, which no model can be loaded from."""
    for each in outputs:
        if is_part(each.store):
            raise RecipeError(
                f"--load: {each.store.url} is a part of EMR-Merging and no model",
                "write the model of a task (passthrough of BASE+TASK) and load that",
            )
