"""What killed runs left in an output directory: temporary files, and uploads that were never completed."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ..engine.errors import InputError, IntegrityError
from ..engine.models import INDEX_NAME, check_file_name
from ..engine.output import (
    INPUTS_NAME,
    MANIFEST_NAME,
    PLAN_NAME,
    RECEIPTS_FOLDER,
    SURVEY_FOLDER,
    SURVEY_NAME,
    TASKS_NAME,
    TENSORS_NAME,
)
from ..engine.storage import Leftover, Store

OLD_SECONDS = 24 * 3600.0
"""Younger ones may belong to a run that is still writing."""


def find_leftovers(store: Store, older_than_seconds: float = OLD_SECONDS) -> tuple[Leftover, ...]:
    """What unfinished writes of this output's own files left behind, old enough that nobody is writing any more.

    Raises:
        IntegrityError: the directory's plan cannot be read.
    """
    return store.leftovers(list(_own_names(store)), older_than_seconds)


def _own_names(store: Store) -> Iterator[str]:
    """Every large file that the plan of this output may write, and the small ones around them."""
    yield from (PLAN_NAME, TASKS_NAME, INPUTS_NAME, TENSORS_NAME, SURVEY_NAME, INDEX_NAME, MANIFEST_NAME)
    yield from store.list(SURVEY_FOLDER)
    try:
        layout = json.loads(store.read_bytes(PLAN_NAME))["layout"]
        names = [str(shard["name"]) for shard in layout]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, RecursionError):
        raise IntegrityError(f"{store.url}/{PLAN_NAME} is not a plan") from None
    for name in names:
        try:
            check_file_name(name, f"{store.url}/{PLAN_NAME}")
        except InputError as error:  # the plan may be anybody's: its names must not lead out of the folder
            raise IntegrityError(error.message) from None
        yield name
        yield f"{RECEIPTS_FOLDER}/{name}.json"
        yield f"{RECEIPTS_FOLDER}/{name}.parquet"
