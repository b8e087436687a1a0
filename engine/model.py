"""Models as a recipe names them: checkpoints, as they are stored or quantised, with or without an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .adapter import with_adapter
from .checkpoint import Checkpoint, open_checkpoint
from .model_url import ModelUrl
from .quantised import with_block_scales
from .storage import Store, open_store
from .storage.joined import JoinedStore


def open_models(urls: Iterable[ModelUrl]) -> Mapping[ModelUrl, tuple[Checkpoint, Store]]:
    """Read the headers of every model and adapter, each once.

    Returns:
        Per model the checkpoint, and the store from which its files are read.

    Raises:
        InputError: see `open_checkpoint`, `with_block_scales` and `with_adapter`.
    """
    stores: dict[str, Store] = {}
    bases: dict[str, Checkpoint] = {}
    found: dict[ModelUrl, tuple[Checkpoint, Store]] = {}

    def folder(url: str) -> Store:
        if url not in stores:
            stores[url] = open_store(url)
        return stores[url]

    for url in urls:
        if url in found:
            continue
        store = folder(url.base)
        if url.base not in bases:
            bases[url.base] = with_block_scales(open_checkpoint(url.base, store), store)
        if url.adapter is None:
            found[url] = bases[url.base], store
        else:
            adapter = folder(url.adapter)
            checkpoint = with_adapter(bases[url.base], adapter)
            found[url] = checkpoint, JoinedStore(checkpoint.url, store, [adapter])
    return found
