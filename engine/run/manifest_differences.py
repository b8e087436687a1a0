"""What the manifests and tables of two outputs say of why their tensors differ. Pure but for reading the tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..output import Finished, Manifest, read_tensor_rows
from .wording import counted

LEAST_MOVE = 1e-12
"""Smaller moves of a share are those of its last digits."""
SHOWN = 12
MOVING = ("density", "kept share", "overlapping share")


@dataclass(frozen=True, slots=True)
class Change:
    """A value that two outputs have differently; None: one has none."""

    where: str
    first: Any
    second: Any

    def __str__(self) -> str:
        return f"{self.where}: {_short(self.first)} -> {_short(self.second)}"

    def as_json(self) -> dict[str, Any]:
        return {"where": self.where, "a": self.first, "b": self.second}


@dataclass(frozen=True, slots=True)
class Moves:
    """How a number per tensor and model moved."""

    what: str
    rows: int
    """Tensors and models of which it differs."""
    largest: float
    tensor: str
    """Where it moved most."""
    model: int

    def __str__(self) -> str:
        return (
            f"{self.what}: other in {counted(self.rows, 'row')}, by at most {self.largest:.6g} "
            f"({self.tensor}, model {self.model})"
        )


@dataclass(frozen=True)
class ManifestDifferences:
    """How two finished outputs came about differently."""

    recipe: tuple[Change, ...]
    """By path of keys of the canonical recipe."""
    inputs: tuple[Change, ...]
    summary: tuple[Change, ...]
    """Shares that models keep, and overlaps."""
    moves: tuple[Moves, ...]
    """Densities, kept elements and overlaps, tensor by tensor."""
    files: tuple[str, ...]
    """Small files beside the weights with other bytes, or in one output alone."""

    @property
    def same(self) -> bool:
        return not (self.recipe or self.inputs or self.summary or self.moves or self.files)

    def as_json(self) -> dict[str, Any]:
        return {
            "recipe": [change.as_json() for change in self.recipe],
            "inputs": [change.as_json() for change in self.inputs],
            "summary": [change.as_json() for change in self.summary],
            "moves": [
                {"what": m.what, "rows": m.rows, "largest": m.largest, "tensor": m.tensor, "model": m.model}
                for m in self.moves
            ],
            "files": list(self.files),
        }

    def lines(self) -> Iterator[str]:
        """As text, with two blanks before each line but headings."""
        if self.same:
            yield "both outputs have the same recipe, inputs, masks and other files"
            return
        for heading, changes in (("recipe", self.recipe), ("inputs", self.inputs), ("masks", self.summary)):
            if changes:
                yield f"{heading}, A -> B"
                yield from (f"  {change}" for change in changes[:SHOWN])
                if len(changes) > SHOWN:
                    yield f"  and {len(changes) - SHOWN} more"
        if self.moves:
            yield "tensor by tensor"
            yield from (f"  {move}" for move in self.moves)
        if self.files:
            yield f"other files that differ: {', '.join(self.files)}"


def manifest_differences(first: Finished, second: Finished) -> ManifestDifferences:
    """Compare two outputs by what they say of themselves.

    Raises:
        IntegrityError: a table is damaged.
    """
    a, b = first.manifest, second.manifest
    recipe = changes(flat(a.recipe), flat(b.recipe))
    if a.numerics != b.numerics:
        recipe.insert(0, Change("numerics (the version of the arithmetic)", a.numerics, b.numerics))
    rows = (read_tensor_rows(first.store), read_tensor_rows(second.store))
    return ManifestDifferences(
        recipe=tuple(recipe),
        inputs=tuple(changes(input_facts(a.inputs), input_facts(b.inputs))),
        summary=tuple(changes(summary_facts(a), summary_facts(b))),
        moves=tuple(moves(*rows)),
        files=tuple(other_files(a, b)),
    )


def flat(value: Any, where: str = "") -> dict[str, Any]:
    """Leaves of nested mappings and lists by their path, as `models[0].parameters.weight`."""
    if isinstance(value, Mapping) and value:
        parts = {f"{where}.{key}" if where else str(key): each for key, each in value.items()}
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        parts = {f"{where}[{i}]": each for i, each in enumerate(value)}
    else:
        return {where: value}
    return {path: leaf for key, each in parts.items() for path, leaf in flat(each, key).items()}


def changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Change]:
    """What two mappings have differently, in the order of the first."""
    keys = [*first, *(key for key in second if key not in first)]
    return [Change(key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)]


def input_facts(inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What identifies each input, by its place: the URL, and a line per file."""
    found: dict[str, Any] = {}
    number = 0
    for entry in inputs:
        if "url" in entry:
            where, number = f"input {number}", number + 1
            found[where] = entry["url"]
            found |= {f"{where} {f['name']}": f"{f['size']} bytes, {f['version']}" for f in entry.get("files", [])}
            found |= {f"{where} {key}": each for key, each in entry.items() if key not in ("url", "files")}
        elif "card" not in entry:  # what an output says of itself is no input of it
            found |= flat(entry)
    return found


def summary_facts(manifest: Manifest) -> dict[str, Any]:
    """Kept shares and overlaps of all models."""
    found: dict[str, Any] = {}
    for row in manifest.summary:
        where = f"model {row['model']}"
        found[f"{where} kept"] = row["kept_fraction"]
        found |= {f"{where} overlap with model {other}": share for other, share in row["overlap"].items()}
        found |= {f"{where} scale": row["scale"]} if "scale" in row else {}
    return found


def moves(first: Iterable[Mapping[str, Any]], second: Iterable[Mapping[str, Any]]) -> list[Moves]:
    """Densities, kept shares and shares that overlap, of the rows that both tables have."""
    of_second = {(row["tensor"], row["model"]): _numbers(row) for row in second}
    found: dict[str, Moves] = {}
    for row in first:
        theirs = of_second.get((row["tensor"], row["model"]), ())
        for what, mine, other in zip(MOVING, _numbers(row), theirs, strict=False):
            move = max((abs(x - y) for x, y in zip(mine, other, strict=False)), default=0.0)
            if move > LEAST_MOVE:
                so_far = found.get(what) or Moves(what, 0, 0.0, "", 0)
                largest = move > so_far.largest
                place = (move, row["tensor"], row["model"]) if largest else ()
                found[what] = Moves(what, so_far.rows + 1, *(place or (so_far.largest, so_far.tensor, so_far.model)))
    return [found[what] for what in MOVING if what in found]


def _numbers(row: Mapping[str, Any]) -> tuple[tuple[float, ...], ...]:
    """What MOVING names."""
    density = () if row["density"] is None else (row["density"],)
    return density, (row["kept_fraction"],), tuple(count / row["numel"] for count in row["overlaps"])


def other_files(first: Manifest, second: Manifest) -> Iterator[str]:
    """Files beside the weights: how tensors are cut into files is no difference of tensors."""
    for name in sorted(first.files.keys() | second.files.keys()):
        if name.endswith((".safetensors", ".safetensors.index.json")):
            continue
        if first.files.get(name) != second.files.get(name):
            yield name


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    text = f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
