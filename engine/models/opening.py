"""Models as a recipe names them: checkpoints, as they are stored or quantised, with an adapter or masks of a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..storage import JoinedStore, Store, open_store
from .checkpoint import Checkpoint, open_checkpoint
from .config_json import json_object
from .location import TensorLocation
from .lora import with_adapter
from .quantised import with_scales
from .references import ModelUrl
from .room import Room
from .task_masks import is_part, refuse_part, unified_url, with_masks
from .tied_embeddings import with_own_copies

CONFIG_FILE = "config.json"
COMPARED_BYTES = 4 << 20
"""Of each of two tensors at a time."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What was opened so far, each once."""

    stores: dict[str, Store] = field(default_factory=dict)
    """By folder."""
    bases: dict[str, Checkpoint] = field(default_factory=dict)
    """Without adapters, by URL."""
    models: dict[ModelUrl, tuple[Checkpoint, Store]] = field(default_factory=dict)
    room: Room = field(default_factory=Room)
    """Memory for headers and texts."""

    def folder(self, url: str) -> Store:
        if url not in self.stores:
            self.stores[url] = open_store(url)
        return self.stores[url]


def open_models(urls: Iterable[ModelUrl], opened: Opened | None = None) -> Mapping[ModelUrl, tuple[Checkpoint, Store]]:
    """Read the headers of every model, adapter and mask, each once.

    Args:
        urls: the models.
        opened: what other recipes have opened already; gets these models, too.

    Returns:
        Per model the checkpoint, and the store from which its files are read.

    Raises:
        InputError: see `open_checkpoint`, `with_scales`, `with_adapter` and `with_masks`.
        ResourceError: headers and texts do not fit into the room.
    """
    opened, urls = opened or Opened(), list(urls)
    for url in urls:
        if url in opened.models:
            continue
        store = opened.folder(url.base)
        if url.base not in opened.bases:
            opened.bases[url.base] = _open_base(url.base, store, opened.room)
        base = opened.bases[url.base]
        if url.adapter is None:
            opened.models[url] = base, store
        else:
            adapter = opened.folder(url.adapter)
            if is_part(adapter):
                checkpoint = with_masks(base, adapter, opened.folder(unified_url(adapter)), opened.room)
            else:
                checkpoint = with_adapter(base, adapter, opened.room)
            others = [opened.folder(folder) for folder in checkpoint.folders[1:]]
            opened.models[url] = checkpoint, JoinedStore(checkpoint.url, store, others)
    return {url: opened.models[url] for url in urls}


def _open_base(url: str, store: Store, room: Room) -> Checkpoint:
    if is_part(store):
        refuse_part(store)
    checkpoint = open_checkpoint(url, store, room)
    config = _read_config(checkpoint, store, room)
    texts = [config, config.get("text_config")]
    said = [text["tie_word_embeddings"] for text in texts if isinstance(text, dict) and "tie_word_embeddings" in text]
    ties = said[0] if said and isinstance(said[0], bool) else None
    made = with_scales(replace(checkpoint, tied=ties, config=config), config)
    return with_own_copies(made, lambda first, second: _differ(made, store, first, second))


def _differ(checkpoint: Checkpoint, store: Store, first: TensorLocation, second: TensorLocation) -> bool:
    """Whether two stored tensors hold other values; read up to the first difference, in small pieces."""
    if first.derived is not None or second.derived is not None:
        return False
    if (first.info.dtype, first.info.shape) != (second.info.dtype, second.info.shape):
        return True
    pieces = memoryview(bytearray(COMPARED_BYTES)), memoryview(bytearray(COMPARED_BYTES))
    for begin in range(0, first.info.nbytes, COMPARED_BYTES):
        length = min(COMPARED_BYTES, first.info.nbytes - begin)
        for location, piece in zip((first, second), pieces, strict=True):
            file = checkpoint.files[location.file]
            store.read_into(file.name, location.info.offset + begin, piece[:length], file.version)
        if pieces[0][:length] != pieces[1][:length]:
            return True
    return False


def _read_config(checkpoint: Checkpoint, store: Store, room: Room) -> dict[str, Any]:
    """config.json; {} where there is none, or one that nobody could use."""
    if CONFIG_FILE not in checkpoint.side_files:
        return {}
    return json_object(room.read(store, CONFIG_FILE))
