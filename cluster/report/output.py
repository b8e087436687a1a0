"""The report of a finished output: what was merged, and what its tables show."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from ...engine.json_text import canonical_json
from ...engine.output import Finished, manifest_sha256
from .facts import Facts, read_facts
from .figures import Figure, Table, model_names, output_figures
from .page import Page, Section
from .wording import percent, size, whole


def output_page(output: Finished, sections: Sequence[Section] = (), figures: Sequence[Figure] = ()) -> Page:
    """The page of an output; `sections` and `figures` are what only the run of the merge knows, such as times.

    Raises:
        IntegrityError: a table is damaged.
    """
    facts, manifest = read_facts(output), output.manifest
    shown = [*output_figures(facts), *figures]
    return Page(
        title=f"Merge report: {manifest.recipe.get('merge_method', 'merge')}",
        about=output.store.url,
        numbers=list(_numbers(facts)),
        warnings=manifest.warnings,
        notes=manifest.notes,
        sections=[_recipe(output), _inputs(manifest.inputs), *sections],
        figures=shown,
    )


def _numbers(facts: Facts) -> Iterator[tuple[str, str]]:
    manifest = facts.output.manifest
    yield "models", whole(len(facts.models))
    yield "parameters", whole(manifest.parameters)
    yield "tensors merged", whole(manifest.merged_tensors)
    yield "tensors copied", whole(manifest.copied_tensors)
    yield "size", size(facts.output.size_bytes)
    for name, i in zip(model_names(facts), range(len(facts.models)), strict=True):
        if i < 6 and facts.cells:
            sums = facts.model(i)
            yield f"kept of {name}", percent(sums.kept_share)


def _recipe(output: Finished) -> Section:
    manifest = output.manifest
    facts = [
        ("method", str(manifest.recipe.get("merge_method", "-"))),
        ("output", output.store.url),
        ("plan", manifest.plan_id),
        ("manifest SHA-256", manifest_sha256(manifest)),
        ("numerics", f"version {manifest.numerics}; manifest version {manifest.version}"),
    ]
    text = yaml.safe_dump(manifest.recipe, sort_keys=False, allow_unicode=True, width=100)
    return Section("What was merged", facts, text, "The whole recipe")


def _inputs(inputs: Sequence[Mapping[str, Any]]) -> Section:
    """A row per input; its fingerprint is a digest over all that identifies its files."""
    rows = []
    for entry in inputs:
        if "url" in entry:
            listed = entry.get("files", [])
            total = sum(int(each["size"]) for each in listed)
            digest = hashlib.sha256(canonical_json(entry)).hexdigest()[:16]
            rows.append((str(entry["url"]), whole(len(listed)), size(total), digest))
    return Section("Inputs", table=Table(("input", "files", "bytes", "fingerprint"), rows))
