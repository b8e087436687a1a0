"""What a finished output keeps of every tensor and model, read again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import IntegrityError
from ..storage import Store
from .manifest import TENSORS_NAME

MAX_TABLE_BYTES = 1 << 30


def read_tensor_rows(store: Store) -> Iterator[dict[str, Any]]:
    """Rows of anabranch.tensors.parquet, one per tensor and model in plan order; a few are in memory at once.

    Raises:
        IntegrityError: the table is missing or damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(store.read_bytes(TENSORS_NAME, MAX_TABLE_BYTES)))
    except (FileNotFoundError, pyarrow.ArrowException) as error:
        what = "missing" if isinstance(error, FileNotFoundError) else f"damaged: {error}"
        raise IntegrityError(f"{store.url}/{TENSORS_NAME} is {what}", "see `anabranch verify`") from None
    for batch in table.to_batches(1024):
        yield from batch.to_pylist()
