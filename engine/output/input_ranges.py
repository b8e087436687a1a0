"""Which bytes of which input files an output was made from: gathered from receipts, as a table and in short."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..json_text import canonical_json
from ..plan import InputRange, Plan, Receipt
from ..storage import Store
from .manifest import INPUT_RANGES_NAME, MANIFEST_NAME, Manifest, ReadFile
from .problems import Problem
from .tables import hashed_table, table_batches

if TYPE_CHECKING:  # imported where a table is made
    import pyarrow


class ChangedInputError(InputError):
    """Shards were made from different bytes of one input."""

    def __init__(self, message: str, hint: str, shards: Collection[int]) -> None:
        super().__init__(message, hint)
        self.shards = shards


@dataclass(frozen=True)
class InputRanges:
    """All ranges, each once."""

    arrow: pyarrow.Table
    """url, begin, end, block, xxh3_64 (in hexadecimal); by file in the order of the inputs, then by place."""
    digest: str
    """SHA-256 over the rows."""
    files: list[ReadFile]


def gather_ranges(plan: Plan, receipts: Sequence[Receipt]) -> InputRanges:
    """What all shards of a plan read.

    Raises:
        ChangedInputError: two of them read the same range and found different bytes.
    """
    import pyarrow

    found = sorted({part for receipt in receipts for row in receipt.tensors for part in row.inputs})
    for one, other in pairwise(found):
        if one[:4] == other[:4]:
            raise _changed(plan, receipts, one)
    schema = pyarrow.schema(
        [
            ("url", pyarrow.string()),
            ("begin", pyarrow.int64()),
            ("end", pyarrow.int64()),
            ("block", pyarrow.int64()),
            ("xxh3_64", pyarrow.string()),
        ]
    )
    arrow, digest = hashed_table((_row(plan, part) for part in found), schema)
    files = [
        _file(plan.input_files[place], plan.input_headers[place], (_row(plan, part) for part in parts))
        for place, parts in groupby(found, lambda part: part.file)
    ]
    return InputRanges(arrow, digest, files)


def read_problem(store: Store, manifest: Manifest) -> Problem | None:
    """Whether manifest and table say the same of what was read; the table's own digest has been checked."""
    rows = (row for batch in table_batches(store, INPUT_RANGES_NAME) for row in batch.to_pylist())
    headers = {read.url: read.header_sha256 for read in manifest.read}
    by_url = groupby(rows, lambda row: str(row["url"]))
    found = [_file(url, headers.get(url, ""), parts) for url, parts in by_url]
    inputs = canonical_json(manifest.inputs).decode()
    if found != manifest.read or not all(f'"{header}"' in inputs for header in headers.values()):
        return Problem(
            MANIFEST_NAME, f"damaged: what it says of inputs that were read does not fit {INPUT_RANGES_NAME}"
        )
    return None


def _row(plan: Plan, part: InputRange) -> dict[str, Any]:
    return {
        "url": plan.input_files[part.file],
        "begin": part.begin,
        "end": part.end,
        "block": part.unit,
        "xxh3_64": f"{part.digest:016x}",
    }


def _file(url: str, header_sha256: str, rows: Iterable[Mapping[str, Any]]) -> ReadFile:
    """What the rows of one file, sorted, come to."""
    digest, count, size, reached = hashlib.sha256(), 0, 0, 0
    for row in rows:
        size += max(0, row["end"] - max(row["begin"], reached))
        reached = max(reached, row["end"])
        digest.update(canonical_json(row))
        count += 1
    return ReadFile(url=url, header_sha256=header_sha256, bytes=size, ranges=count, sha256=digest.hexdigest())


def _changed(plan: Plan, receipts: Sequence[Receipt], part: InputRange) -> ChangedInputError:
    shards = [
        receipt.shard
        for receipt in receipts
        if any(other[:4] == part[:4] for row in receipt.tensors for other in row.inputs)
    ]
    return ChangedInputError(
        f"{plan.input_files[part.file]}: bytes {part.begin} to {part.end} were not the same whenever they were read",
        "The file was changed, or memory, disk or network change bytes. When that has stopped, run the same command "
        "again: it makes what was made from them again.",
        shards,
    )
