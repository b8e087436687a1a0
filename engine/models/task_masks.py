"""The model of one task of EMR-Merging: a checkpoint whose tensors are computed from base, unified vector and mask.

W + scale * unified where the task's mask has a 1 (arXiv 2405.17461). The arithmetic is that of `derived.MaskedChange`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from ..recipe import TASK_NAME, UNIFIED
from ..storage import Store
from .checkpoint import Checkpoint, CheckpointFile, open_checkpoint
from .derived import MaskedChange
from .header import DTYPES, TensorInfo
from .location import TensorLocation
from .room import Room
from .tokens.json_members import finite_number

MAX_PART_BYTES = 64 << 20
FETCH = "Fetch the folder again, or run the merge again that made it."


@dataclass(frozen=True)
class PartFile:
    """What a part says of itself."""

    task: str | None
    """None: it is the unified task vector."""
    unified_id: str
    scale: float
    base: Mapping[str, Any]
    tasks: tuple[str, ...] = ()
    """Names of all tasks; the unified task vector knows them."""

    @property
    def base_url(self) -> str:
        return str(self.base["url"])


def is_part(store: Store) -> bool:
    """Whether a folder holds one of the parts that EMR-Merging writes."""
    return PART_NAME in store.list()


def read_part(store: Store, folder: str = "") -> PartFile:
    """The file that says what a part is.

    Args:
        store: where the part lies ...
        folder: ... in which folder of it.

    Raises:
        InputError: it is missing or damaged.
    """
    name = f"{folder}/{PART_NAME}" if folder else PART_NAME
    where = f"{store.url}/{name}"
    try:
        raw = json.loads(store.read_bytes(name, MAX_PART_BYTES))
    except FileNotFoundError:
        raise InputError(f"{where} is missing", FETCH) from None
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict) or raw.get("format") != PART_FORMAT or raw.get("version") != PART_VERSION:
        raise InputError(f"{where} is not what this version writes", FETCH)
    base, is_task = raw.get("base"), raw.get("part") == "task"
    task, unified_id = (raw.get("task"), raw.get("unified")) if is_task else ("", raw.get("plan_id"))
    scale = finite_number(raw.get("scale", 1.0))
    fits = isinstance(base, dict) and isinstance(base.get("url"), str) and isinstance(base.get("files"), list)
    known = not is_task or raw.get("bits") == BIT_ORDER
    named = isinstance(task, str) and isinstance(unified_id, str)
    if not fits or not known or not named or scale is None:
        raise InputError(f"{where} is damaged", FETCH)
    tasks = raw.get("tasks", [])
    if not isinstance(tasks, list) or not all(isinstance(t, str) and re.fullmatch(TASK_NAME, t) for t in tasks):
        raise InputError(f"{where} is damaged", FETCH)
    return PartFile(str(task) if is_task else None, str(unified_id), scale, dict(base or {}), tuple(tasks))


def parts_below(store: Store) -> list[str]:
    """Names of the folders in which the parts of one merge lie; [] where there are none.

    Raises:
        InputError: the file that names them is damaged.
    """
    if f"{UNIFIED}/{PART_NAME}" not in store.list(UNIFIED):
        return []
    return [UNIFIED, *read_part(store, UNIFIED).tasks]


def refuse_part(store: Store) -> None:
    """Raises InputError: a part stands where a model is expected."""
    part = read_part(store)
    if part.task is None:
        raise InputError(
            f"{store.url}: the unified task vector of EMR-Merging, which is no model",
            f"Name the model of a task: {part.base_url}+FOLDER with the task's folder beside this one.",
        )
    raise InputError(
        f"{store.url}: the masks of the task {part.task!r} of EMR-Merging, which need their base",
        f"Name the model as BASE+FOLDER: {part.base_url}+{store.url}",
    )


def unified_url(store: Store) -> str:
    """Where the unified task vector of a task's masks lies: beside them."""
    return f"{store.url.rstrip('/').rpartition('/')[0]}/{UNIFIED}"


def with_masks(base: Checkpoint, masks: Store, unified: Store, room: Room | None = None) -> Checkpoint:
    """The model that a task's masks make of their base.

    Args:
        base: the base, quantised weights already resolved.
        masks: the task's folder.
        unified: the folder of the unified task vector.
        room: memory for their headers; None: they take what they need.

    Raises:
        InputError: a part is missing or damaged, or the parts and the base do not belong together.
    """
    part = read_part(masks)
    if part.task is None:
        refuse_part(masks)
    _check_unified(part, masks, unified)
    if base_files(base.identity()) != part.base["files"]:
        raise InputError(
            f"{masks.url}: the masks of the task {part.task!r} belong to another base than {base.url}",
            f"They were made for {part.base_url}; name that model, or a copy of its files.",
        )
    change, bits = (open_checkpoint(store.url, store, room) for store in (unified, masks))
    own, shared = len(base.files), len(base.files) + len(bits.files)
    tensors = dict(base.tensors)
    for name, location in bits.tensors.items():
        tensors[name] = _changed(masks.url, part.scale, name, base, _moved(location, own), change, shared)
    note = (
        f"{base.url}+{masks.url}: the model of the task {part.task!r}; {len(bits.tensors)} of {len(base.tensors)} "
        f"tensors are changed, by {part.scale!r} times what the masks keep"
    )
    return replace(
        base,
        url=f"{base.url}+{masks.url}",
        files=(*base.files, *_files(bits, masks), *_files(change, unified)),
        tensors=tensors,
        folders=(*(base.folders or (base.url,)), masks.url, unified.url),
        decoding={**base.decoding, "masks": {"scale": part.scale, "unified": part.unified_id}},
        notes=(*base.notes, note),
    )


def _check_unified(part: PartFile, masks: Store, unified: Store) -> None:
    hint = f"The masks of a task need the unified task vector of the same merge in the folder `{UNIFIED}` beside them."
    if not is_part(unified):
        raise InputError(f"{unified.url}: no unified task vector, which {masks.url} needs", hint)
    found = read_part(unified)
    if found.task is not None or found.unified_id != part.unified_id:
        raise InputError(f"{unified.url}: not the unified task vector that {masks.url} belongs to", hint)


def _files(checkpoint: Checkpoint, store: Store) -> tuple[CheckpointFile, ...]:
    return tuple(replace(file, name=f"{store.url}/{file.name}") for file in checkpoint.files)


def _moved(location: TensorLocation, by: int) -> TensorLocation:
    return replace(location, file=location.file + by)


def _changed(
    where: str, scale: float, name: str, base: Checkpoint, bits: TensorLocation, change: Checkpoint, first_file: int
) -> TensorLocation:
    """One tensor of the task's model."""
    weight, vector = base.tensors.get(name), change.tensors.get(name)
    if weight is None or vector is None:
        lacking = base.url if weight is None else change.url
        raise InputError(f"{where}: {name!r} has a mask, and {lacking} lacks it", FETCH)
    sizes = [-(-weight.info.numel // 8)]
    if vector.info.shape != weight.info.shape or bits.info.dtype != "U8" or list(bits.info.shape) != sizes:
        raise InputError(
            f"{where}: {name!r} has {list(bits.info.shape)} bytes of bits and a change of shape "
            f"{list(vector.info.shape)}, the base has shape {list(weight.info.shape)}",
            FETCH,
        )
    for location in (weight, vector):
        kind = DTYPES[location.info.dtype]
        if kind.kind != "float" or kind.bits > 32:
            raise InputError(f"{where}: {name!r} is {kind.name}, which has no masked changes", FETCH)
    made = MaskedChange(weight, _moved(vector, first_file), bits, scale)
    return TensorLocation(weight.file, TensorInfo(name, "F32", weight.info.shape, 0), made)


PART_NAME = "anabranch.emr.json"
"""What a part is, in its folder."""


PART_FORMAT = "anabranch.emr"


PART_VERSION = 1


BIT_ORDER = "element i of the flattened tensor is bit i % 8, counted from the least significant one, of byte i // 8"


def base_files(identity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a copy of the base still has in common with it: sizes and headers of its files, from its identity."""
    return [{"size": file["size"], "header_sha256": file["header_sha256"]} for file in identity["files"]]
