"""What is recorded of tensors and shards: rows, receipts, and the statistics of a survey."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from ..json_text import canonical_json


class Record(BaseModel):
    """Read strictly: unknown keys are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelRow(Record):
    """What one model gave to one tensor."""

    density: float
    """Fraction that the method was asked to keep."""
    kept: int
    """Elements that its mask kept."""
    l1: float | None
    """Sum of |t| over the whole task vector; None without task vectors, or beyond fp64."""
    l2: float | None
    kept_l2: float | None = None
    """Root of the sum of t^2 over what is kept, before it is rescaled, to some seven digits; None where it is not
    known: where `l2` is not or is below 1e-10, where squares are beyond fp32, and without task vectors."""


class ElectedRow(ModelRow):
    """The same where a sign is elected; `kept` counts the elements of the model that have it."""

    selected: float
    """Sum of |t| of the unified task vector over the model's mask."""


class InputRange(NamedTuple):
    """Bytes of an input file that a tensor of the output was made from."""

    file: int
    """Which of `Plan.input_files`."""
    begin: int
    end: int
    unit: int
    """Length of its blocks, counted from `begin`."""
    digest: int
    """Of the bytes as they were read, 64 bits: see `stretch_digest` of the stores."""


def ranges_digest(ranges: Iterable[InputRange]) -> str:
    """SHA-256 over ranges, each counted once, in their order."""
    return hashlib.sha256(canonical_json(sorted(set(ranges)))).hexdigest()


class TensorRow(Record):
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
    claims: tuple[int, ...] = ()
    """Elements that 0, 1, 2, ... models keep; empty where models do not keep elements, or are more than 255."""
    inputs: tuple[InputRange, ...] = ()
    """What was read for it, by file and place."""


class SurveyRow(Record):
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


class SurveyPart(Record):
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
    read: str
    """Digest of what was read for the whole shard; see `ranges_digest`."""


class Receipt(Record):
    """One finished output shard; written after the shard became visible. Holds no time, host or attempt."""

    plan_id: str
    shard: int
    name: str
    size: int
    sha256: str
    tensors: tuple[TensorRow, ...]
