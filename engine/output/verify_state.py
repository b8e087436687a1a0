"""The working files of a finished output against its manifest: plan, receipts with their tables, parts of surveys."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ..errors import InputError, IntegrityError
from ..json_text import SEAL, unsealed
from ..storage import Store
from .manifest import INPUTS_NAME, PLAN_NAME, RECEIPTS_FOLDER, SURVEY_FOLDER, Manifest
from .problems import Problem, check_file
from .receipts import StoredReceipt, StoredSurveyPart, decode_stored, decode_stored_part

Stored = TypeVar("Stored", bound=StoredReceipt | StoredSurveyPart)
MAX_STATE_BYTES = 1 << 30
OTHER_PLAN = "belongs to another plan than the manifest"


def state_problems(store: Store, manifest: Manifest) -> Iterator[Problem]:
    """What is damaged or says something else than the manifest; working files that are not there are not missed."""
    if _is_older(store):
        return
    yield from _check(store, PLAN_NAME, lambda record: _plan_differs(record, manifest))
    yield from _check(store, INPUTS_NAME, lambda record: _other_plan(record, manifest))
    for name in store.list(SURVEY_FOLDER):
        if name.endswith(".json"):
            yield from _tabled_problems(store, name, manifest, decode_stored_part)
    for name in store.list(RECEIPTS_FOLDER):
        if name.endswith(".json"):
            yield from _receipt_problems(store, name, manifest)


def _check(store: Store, name: str, differs: Callable[[Mapping[str, Any]], str]) -> Iterator[Problem]:
    try:
        data = store.read_bytes(name, MAX_STATE_BYTES)
        if text := differs(unsealed(data)):
            yield Problem(name, text)
    except FileNotFoundError:
        return
    except (ValueError, InputError) as error:
        yield Problem(name, f"damaged: {error}")


def _is_older(store: Store) -> bool:
    """Whether the working files are of a version that wrote no digests and did not note its inputs."""
    if INPUTS_NAME in (listed := store.list(PLAN_NAME.rpartition("/")[0])) or PLAN_NAME not in listed:
        return False
    try:
        record = json.loads(store.read_bytes(PLAN_NAME, MAX_STATE_BYTES))
    except (ValueError, RecursionError, InputError):
        return False
    return isinstance(record, dict) and SEAL not in record


def _other_plan(record: Mapping[str, Any], manifest: Manifest) -> str:
    return "" if record.get("plan_id") == manifest.plan_id else OTHER_PLAN


def _plan_differs(record: Mapping[str, Any], manifest: Manifest) -> str:
    expected = {
        "plan_id": manifest.plan_id,
        "numerics": manifest.numerics,
        "recipe": manifest.recipe,
        "inputs": manifest.inputs,
    }
    wrong = [key for key, value in expected.items() if record.get(key) != value]
    return f"says something else than the manifest of {', '.join(wrong)}" if wrong else ""


def _receipt_problems(store: Store, name: str, manifest: Manifest) -> Iterator[Problem]:
    """The record itself, its shard as the manifest knows it, and its table."""

    def differs(stored: StoredReceipt) -> str:
        entry = manifest.files.get(stored.name)
        same = entry is not None and (entry.size, entry.sha256) == (stored.size, stored.sha256)
        return "" if same else "says something else of its shard than the manifest"

    return _tabled_problems(store, name, manifest, decode_stored, differs)


def _tabled_problems(
    store: Store,
    name: str,
    manifest: Manifest,
    decode: Callable[[bytes], Stored],
    differs: Callable[[Stored], str] = lambda _: "",
) -> Iterator[Problem]:
    """A record whose rows are a table beside it, as a receipt and a part of a survey are."""
    try:
        stored = decode(store.read_bytes(name, MAX_STATE_BYTES))
    except FileNotFoundError:
        return
    except (IntegrityError, InputError) as error:
        yield Problem(name, f"damaged: {error.message}")
        return
    if stored.plan_id != manifest.plan_id:
        yield Problem(name, OTHER_PLAN)
    if text := differs(stored):
        yield Problem(name, text)
    table = f"{name.removesuffix('.json')}.parquet"
    if stored.rows is not None and (problem := check_file(store, table, stored.rows, lambda _: None)):
        yield problem
