"""The cache of the Hugging Face Hub: what transformers downloaded there is read where the hub cannot be asked."""

from __future__ import annotations

import hashlib
import os
import re

from ..errors import InputError
from .local import LocalStore
from .protocol import FileInfo

COMMIT = re.compile(r"[0-9a-f]{40}")
_LFS = re.compile(r"[0-9a-f]{64}")
_SAFE = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")


def cached_snapshot(repository: str, revision: str | None) -> tuple[str, str] | None:
    """(commit, folder) of a repository as it lies in the cache; None where it does not.

    Args:
        repository: `owner/name`.
        revision: a commit, a branch or a tag that was downloaded by this name; None: `main`.
    """
    from huggingface_hub import constants

    home = os.path.join(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    commit = revision or "main"
    if not COMMIT.fullmatch(commit):
        if not _SAFE.fullmatch(commit) or ".." in commit.split("/"):
            return None
        try:
            with open(os.path.join(home, "refs", commit), encoding="ascii") as file:
                commit = file.read(100).strip()
        except (OSError, ValueError):
            return None
    folder = os.path.join(home, "snapshots", commit)
    return (commit, folder) if COMMIT.fullmatch(commit) and os.path.isdir(folder) else None


class HubCacheStore(LocalStore):
    """A model in the cache, under the hub's URL and with the versions that the hub itself gives its files.

    So a plan does not depend on where the same commit was read from.
    """

    def __init__(self, url: str, folder: str) -> None:
        super().__init__(folder)
        self._hub_url = url

    @property
    def url(self) -> str:
        """`hf://owner/name@commit`."""
        return self._hub_url

    def info(self, name: str) -> FileInfo:
        """See `Store.info`."""
        found = super().info(name)
        return FileInfo(found.size, self._version(name, found))

    def read_into(self, name: str, offset: int, into: memoryview, version: str | None = None) -> None:
        """See `Store.read_into`."""
        if version is not None:
            found = super().info(name)
            if self._version(name, found) != version:
                raise InputError(
                    f"{self._hub_url}/{name}: changed while in use, in the cache at {self.path(name)}",
                    "Download it again, or start a new output from the changed inputs.",
                )
            version = found.version
        super().read_into(name, offset, into, version)

    def _version(self, name: str, found: FileInfo) -> str:
        """Git's name of the content: the cache calls a file by it, or by the SHA-256 that stands in its LFS pointer."""
        blob = os.path.basename(os.path.realpath(self.path(name)))
        if _LFS.fullmatch(blob):
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{blob}\nsize {found.size}\n".encode()
            blob = hashlib.sha1(b"blob %d\0%s" % (len(pointer), pointer), usedforsecurity=False).hexdigest()
        return f"{blob}-{found.size}" if COMMIT.fullmatch(blob) else found.version
