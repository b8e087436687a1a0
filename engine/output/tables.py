"""Parquet tables: the plan's tasks, and what every model gave to every tensor."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError, IntegrityError
from ..json_text import canonical_json
from ..plan import Plan, Receipt
from ..storage import Store
from .problems import Problem

if TYPE_CHECKING:  # imported where a table is made: workers never need it
    import pyarrow

MAX_TABLE_BYTES = 1 << 30


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
    """tensor, model, action, numel, density, kept, overlaps with every model, norms; in plan order."""
    import pyarrow

    by_name = {row.name: row for receipt in receipts for row in receipt.tensors}
    names = [f"{i}" for i in range(len(plan.models))]
    rows: list[dict[str, Any]] = []
    totals = [_Total(len(names)) for _ in names]
    for task in plan.tasks:
        row = by_name[task.name]
        for position, model in enumerate(row.models):
            if model is None:
                continue
            i = task.model_of(position)
            overlaps = [0] * len(names)
            for a, b, count in row.overlaps:
                if position in (a, b):
                    overlaps[task.model_of(b if position == a else a)] = count
            totals[i].add(task.numel, model.kept, overlaps)
            rows.append(
                {
                    "tensor": task.name,
                    "model": i,
                    "numel": task.numel,
                    "density": model.density,
                    "kept": model.kept,
                    "kept_fraction": model.kept / task.numel,
                    "overlaps": overlaps,
                    "l1": model.l1,
                    "l2": model.l2,
                    "nonfinite": row.nonfinite,
                    "overflowed": row.overflowed,
                }
            )
    summary = [_summary(plan, totals, i) for i in range(len(names))]
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
            ("nonfinite", pyarrow.int64()),
            ("overflowed", pyarrow.int64()),
        ]
    )
    digest = hashlib.sha256(canonical_json(rows)).hexdigest()
    return TensorsTable(pyarrow.Table.from_pylist(rows, schema=schema), digest, summary)


class _Total:
    """Elements of one model over all merged tensors."""

    def __init__(self, models: int) -> None:
        self.numel = 0
        self.kept = 0
        self.overlaps = [0] * models

    def add(self, numel: int, kept: int, overlaps: Sequence[int]) -> None:
        self.numel += numel
        self.kept += kept
        self.overlaps = [a + b for a, b in zip(self.overlaps, overlaps, strict=True)]


def _summary(plan: Plan, totals: Sequence[_Total], i: int) -> dict[str, Any]:
    """Kept fraction of model i, and |A and B| / |A or B| with every other model."""
    shares = {}
    for j, other in enumerate(totals):
        if j != i:
            both = totals[i].overlaps[j]
            either = totals[i].kept + other.kept - both
            shares[str(j)] = both / either if either else 0.0
    kept = totals[i].kept / totals[i].numel if totals[i].numel else 0.0
    return {"model": i, "url": plan.models[i].url, "kept_fraction": kept, "overlap": shares}


def write_table(table: pyarrow.Table) -> bytes:
    """A Parquet file in memory."""
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def read_table(data: bytes, rows: int | None = None, limit_bytes: int = MAX_TABLE_BYTES) -> pyarrow.Table:
    """The table in a Parquet file; small files that unpack to much more than they may hold are not unpacked.

    Threads of the library are never started: they were seen to abort a process that ends.

    Raises:
        IntegrityError: it is no Parquet file, is damaged, or has not so many rows, or more than `limit_bytes`.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data), pre_buffer=False)
        meta = file.metadata
        size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        if rows is not None and meta.num_rows != rows:
            raise IntegrityError(f"it has {meta.num_rows} rows, expected {rows}")
        if not 0 <= size <= limit_bytes:
            raise IntegrityError(f"it unpacks to {size} bytes, expected at most {limit_bytes}")
        return file.read(use_threads=False)
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        raise IntegrityError(f"it cannot be read: {type(error).__name__}: {error}") from None


def table_problem(store: Store, name: str, digest: str) -> Problem | None:
    """Whether a table has the rows that were written; the bytes of Parquet files depend on the library's version."""
    try:
        rows = read_table(store.read_bytes(name, MAX_TABLE_BYTES)).to_pylist()
    except FileNotFoundError:
        return Problem(name, "missing")
    except (IntegrityError, InputError) as error:
        return Problem(name, f"damaged: {error.message}")
    if hashlib.sha256(canonical_json(rows)).hexdigest() != digest:
        return Problem(name, "damaged: its rows are not those that were written")
    return None
