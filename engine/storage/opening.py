"""The store of a URL."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import InputError
from .protocol import Store, Upload

_CLIENT_BYTES = {"s3": 64 << 20, "gs": 64 << 20, "az": 96 << 20, "abfss": 96 << 20}
_OTHER_CLIENT_BYTES = 64 << 20

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")


def open_store(url: str, *, create: bool = False, own: bool = False) -> Store:
    """Open the folder at a URL: a local path, `file://`, `memory://` (this process) or any fsspec URL.

    Args:
        url: the folder.
        create: make the folder when it does not exist, so that a missing permission shows at once.
        own: it is an output, whose files are ours: where there are links, none below the folder is followed.

    Raises:
        InputError: the URL cannot be understood, or no installed package knows its scheme.
        ResourceError: the folder cannot be created.
    """
    if not url or "\0" in url:
        raise InputError(f"{url!r} is not a folder or URL")
    if "::" in url and "://" in url:
        raise InputError("chained URLs (with '::') are not supported", "Give the URL of the folder itself.")
    scheme = _SCHEME.match(url)
    if scheme is None or scheme[1].lower() == "file":
        from .local import LocalStore

        return LocalStore(url if scheme is None else url[scheme.end() :], create=create, own=own)
    if scheme[1].lower() == "memory":
        from .memory import MemoryStore

        return MemoryStore.shared(url)
    from .fsspec_store import open_remote_store

    return open_remote_store(url)


def open_hub_upload(url: str, revision: str) -> Upload:
    """Where files go that shall become visible together in a repository of the Hugging Face hub.

    Raises:
        InputError: the URL is not hf://owner/name.
    """
    from .hub_upload import HubUpload

    return HubUpload(url, revision)


def open_output(url: str, last: str, *, create: bool = False) -> Store:
    """As `open_store`, of a folder that is written: on the hub nothing is visible before the file `last` is created."""
    if not url.lower().startswith("hf://"):
        return open_store(url, create=create, own=True)
    from .hub_output import HubOutput

    return HubOutput(url, last, create=create)


def crosses_network(url: str) -> bool:
    """Whether a store's URL is neither a local path nor memory of this process."""
    return "://" in url and not url.startswith(("file://", "memory://"))


def client_bytes(urls: Iterable[str]) -> int:
    """Memory of the clients that serve some URLs, with their libraries, connections and answers on the way; 0 if local.

    Measured with sixteen readers of 8 MiB: S3 40 MiB, Google 48 MiB, Azure 47 MiB, and 33 MiB more where its
    credentials come from a login or a managed identity.
    """
    schemes = {url.partition("://")[0] for url in urls if crosses_network(url)}
    return sum(_CLIENT_BYTES.get(scheme, _OTHER_CLIENT_BYTES) for scheme in schemes)
