"""Receipts and parts of surveys on disk: sealed records, and a table for what grows with the number of tensors.

A receipt is `<shard>.json`, small, beside `<shard>.parquet` with a row per tensor, whose digest it holds; so is a part
of a survey that takes statistics of every tensor. Both are checked whenever they are read: their own digests first,
then that they say what the plan asks for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ..errors import IntegrityError
from ..json_text import sealed_json, unsealed
from ..plan import (
    ElectedRow,
    InputRange,
    ModelRow,
    Plan,
    Receipt,
    Record,
    Round,
    SurveyPart,
    SurveyRow,
    TensorRow,
    TensorTask,
)
from .manifest import FileEntry
from .tables import read_table, write_table

if TYPE_CHECKING:  # imported where a table is made
    import pyarrow

_MODEL_COLUMNS = ("density", "kept", "l1", "l2", "selected", "kept_l2")
INPUT_RANGE_BYTES = 48
"""Of a stretch of an input in a table that is unpacked; five numbers."""
_INPUT_COLUMNS = tuple(enumerate(InputRange._fields))


class StoredReceipt(Record):
    """What `<shard>.json` holds."""

    plan_id: str
    shard: int
    name: str
    size: int
    sha256: str
    rows: FileEntry
    """The table."""


def encode_receipt(receipt: Receipt) -> tuple[bytes, bytes]:
    """(the record, the table)."""
    table = write_table(_rows_table(receipt.tensors))
    stored = StoredReceipt(
        plan_id=receipt.plan_id,
        shard=receipt.shard,
        name=receipt.name,
        size=receipt.size,
        sha256=receipt.sha256,
        rows=FileEntry(size=len(table), sha256=hashlib.sha256(table).hexdigest()),
    )
    return _sealed(stored), table


def decode_stored(data: bytes) -> StoredReceipt:
    """The record of a receipt; IntegrityError when it is not what was written."""
    try:
        return StoredReceipt.model_validate(_unsealed(data))
    except ValidationError as error:
        raise IntegrityError(f"it is no receipt: {error.errors()[0]['msg']}") from None


def decode_receipt(stored: StoredReceipt, table: bytes, plan: Plan) -> Receipt:
    """The receipt of one of the plan's shards.

    Raises:
        IntegrityError: the table is not what was written, or lacks what the plan asks for.
    """
    expected = plan.shards[stored.shard]
    _check_table(table, stored.rows)
    tasks = [plan.tasks[i] for i in expected.tasks]
    rows = _rows(read_table(table, len(tasks), rows_limit(plan, stored.shard)))
    for row, task in zip_longest(rows, tasks):
        if row is None or task is None or row.name != task.name or not _fits(row, task, plan):
            raise IntegrityError(f"its table does not fit tensor {(row or task).name!r}")
    return Receipt(
        plan_id=stored.plan_id,
        shard=stored.shard,
        name=stored.name,
        size=stored.size,
        sha256=stored.sha256,
        tensors=tuple(rows),
    )


def _check_table(table: bytes, expected: FileEntry) -> None:
    if (len(table), hashlib.sha256(table).hexdigest()) != (expected.size, expected.sha256):
        raise IntegrityError("its table is not what was written: the digest is another")


def rows_limit(plan: Plan, shard: int) -> int:
    """Bytes that the rows of a shard have at most, in a table or spelled as JSON."""
    file, models = plan.shards[shard], plan.most_models
    # Names are in the shard's header too. Numbers are spelled with up to 25 characters, and pairs of models have three.
    per_task = 544 + 224 * models + 40 * models * models
    stretches = sum(plan.tasks[i].stretches for i in file.tasks)
    return (1 << 20) + 2 * len(file.header) + len(file.tasks) * per_task + INPUT_RANGE_BYTES * stretches


def _fits(row: TensorRow, task: TensorTask, plan: Plan) -> bool:
    """Whether a row tells of what becomes of the tensor; masks speak of their own model alone."""
    masks_of, files = plan.masks_of, len(plan.input_files)
    sources = task.models if task.method is not None else ()
    present = [source is not None and masks_of in (None, i) for i, source in enumerate(sources)]
    if row.action != ("merged" if task.method is not None else "copied"):
        return False
    if row.models and [model is not None for model in row.models] != present:
        return False
    if not all(0 <= part.file < files and 0 <= part.begin < part.end and part.unit > 0 for part in row.inputs):
        return False
    return all(0 <= a < len(present) and 0 <= b < len(present) for a, b, _ in row.overlaps)


def _rows_table(rows: Sequence[TensorRow]) -> pyarrow.Table:
    """A row per tensor: lists with an entry per model, overlaps as (model a, model b, elements) one after the other."""
    import pyarrow

    def of_models(column: str, type_: pyarrow.DataType) -> pyarrow.Array:
        # Asking a model's row for a column that only some kinds of it have would take longer than all the others.
        values = [[vars(model).get(column) if model is not None else None for model in row.models] for row in rows]
        return pyarrow.array(values, pyarrow.list_(type_))

    def of_inputs(field: int, type_: pyarrow.DataType) -> pyarrow.Array:
        return pyarrow.array([[part[field] for part in row.inputs] for row in rows], pyarrow.list_(type_))

    real, whole = pyarrow.float64(), pyarrow.int64()
    columns = {
        "name": pyarrow.array([row.name for row in rows], pyarrow.string()),
        "action": pyarrow.array([row.action for row in rows], pyarrow.string()),
        "reason": pyarrow.array([row.reason for row in rows], pyarrow.string()),
        **{name: of_models(name, whole if name == "kept" else real) for name in _MODEL_COLUMNS},
        "overlaps": pyarrow.array([[*chain(*row.overlaps)] for row in rows], pyarrow.list_(whole)),
        "nonfinite": pyarrow.array([row.nonfinite for row in rows], whole),
        "overflowed": pyarrow.array([row.overflowed for row in rows], whole),
        **{
            f"input_{name}": of_inputs(i, pyarrow.uint64() if name == "digest" else whole) for i, name in _INPUT_COLUMNS
        },
        "claims": pyarrow.array([list(row.claims) for row in rows], pyarrow.list_(whole)),
    }
    return pyarrow.table(columns)


def _rows(table: pyarrow.Table) -> list[TensorRow]:
    try:
        columns = table.to_pydict()
        models = zip(*(columns.pop(name) for name in _MODEL_COLUMNS), strict=True)
        inputs = zip(*(columns.pop(f"input_{name}") for _, name in _INPUT_COLUMNS), strict=True)
        overlaps = columns.pop("overlaps")
        names = list(columns)
        return [
            TensorRow(
                **dict(zip(names, values, strict=True)),
                models=tuple(_model(*each) for each in zip(*of_models, strict=True)),
                overlaps=tuple(zip(*[iter(flat)] * 3, strict=True)),
                inputs=tuple(map(InputRange, *of_inputs)),
            )
            for values, of_models, flat, of_inputs in zip(
                zip(*columns.values(), strict=True), models, overlaps, inputs, strict=True
            )
        ]
    except (KeyError, TypeError, ValueError) as error:  # of pydantic, too
        raise IntegrityError(f"its table has other columns or values: {error}") from None


def _model(density: Any, kept: Any, l1: Any, l2: Any, selected: Any, kept_l2: Any) -> ModelRow | None:
    if density is None:
        return None
    if selected is None:
        return ModelRow(density=density, kept=kept, l1=l1, l2=l2, kept_l2=kept_l2)
    return ElectedRow(density=density, kept=kept, l1=l1, l2=l2, selected=selected)


# -- surveys ---------------------------------------------------------------------------------------------------------

_REALS = ("l1", "squares", "fourths", "median", "high")


class StoredSurveyPart(Record):
    """What `<part>.json` holds; the statistics of its tensors are a table beside it."""

    plan_id: str
    model: int
    shard: int
    kind: str
    prefix: int
    counts: dict[str, int]
    read: str
    """Digest of what was read for the whole shard; see `ranges_digest`."""
    squares: float
    """Sum of squares over the table, so that a record cannot be put beside another table."""
    rows: FileEntry | None
    """The table; None where elements were counted."""


def encode_survey_part(part: SurveyPart) -> tuple[bytes, bytes | None]:
    """(the record, the table where there is one)."""
    table = None if counts_elements(part.kind) else write_table(_survey_rows_table(part.rows))
    rows = None if table is None else FileEntry(size=len(table), sha256=hashlib.sha256(table).hexdigest())
    own = part.model_dump(exclude={"rows"})
    return _sealed(StoredSurveyPart(**own, squares=_squares(part.rows), rows=rows)), table


def decode_stored_part(data: bytes) -> StoredSurveyPart:
    """The record of a part of a survey; IntegrityError when it is not what was written."""
    try:
        return StoredSurveyPart.model_validate(_unsealed(data))
    except ValidationError as error:
        raise IntegrityError(f"it is no part of a survey: {error.errors()[0]['msg']}") from None


def decode_survey_part(
    stored: StoredSurveyPart, table: bytes | None, plan: Plan, round_: Round, model: int, shard: int
) -> SurveyPart:
    """One model's statistics of one of the plan's shards.

    Raises:
        IntegrityError: it is not what was written, is of something else, or lacks what the plan asks for.
    """
    prefix = round_.prefixes[model] if round_.prefixes else 0
    whose = (plan.plan_id, round_.kind, prefix, model, shard)
    if (stored.plan_id, stored.kind, stored.prefix, stored.model, stored.shard) != whose:
        raise IntegrityError("it belongs to another plan, model, shard or round")
    tasks = [plan.tasks[i] for i in plan.shards[shard].tasks]
    seen = [(t.name, t.numel) for t in tasks if t.has_task_vectors and _takes_part(t, model)]
    found: tuple[SurveyRow, ...] = ()
    if counts_elements(round_.kind) != (stored.rows is None):
        raise IntegrityError("it has rows where elements are counted, or none where they are not")
    if table is not None and stored.rows is not None:
        _check_table(table, stored.rows)
        found = _survey_rows(read_table(table, len(seen), rows_limit(plan, shard)))
    if [(row.tensor, row.numel) for row in found] != ([] if counts_elements(round_.kind) else seen):
        raise IntegrityError("it has not exactly the tensors that the plan asks for")
    if round_.kind == "quantiles" and any(row.median is None or row.high is None for row in found):
        raise IntegrityError("it lacks quantiles")
    if any(count < 0 or not (place.isdecimal() and int(place) < 1 << 16) for place, count in stored.counts.items()):
        raise IntegrityError("it counts what cannot be")
    if round_.kind == "high" and sum(stored.counts.values()) != sum(numel for _, numel in seen):
        raise IntegrityError("it does not count every element")
    if _squares(found) != stored.squares:
        raise IntegrityError("its table has other statistics")
    return SurveyPart(**stored.model_dump(exclude={"rows", "squares"}), rows=found)


def _squares(rows: Sequence[SurveyRow]) -> float:
    return math.fsum(row.squares or 0.0 for row in rows)


def check_narrowed(part: SurveyPart, high: SurveyPart) -> None:
    """IntegrityError where a part of the second round does not count what the first one has at its prefix."""
    if sum(part.counts.values()) != high.counts.get(str(part.prefix), 0):
        raise IntegrityError("it does not count every element that the round before found there")


def counts_elements(kind: str) -> bool:
    """Whether a round counts elements of whole models, and so has no rows."""
    return kind in ("high", "low")


def _survey_rows_table(rows: Sequence[SurveyRow]) -> pyarrow.Table:
    import pyarrow

    types = {"tensor": pyarrow.string(), "numel": pyarrow.int64(), "zeros": pyarrow.int64()}
    types |= dict.fromkeys(_REALS, pyarrow.float64())
    return pyarrow.table({name: pyarrow.array([getattr(row, name) for row in rows], of) for name, of in types.items()})


def _survey_rows(table: pyarrow.Table) -> tuple[SurveyRow, ...]:
    try:
        return tuple(SurveyRow(**row) for row in table.to_pylist())
    except (TypeError, ValueError) as error:  # of pydantic, too
        raise IntegrityError(f"its table has other columns or values: {error}") from None


def _takes_part(task: TensorTask, model: int) -> bool:
    return model + 1 in task.origins[1:] and task.models[task.position_of(model)] is not None


def _sealed(record: Record) -> bytes:
    return sealed_json(record.model_dump(mode="json"))


def _unsealed(data: bytes) -> dict[str, Any]:
    try:
        return unsealed(data)
    except ValueError as error:
        raise IntegrityError(str(error)) from None
