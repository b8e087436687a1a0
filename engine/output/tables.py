"""Parquet tables: the plan's tasks, and what every model gave to every tensor."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..errors import InputError, IntegrityError
from ..json_text import canonical_json
from ..plan import ModelRow, Plan, Receipt, TensorRow
from ..storage import Store
from .manifest import SURVEY_NAME, TASKS_NAME, TENSORS_NAME
from .problems import Problem

if TYPE_CHECKING:  # imported where a table is made: workers never need it
    import pyarrow

MAX_TABLE_BYTES = 1 << 30
"""A table with a row for each of 100,000 tensors of eight models has some 60 MB."""
UNPACKED_FACTOR = 64
UNPACKED_BYTES = 64 << 20
"""A file that says that it unpacks to more than so many times its size, plus so much, is damaged or made to harm."""
ROWS_AT_ONCE = 4096
"""Rows that are Python objects at the same time."""


@dataclass(frozen=True)
class TensorsTable:
    """One row per tensor and model, and a summary per model."""

    arrow: pyarrow.Table
    digest: str
    """SHA-256 over the rows."""
    summary: list[dict[str, Any]]


def tasks_table(plan: Plan) -> pyarrow.Table:
    """tensor, action, reason, dtype, out_dtype, shape, numel, shard, read_bytes, write_bytes; in plan order."""
    import pyarrow

    shard_of = {i: shard.name for shard in plan.shards for i in shard.tasks}
    rows = [
        {
            "tensor": task.name,
            "action": "merge" if task.method else "copy",
            "reason": task.reason,
            "dtype": task.base.info.dtype,
            "out_dtype": task.out_dtype,
            "shape": list(task.base.info.shape),
            "numel": task.numel,
            "shard": shard_of[i],
            "read_bytes": task.read_bytes,
            "write_bytes": task.write_bytes,
        }
        for i, task in enumerate(plan.tasks)
    ]
    return pyarrow.Table.from_pylist(rows)


def tensors_table(plan: Plan, receipts: Sequence[Receipt]) -> TensorsTable:
    """tensor, model, numel, density, what is kept, overlaps with every model, norms, claims by count; in plan order.

    `energy_kept` is the share of the sum of t^2 that the model's mask keeps; null where it is not known or 0 / 0.
    `claims` are those of `TensorRow`, the same in each row of a tensor.
    """
    import pyarrow

    by_name = {row.name: row for receipt in receipts for row in receipt.tensors}
    totals = [_Total(len(plan.models)) for _ in plan.models]
    schema = pyarrow.schema(
        [
            ("tensor", pyarrow.string()),
            ("model", pyarrow.int32()),
            ("numel", pyarrow.int64()),
            ("density", pyarrow.float64()),
            ("kept", pyarrow.int64()),
            ("kept_fraction", pyarrow.float64()),
            ("overlaps", pyarrow.list_(pyarrow.int64())),
            ("l1", pyarrow.float64()),
            ("l2", pyarrow.float64()),
            ("kept_l2", pyarrow.float64()),
            ("energy_kept", pyarrow.float64()),
            ("claims", pyarrow.list_(pyarrow.int64())),
            ("nonfinite", pyarrow.int64()),
            ("overflowed", pyarrow.int64()),
        ]
    )
    arrow, digest = _hashed_table(_tensor_rows(plan, by_name, totals), schema)
    return TensorsTable(arrow, digest, [_summary(plan, totals, i) for i in range(len(totals))])


def survey_table(rows: Iterable[Mapping[str, Any]]) -> tuple[pyarrow.Table, str]:
    """What a survey of whole models decided of every tensor and model, with the digest of its rows."""
    import pyarrow

    real, whole = pyarrow.float64(), pyarrow.int64()
    reals = ("density", "redundancy", "l1", "squares", "fourths", "median", "high")
    columns = [("model", pyarrow.int32()), ("tensor", pyarrow.string()), ("numel", whole), ("zeros", whole)]
    return _hashed_table(rows, pyarrow.schema([*columns, *((name, real) for name in reals)]))


def _tensor_rows(plan: Plan, by_name: Mapping[str, TensorRow], totals: Sequence[_Total]) -> Iterator[dict[str, Any]]:
    """The rows of the table of tensors; adds them up by model."""
    for task in plan.tasks:
        row = by_name[task.name]
        for position, model in enumerate(row.models):
            if model is None:
                continue
            i = task.model_of(position)
            overlaps = [0] * len(totals)
            for a, b, count in row.overlaps:
                if position in (a, b):
                    overlaps[task.model_of(b if position == a else a)] = count
            totals[i].add(task.numel, model, overlaps)
            yield {
                "tensor": task.name,
                "model": i,
                "numel": task.numel,
                "density": model.density,
                "kept": model.kept,
                "kept_fraction": model.kept / task.numel,
                "overlaps": overlaps,
                "l1": model.l1,
                "l2": model.l2,
                "kept_l2": model.kept_l2,
                "energy_kept": energy_kept(model),
                "claims": list(row.claims),
                "nonfinite": row.nonfinite,
                "overflowed": row.overflowed,
            }


def energy_kept(model: ModelRow) -> float | None:
    """The share of a task vector's sum of squares that its mask keeps; None where it is not known or 0 / 0."""
    return None if model.kept_l2 is None or not model.l2 else (model.kept_l2 / model.l2) ** 2


def _hashed_table(rows: Iterable[Mapping[str, Any]], schema: pyarrow.Schema) -> tuple[pyarrow.Table, str]:
    """A table, and the digest of its rows; a few thousand of them are spelled out at a time."""
    import pyarrow

    batches, rows = [], iter(rows)
    while batch := list(islice(rows, ROWS_AT_ONCE)):
        batches.append(pyarrow.RecordBatch.from_pylist(batch, schema=schema))
    return pyarrow.Table.from_batches(batches, schema=schema), rows_digest(batches)


def rows_digest(batches: Iterable[pyarrow.RecordBatch]) -> str:
    """SHA-256 over the canonical JSON of all rows as one list; it does not depend on how they are cut into batches."""
    digest, separator = hashlib.sha256(b"["), b""
    for batch in batches:
        for begin in range(0, batch.num_rows, ROWS_AT_ONCE):
            rows = batch.slice(begin, ROWS_AT_ONCE).to_pylist()
            digest.update(separator + canonical_json(rows)[1:-2])
            separator = b","
    digest.update(b"]\n")
    return digest.hexdigest()


class _Total:
    """Elements of one model over all merged tensors, and squares of those whose masks choose."""

    def __init__(self, models: int) -> None:
        self.numel = 0
        self.kept = 0
        self.squares = 0.0
        self.kept_squares = 0.0
        self.overlaps = [0] * models

    def add(self, numel: int, model: ModelRow, overlaps: Sequence[int]) -> None:
        self.numel += numel
        self.kept += model.kept
        if model.l2 is not None and model.kept_l2 is not None:
            self.squares += model.l2 * model.l2
            self.kept_squares += model.kept_l2 * model.kept_l2
        self.overlaps = [a + b for a, b in zip(self.overlaps, overlaps, strict=True)]


def _summary(plan: Plan, totals: Sequence[_Total], i: int) -> dict[str, Any]:
    """Fractions of elements and of squares that model i keeps, and |A and B| / |A or B| with every other model."""
    shares = {}
    for j, other in enumerate(totals):
        if j != i:
            both = totals[i].overlaps[j]
            either = totals[i].kept + other.kept - both
            shares[str(j)] = both / either if either else 0.0
    kept = totals[i].kept / totals[i].numel if totals[i].numel else 0.0
    squares = totals[i].squares
    energy = totals[i].kept_squares / squares if squares and math.isfinite(squares) else None
    return {
        "model": i,
        "url": plan.models[i].url,
        "kept_fraction": kept,
        "energy_kept": energy,
        "overlap": shares,
    }


def write_table(table: pyarrow.Table) -> bytes:
    """A Parquet file in memory."""
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def read_table(data: bytes, rows: int, limit_bytes: int) -> pyarrow.Table:
    """The table in a Parquet file.

    Raises:
        IntegrityError: it is no Parquet file, is damaged, or has not so many rows, or more than `limit_bytes`.
    """
    import pyarrow

    with _refusing_damage():
        file = _open_table(data, limit_bytes)
        if file.metadata.num_rows != rows:
            raise IntegrityError(f"it has {file.metadata.num_rows} rows, expected {rows}")
        return pyarrow.Table.from_batches(file.iter_batches(use_threads=False), schema=file.schema_arrow)


def _open_table(data: bytes, limit_bytes: int) -> pyarrow.parquet.ParquetFile:
    """A Parquet file that may be opened: small files that unpack to much more than they may hold are not unpacked.

    Threads of the library are never started: they were seen to abort a process that ends.
    """
    import pyarrow
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data), pre_buffer=False)
    size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
    if not 0 <= size <= limit_bytes:
        raise IntegrityError(f"it unpacks to {size} bytes, expected at most {limit_bytes}")
    return file


@contextmanager
def _refusing_damage() -> Iterator[None]:
    """Whatever the library raises for a damaged file, as what it is."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise IntegrityError(f"it cannot be read: {type(error).__name__}: {error}") from None


def table_batches(store: Store, name: str) -> Iterator[pyarrow.RecordBatch]:
    """A published table, some rows at a time; IntegrityError when it is damaged, which may show at its end."""
    data = store.read_bytes(name, MAX_TABLE_BYTES)
    with _refusing_damage():
        file = _open_table(data, min(MAX_TABLE_BYTES, UNPACKED_FACTOR * len(data) + UNPACKED_BYTES))
        yield from file.iter_batches(ROWS_AT_ONCE, use_threads=False)


def read_tensor_rows(store: Store) -> Iterator[dict[str, Any]]:
    """Rows of anabranch.tensors.parquet, one per tensor and model in plan order; a few are in memory at once.

    Raises:
        IntegrityError: the table is missing or damaged.
    """
    return _rows_of(store, TENSORS_NAME)


def read_task_rows(store: Store) -> Iterator[dict[str, Any]]:
    """Rows of .anabranch/tasks.parquet, one per tensor of the output in plan order; see `tasks_table`.

    Raises:
        IntegrityError: the table is missing, which takes nothing from the output, or damaged.
    """
    return _rows_of(store, TASKS_NAME)


def read_survey_rows(store: Store) -> Iterator[dict[str, Any]]:
    """Rows of anabranch.survey.parquet, one per tensor and model; only outputs have it whose densities were surveyed.

    Raises:
        IntegrityError: the table is missing or damaged.
    """
    return _rows_of(store, SURVEY_NAME)


def _rows_of(store: Store, name: str) -> Iterator[dict[str, Any]]:
    try:
        for batch in table_batches(store, name):
            yield from batch.to_pylist()
    except (FileNotFoundError, InputError, IntegrityError) as error:
        what = "missing" if isinstance(error, FileNotFoundError) else f"damaged: {error.message}"
        raise IntegrityError(f"{store.url}/{name} is {what}", "see `anabranch verify`") from None


def table_problem(store: Store, name: str, digest: str) -> Problem | None:
    """Whether a table has the rows that were written; the bytes of Parquet files depend on the library's version."""
    try:
        found = rows_digest(table_batches(store, name))
    except FileNotFoundError:
        return Problem(name, "missing")
    except (IntegrityError, InputError) as error:
        return Problem(name, f"damaged: {error.message}")
    if found != digest:
        return Problem(name, "damaged: its rows are not those that were written")
    return None
