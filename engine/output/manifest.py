"""Schemas of what is written beside the shards: receipts and the manifest, as canonical JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import IntegrityError

FORMAT = "anabranch.manifest"
FORMAT_VERSION = 1
PLAN_NAME = ".anabranch/plan.json"
TASKS_NAME = ".anabranch/tasks.parquet"
RECEIPTS_FOLDER = ".anabranch/receipts"
SURVEY_FOLDER = ".anabranch/survey"
MANIFEST_NAME = "anabranch.manifest.json"
TENSORS_NAME = "anabranch.tensors.parquet"
PLAN_ATTRIBUTE = "anabranch_plan"
"""Where an object store keeps the plan id of a shard."""
INDEX_NAME = "model.safetensors.index.json"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelRow(_Record):
    """What one model gave to one tensor."""

    density: float
    """Fraction that the method was asked to keep."""
    kept: int
    """Elements that its mask kept."""
    l1: float | None
    """Sum of |t| over the whole task vector; None without task vectors, or beyond fp64."""
    l2: float | None


class ElectedRow(ModelRow):
    """The same where a sign is elected; `kept` counts the elements of the model that have it."""

    selected: float
    """Sum of |t| of the unified task vector over the model's mask."""


class TensorRow(_Record):
    """What happened to one tensor."""

    name: str
    action: Literal["merged", "copied"]
    reason: str = ""
    """Why it was copied."""
    models: tuple[ElectedRow | ModelRow | None, ...] = ()
    """As the models of the tensor's task; None where the model has no such tensor."""
    overlaps: tuple[tuple[int, int, int], ...] = ()
    """(model a, model b, elements that both masks kept)."""
    nonfinite: int = 0
    """NaN and Inf in the inputs, treated as the recipe says."""
    overflowed: int = 0
    """Results beyond the output dtype's range, saturated as the recipe says."""


class SurveyRow(_Record):
    """Statistics of one model's task vector in one tensor (ALGORITHMS 3)."""

    tensor: str
    numel: int
    zeros: int
    l1: float
    """Sum of |t|."""
    squares: float
    """Sum of t^2."""
    fourths: float
    """Sum of t^4."""
    median: float | None = None
    """Q.50 of |t|; taken only where it is asked for."""
    high: float | None = None
    """Q.99 of |t|."""


class SurveyPart(_Record):
    """One model's statistics over the tensors of one output shard; written like a receipt."""

    plan_id: str
    model: int
    shard: int
    kind: str
    rows: tuple[SurveyRow, ...] = ()
    counts: dict[str, int] = {}
    """Elements per histogram bin, without empty bins; for thresholds over whole models."""
    prefix: int = 0
    """The more significant bits that counted elements have."""


class FileEntry(_Record):
    """What a file must be."""

    size: int
    sha256: str


class Receipt(_Record):
    """One finished output shard; written after the shard became visible. Holds no time, host or attempt."""

    plan_id: str
    shard: int
    name: str
    size: int
    sha256: str
    tensors: tuple[TensorRow, ...]


class Manifest(_Record):
    """The commit: written last, by exclusive creation."""

    format: Literal["anabranch.manifest"] = "anabranch.manifest"
    version: int = FORMAT_VERSION
    plan_id: str
    numerics: int
    recipe: dict[str, Any]
    inputs: list[dict[str, Any]]
    files: dict[str, FileEntry]
    """Every file of the output except this one and the plan's working files, by name."""
    merged_tensors: int
    copied_tensors: int
    parameters: int
    """Elements of all tensors."""
    summary: list[dict[str, Any]]
    """Per model: fraction kept, and overlap with every other model."""
    notes: list[str] = []
    """How inputs were read, and what slices left of them."""
    warnings: list[str]
    """What may not be as it was meant."""
    tables: dict[str, str]
    """SHA-256 over the rows of each Parquet table; the bytes of Parquet files depend on the library's version."""
    survey: list[dict[str, Any]]
    """Densities that a survey of whole models decided; empty without one."""


def canonical_json(value: Mapping[str, Any] | list[Any]) -> bytes:
    """One spelling per value: sorted keys, no spaces, no NaN, UTF-8."""
    return _compact(value).encode() + b"\n"


def readable_json(value: Mapping[str, Any]) -> bytes:
    """The same for files that people open: a line per key, and a line per entry of a list or mapping.

    Quick and small in memory too: a manifest may hold some rows for each of 100,000 tensors.
    """
    lines = ",\n".join(f" {_compact(key)}: {_table(value[key])}" for key in sorted(value))
    return f"{{\n{lines}\n}}\n".encode()


def _table(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        lines = ",\n".join(f"  {_compact(key)}: {_compact(value[key])}" for key in sorted(value))
        return f"{{\n{lines}\n }}"
    if isinstance(value, list) and value:
        lines = ",\n".join(f"  {_compact(entry)}" for entry in value)
        return f"[\n{lines}\n ]"
    return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def encode(record: BaseModel) -> bytes:
    """Canonical JSON of a receipt or manifest."""
    return (
        readable_json(record.model_dump(mode="json"))
        if isinstance(record, Manifest)
        else canonical_json(record.model_dump(mode="json"))
    )


def decode_receipt(data: bytes, where: str) -> Receipt:
    """Raises IntegrityError when the bytes are not a receipt."""
    try:
        return Receipt.model_validate_json(data)
    except ValidationError as error:
        raise IntegrityError(f"{where} is not a receipt: {error.errors()[0]['msg']}") from None


def decode_survey_part(data: bytes, where: str) -> SurveyPart:
    """Raises IntegrityError when the bytes are not a part of a survey."""
    try:
        return SurveyPart.model_validate_json(data)
    except ValidationError as error:
        raise IntegrityError(f"{where} is not a part of a survey: {error.errors()[0]['msg']}") from None


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Raises IntegrityError when the bytes are not a manifest."""
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise IntegrityError(f"{where} is not a manifest: {error.errors()[0]['msg']}") from None
