"""A repository of the Hugging Face hub as an output: shards go there one by one, all of it becomes visible at once.

The hub keeps a content under its SHA-256, seen by nobody, until a commit names it. So a shard is written to a file of
this machine, hashed, uploaded, and the file removed: one shard at a time takes space here. What is small (records of
the run, side files, index) stays in a folder of the user's cache until the last file is created, which makes the
commit. That folder also says which shards are there; the hub is asked whether it still has them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from ..errors import InputError, OutputConflictError, ResourceError, TemporaryError, some_names
from .fsspec_store import open_remote_store
from .hub_upload import MAIN, HubUpload
from .local import LocalStore
from .protocol import DEFAULT_READ_LIMIT_BYTES, FileInfo, Leftover, Store, Writer

STATE_VARIABLE = "ANABRANCH_HUB_STATE"
"""Environment variable that names another folder than that of the user's cache."""
COMMITS = 5
"""Tries while others commit to the same branch."""
PIECE_BYTES = 4 << 20
"""Read and hashed at once."""
SHARDS = "uploaded"
"""Folder of the state with a record for each uploaded file."""

OF_THE_HUB = ".gitattributes"
"""A file that the hub adds to every repository."""

_URL = re.compile(r"hf://(?P<repository>[^/@\s]+/[^/@\s]+)(?:@(?P<branch>[^@\s]+))?/?")


class HubOutput:
    """See `Store`.

    Args:
        url: `hf://owner/name` or `hf://owner/name@branch`.
        last: name of the file whose creation makes everything visible.
        create: make repository and branch, private, where they are missing.
    """

    def __init__(self, url: str, last: str, *, create: bool = False) -> None:
        match = _URL.fullmatch(url)
        if match is None:
            raise InputError(
                f"{url}: expected hf://owner/name or hf://owner/name@branch", "A repository takes one output."
            )
        branch = match["branch"] or MAIN
        self._upload = HubUpload(f"hf://{match['repository']}", branch)
        self._url = self._upload.url if branch == MAIN else f"{self._upload.url}@{branch}"
        self._last = last
        self._state = LocalStore(str(_state_folder(self._url)), create=create)
        self._given_up = False
        """What is visible is not what it should be, and will be committed anew."""
        if create:
            self._upload.open(public=False)
            _, present = self._upload.head()
            if last not in present:
                self._refuse(self._upload.others(present, ()))

    @property
    def url(self) -> str:
        """hf://owner/name, and the branch unless it is main."""
        return self._url

    # -- what is there -------------------------------------------------------------------------------------------

    @functools.cached_property
    def _visible(self) -> tuple[Store, frozenset[str]] | None:
        """The branch as it is, where it has the last file."""
        found = self._upload.find()
        if found is None or self._last not in found[1]:
            return None
        return open_remote_store(f"{self._upload.url}@{found[0]}"), frozenset(found[1])

    @functools.cached_property
    def _uploaded(self) -> dict[str, tuple[int, str]]:
        """Size and digest of the uploaded files that the hub still has."""
        records = {}
        for name in self._state.list(SHARDS):
            record = json.loads(self._state.read_bytes(name))
            records[name.removeprefix(f"{SHARDS}/").removesuffix(".json")] = record["size"], record["sha256"]
        held = self._upload.held(records.values())
        return {name: record for name, record in records.items() if record[1] in held}

    @property
    def _seen(self) -> tuple[Store, frozenset[str]] | None:
        return None if self._given_up else self._visible

    def _in_commit(self, name: str) -> Store | None:
        """The store that has a file, if it is visible."""
        return self._seen[0] if self._seen is not None and name in self._seen[1] else None

    def info(self, name: str) -> FileInfo:
        """See `Store.info`; the version of an uploaded file is its digest."""
        if name in self._uploaded and (self._seen is None or name in self._seen[1]):
            size, sha256 = self._uploaded[name]
            return FileInfo(size, sha256)
        return (self._in_commit(name) or self._state).info(name)

    def list(self, folder: str = "") -> list[str]:
        """See `Store.list`."""
        if folder:
            return self._state.list(folder)
        visible = self._seen[1] if self._seen is not None else ()
        names = {*self._state.list(), *self._uploaded, *(name for name in visible if "/" not in name)}
        return sorted(names - {OF_THE_HUB})

    def read_into(self, name: str, offset: int, into: memoryview, version: str | None = None) -> None:
        """See `Store.read_into`; an uploaded file can be read when it is visible."""
        if (visible := self._in_commit(name)) is not None:
            return visible.read_into(name, offset, into, version)
        if name in self._uploaded:
            raise ResourceError(f"{self._url}/{name}: the hub shows it after the commit only")
        return self._state.read_into(name, offset, into, version)

    def read_bytes(self, name: str, limit_bytes: int = DEFAULT_READ_LIMIT_BYTES) -> bytes:
        """See `Store.read_bytes`."""
        store = self._in_commit(name) or self._state
        return store.read_bytes(name, limit_bytes)

    def attributes(self, name: str) -> Mapping[str, str] | None:
        """None: receipts say what the files are."""
        del name
        return None

    # -- what is made --------------------------------------------------------------------------------------------

    def replace(self, name: str, data: bytes) -> None:
        """See `Store.replace`."""
        self._state.replace(name, data)

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`; of the last file it is the commit."""
        return self._commit(data) if name == self._last else self._state.create(name, data)

    def writer(self, name: str, size: int, attributes: Mapping[str, str], run_id: str) -> Writer:
        """See `Store.writer`; the file is uploaded when it is whole."""
        return _UploadWriter(self, name, size, self._state.writer(name, size, attributes, run_id))

    def upload(self, name: str, size: int, sha256: str) -> None:
        """Send a file of the state folder to the hub, note it, and remove it here."""
        self._upload.add(self._state, name, size, sha256, lambda _: None)
        self._state.replace(f"{SHARDS}/{name}.json", json.dumps({"size": size, "sha256": sha256}).encode())
        self._uploaded[name] = size, sha256
        self._state.delete(name)

    def delete(self, name: str) -> None:
        """See `Store.delete`; what is visible stays in the history of the repository."""
        if name == self._last:
            self._given_up = True
            return
        if self._uploaded.pop(name, None) is not None:
            self._state.delete(f"{SHARDS}/{name}.json")
        self._state.delete(name)

    def leftovers(self, names: Collection[str], older_than_seconds: float = 0.0) -> tuple[Leftover, ...]:
        """See `Store.leftovers`: of this machine."""
        return self._state.leftovers(names, older_than_seconds)

    def delete_leftover(self, leftover: Leftover) -> None:
        """See `Store.delete_leftover`."""
        self._state.delete_leftover(leftover)

    def free_bytes(self) -> int | None:
        """None: the hub does not tell."""

    def _commit(self, last: bytes) -> bool:
        """Everything in one commit; False where the last file is there already."""
        for _ in range(COMMITS):
            head, present = self._upload.head()
            if self._last in present and not self._given_up:
                del self.__dict__["_visible"]
                return False
            small = [name for name in self._state.list() if name not in self._uploaded]
            self._refuse(self._upload.others(present, {*small, *self._uploaded, self._last}))
            for name in small:
                size, digest = self._state.info(name).size, hashlib.sha256()
                for piece in _pieces(self._state, name, size):
                    digest.update(piece)
                self._upload.add(self._state, name, size, digest.hexdigest(), lambda _: None)
            for name, (size, sha256) in self._uploaded.items():
                self._upload.adopt(name, size, sha256)
            self._upload.add_bytes(self._last, last)
            if self._upload.commit("Merge made by anabranch", head) is not None:
                self._given_up = False
                self.__dict__.pop("_visible", None)
                return True
        raise TemporaryError(f"{self._url}: others commit there all the time", "Run the same command again.")

    def _refuse(self, others: Collection[str]) -> None:
        if others:
            raise OutputConflictError(
                f"{self._url} holds another model: {some_names(sorted(others))}",
                "name another repository or branch, or merge into a folder and `anabranch push --replace` it",
            )


class _UploadWriter:
    """A file of this machine that goes to the hub when it is whole."""

    def __init__(self, output: HubOutput, name: str, size: int, inner: Writer) -> None:
        self._output = output
        self._name = name
        self._size = size
        self._inner = inner
        self._digest = hashlib.sha256()

    def write(self, data: memoryview | bytes) -> None:
        """See `Writer.write`."""
        self._digest.update(data)
        self._inner.write(data)

    def commit(self) -> None:
        """See `Writer.commit`."""
        self._inner.commit()
        self._output.upload(self._name, self._size, self._digest.hexdigest())

    def discard(self) -> None:
        """See `Writer.discard`."""
        self._inner.discard()


def _pieces(store: Store, name: str, size: int) -> Iterator[memoryview]:
    piece = memoryview(bytearray(min(PIECE_BYTES, max(size, 1))))
    for offset in range(0, size, len(piece)):
        part = piece[: size - offset]
        store.read_into(name, offset, part)
        yield part


def _state_folder(url: str) -> Path:
    """Where the run to a repository keeps what is small: one folder for each endpoint, repository and branch."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    place = Path(os.environ.get(STATE_VARIABLE) or Path(caches, "anabranch", "hub"))
    endpoint = os.environ.get("HF_ENDPOINT", "")
    readable = re.sub(r"[^A-Za-z0-9._-]+", "--", url.removeprefix("hf://"))
    return place / f"{readable}-{hashlib.sha256(f'{endpoint} {url}'.encode()).hexdigest()[:8]}"
