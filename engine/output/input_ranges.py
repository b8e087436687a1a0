"""Which bytes of which input files an output was made from: gathered from receipts, as a table and in short."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, NamedTuple

from ..errors import InputError, IntegrityError
from ..json_text import canonical_json
from ..plan import InputRange, Plan, Receipt
from ..storage import Store
from .manifest import INPUT_RANGES_NAME, MANIFEST_NAME, Manifest, ReadFile
from .problems import Problem
from .tables import rows_digest, table_batches

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
    urls = plan.input_files
    arrow = pyarrow.table(
        {
            "url": pyarrow.array([urls[part.file] for part in found], pyarrow.string()),
            "begin": pyarrow.array([part.begin for part in found], pyarrow.int64()),
            "end": pyarrow.array([part.end for part in found], pyarrow.int64()),
            "block": pyarrow.array([part.unit for part in found], pyarrow.int64()),
            "xxh3_64": pyarrow.array([f"{part.digest:016x}" for part in found], pyarrow.string()),
        }
    )
    files = [
        _file(urls[place], plan.input_headers[place], (RangeRow(*part[1:4], f"{part.digest:016x}") for part in parts))
        for place, parts in groupby(found, lambda part: part.file)
    ]
    return InputRanges(arrow, rows_digest(arrow.to_batches()), files)


def read_problem(store: Store, manifest: Manifest) -> Problem | None:
    """Whether manifest and table say the same of what was read; the table's own digest has been checked."""
    headers = {read.url: read.header_sha256 for read in manifest.read}
    inputs = canonical_json(manifest.inputs).decode()
    by_url = groupby(table_rows(store), lambda found: found[0])
    try:
        read = [_file(url, headers.get(url, ""), (row for _, row in rows)) for url, rows in by_url]
    except IntegrityError as error:
        return Problem(INPUT_RANGES_NAME, f"damaged: {error.message}")
    if read != manifest.read or not all(f'"{header}"' in inputs for header in headers.values()):
        text = f"damaged: what it says of inputs that were read does not fit {INPUT_RANGES_NAME}"
        return Problem(MANIFEST_NAME, text)
    return None


def table_rows(store: Store) -> Iterator[tuple[str, RangeRow]]:
    """The rows of a published table with their URL, a few in memory at once.

    Raises:
        IntegrityError: the table is damaged, or has rows that no merge writes.
        FileNotFoundError: there is none.
    """
    for batch in table_batches(store, INPUT_RANGES_NAME):
        for values in batch.to_pylist():
            try:
                url, row = str(values.pop("url")), RangeRow(**values)
                sound = 0 <= row.begin < row.end and row.block > 0
            except (KeyError, TypeError) as error:
                raise IntegrityError(f"it has other columns or values: {error}") from None
            if not sound:
                raise IntegrityError(f"it has a range that cannot be: {url}: {row}")
            yield url, row


class RangeRow(NamedTuple):
    """A row of the table, without the file."""

    begin: int
    end: int
    block: int
    xxh3_64: str


def _file(url: str, header_sha256: str, rows: Iterable[RangeRow]) -> ReadFile:
    """What the rows of one file, sorted, come to."""
    digest, count, size, reached = hashlib.sha256(), 0, 0, 0
    for begin, end, block, xxh3_64 in rows:
        size += max(0, end - max(begin, reached))
        reached = max(reached, end)
        digest.update(f"{begin} {end} {block} {xxh3_64}\n".encode())
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
