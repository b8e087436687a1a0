"""Storage: where bytes lie, and how files appear whole or not at all.

Held by tests/contract (what every store must do), tests/unit/storage, tests/s3 and tests/faults.
"""

from __future__ import annotations

from .digests import BLOCK_BYTES, block_digest, read_digest, stretch_digest
from .joined import JoinedStore
from .local_files import absolute_path, translate
from .memory import MemoryStore
from .opening import client_bytes, crosses_network, open_hub_upload, open_output, open_store
from .protocol import (
    DEFAULT_READ_LIMIT_BYTES,
    FileInfo,
    Leftover,
    PartedStore,
    Store,
    UnjoinableError,
    Upload,
    Writer,
)
from .running_digest import RunningDigest, digests_move, moving_digest

__all__ = [
    "BLOCK_BYTES",
    "DEFAULT_READ_LIMIT_BYTES",
    "FileInfo",
    "JoinedStore",
    "Leftover",
    "MemoryStore",
    "PartedStore",
    "RunningDigest",
    "Store",
    "UnjoinableError",
    "Upload",
    "Writer",
    "absolute_path",
    "block_digest",
    "client_bytes",
    "crosses_network",
    "digests_move",
    "moving_digest",
    "open_hub_upload",
    "open_output",
    "open_store",
    "read_digest",
    "stretch_digest",
    "translate",
]
