"""Whose an output directory is, even where the file that says so is damaged."""

from __future__ import annotations

import json
from contextlib import suppress

from ..errors import InputError
from ..json_text import unsealed
from ..storage import Store
from .manifest import MANIFEST_NAME, PLAN_NAME, RECEIPTS_FOLDER, SURVEY_FOLDER, decode_manifest


def owner_of(store: Store, plan_id: str) -> str | None:
    """The id of the plan that has a directory; None: no plan has it.

    Where plan.json is damaged, other records must say whose it is before it is made again: a directory with files of
    which nobody knows is not taken.

    Args:
        store: the directory.
        plan_id: of the plan that would have it; a directory with nothing but a damaged plan.json is its.

    Raises:
        IntegrityError: nothing but a manifest could say it, and that is none.
    """
    try:
        data = store.read_bytes(PLAN_NAME)
    except FileNotFoundError:
        return None
    except InputError:
        data = b""
    try:
        return str(unsealed(data)["plan_id"])
    except (ValueError, KeyError):
        return _other_in(data, plan_id) or _elsewhere(store, plan_id)


def _other_in(damaged: bytes, plan_id: str) -> str | None:
    """Another plan's id, where the damaged file still shows one."""
    try:
        found = json.loads(damaged)["plan_id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) and found != plan_id else None


def _elsewhere(store: Store, plan_id: str) -> str:
    for name in [*store.list(RECEIPTS_FOLDER), *store.list(SURVEY_FOLDER)]:
        with suppress(ValueError, KeyError, FileNotFoundError, InputError):
            if name.endswith(".json"):
                return str(unsealed(store.read_bytes(name))["plan_id"])
    if MANIFEST_NAME in (listed := store.list()):
        return decode_manifest(store.read_bytes(MANIFEST_NAME), f"{store.url}/{MANIFEST_NAME}").plan_id
    return "(unreadable)" if listed else plan_id
