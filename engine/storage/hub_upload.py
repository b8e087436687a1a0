"""Files on their way to one commit of a repository of the Hugging Face hub: uploaded one by one, visible together.

A file's content is kept by the hub under its SHA-256 before any commit names it. So an upload that was killed leaves
nothing that can be seen, and one that goes on is told by the hub which contents are there already: no state is kept
here.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, BinaryIO, TypeVar, cast

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info
from huggingface_hub.utils.tqdm import disable_progress_bars

from ..errors import AnabranchError, InputError, IntegrityError, ResourceError, TemporaryError
from .fsspec_store import in_our_words
from .protocol import Store
from .retry import Retry

BUFFER_BYTES = 4 << 20
"""Read at once, from a disk or an object store."""
SAMPLE_BYTES = 512
"""From the beginning of a file, by which the hub decides how it is kept."""
LONGEST_WAIT_SECONDS = 300.0
"""Of what a hub that is too busy may ask for."""
MAIN = "main"
BATCH = 100
"""Contents that are asked for at once."""
OF_MODELS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.gguf", "anabranch.*")
"""Files that would make two models of one where they stayed beside another's."""

_AGAIN = "Run the same command again: what is uploaded is not uploaded again."
_TOKEN = "It needs a token that may write (`hf auth login`, or HF_TOKEN). " + _AGAIN
_URL = re.compile(r"hf://(?P<repository>[^/@\s]+/[^/@\s]+)/?")

Result = TypeVar("Result")


class _MovedError(AnabranchError):
    """The branch is not where it was; asking again does not help."""


class _MissingError(ResourceError):
    """No such repository or branch."""


class HubUpload:
    """A repository and the files that are to go there with the next commit.

    Args:
        url: `hf://owner/name`.
        revision: the branch.
        retry: how requests are repeated.

    Raises:
        InputError: the URL is none of a repository.
    """

    def __init__(self, url: str, revision: str = MAIN, retry: Retry | None = None) -> None:
        match = _URL.fullmatch(url)
        if match is None:
            raise InputError(f"{url}: expected hf://owner/name", "A branch goes into --revision.")
        self.repository = match["repository"]
        self.url = f"hf://{self.repository}"
        self.revision = revision
        self._api = HfApi()
        self._retry = retry or Retry()
        self._files: dict[str, CommitOperationAdd] = {}
        self.uploaded_bytes = 0
        """Without what the hub had already."""

    def open(self, public: bool) -> None:
        """See `Upload.open`; the branch is made, too."""
        self._do(lambda: self._api.create_repo(self.repository, private=not public, exist_ok=True))
        info = self._do(lambda: self._api.model_info(self.repository))
        if not public and not info.private:
            raise ResourceError(
                f"{self.url} is public, and what is pushed there can be read by all",
                "Pass --public if that is meant, or name another repository.",
            )
        if self.revision != MAIN:
            self._do(lambda: self._api.create_branch(self.repository, branch=self.revision, exist_ok=True))

    def head(self) -> tuple[str, list[str]]:
        """See `Upload.head`: the commit that the branch is at."""
        info = self._do(lambda: self._api.model_info(self.repository, revision=self.revision))
        return str(info.sha), sorted(sibling.rfilename for sibling in info.siblings or ())

    def find(self) -> tuple[str, list[str]] | None:
        """As `head`; None where there is no such repository or branch, or no right to see it."""
        try:
            return self.head()
        except _MissingError:
            return None

    def others(self, present: Collection[str], own: Collection[str]) -> list[str]:
        """Files of another model among those that are there."""
        return [name for name in present if name not in own and any(fnmatchcase(name, of) for of in OF_MODELS)]

    def held(self, files: Collection[tuple[int, str]]) -> set[str]:
        """Which of these contents, (size, digest) each, the hub has."""
        if not files:
            return set()
        infos = [UploadInfo(size=size, sample=b"", sha256=bytes.fromhex(sha256)) for size, sha256 in files]

        def ask() -> set[str]:
            found: set[str] = set()
            for start in range(0, len(infos), BATCH):
                some = infos[start : start + BATCH]
                headers = self._api._build_hf_headers()
                answers, _, _ = post_lfs_batch_info(some, None, "model", self.repository, headers=headers)
                found |= {answer["oid"] for answer in answers if not answer.get("actions")}
            return found

        return self._do(ask)

    def adopt(self, name: str, size: int, sha256: str) -> None:
        """A file that an earlier run uploaded: the commit names it."""
        addition = _Addition(name, io.BytesIO(), UploadInfo(size=size, sample=b"", sha256=bytes.fromhex(sha256)))
        addition._upload_mode, addition._should_ignore, addition._is_uploaded = "lfs", False, True
        self._files[name] = addition

    def add_bytes(self, name: str, data: bytes) -> None:
        """As `add`, of a file that is in memory."""
        addition = CommitOperationAdd(name, data)
        self._do(lambda: self._api.preupload_lfs_files(self.repository, [addition], revision=self.revision))
        self._files[name] = addition

    def add(self, store: Store, name: str, size: int, sha256: str, progress: Callable[[int], None]) -> None:
        """See `Upload.add`."""
        source = _RawFile(store, name, size, progress)
        known = UploadInfo(size=size, sample=source.sample(), sha256=bytes.fromhex(sha256))
        addition = _Addition(name, io.BufferedReader(source, BUFFER_BYTES), known)
        self._do(lambda: self._api.preupload_lfs_files(self.repository, [addition], revision=self.revision))
        if addition._upload_mode == "regular":  # goes with the commit, as the hub asks for small files of text
            addition.path_or_fileobj = source.readall()
        elif source.seen == 0:
            progress(size)
        if source.seen and source.digest.hexdigest() != sha256:
            raise IntegrityError(
                f"{store.url}/{name}: its bytes are not those that were written",
                "`anabranch verify` says more; nothing of this push can be seen.",
            )
        self.uploaded_bytes += source.seen
        self._files[name] = addition

    def commit(self, message: str, parent: str, removed: Collection[str] = ()) -> str | None:
        """See `Upload.commit`."""
        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
            *self._files.values(),
            *(CommitOperationDelete(name) for name in sorted(removed)),
        ]

        def send() -> str:
            for addition in self._files.values():
                addition._is_committed = False  # the answer to an earlier try was lost
            made = self._api.create_commit(
                self.repository,
                operations,
                commit_message=message,
                revision=self.revision,
                parent_commit=parent,
            )
            return str(made.oid)

        try:
            return self._do(send)
        except _MovedError:
            return None

    def _do(self, operation: Callable[[], Result]) -> Result:
        """One request, in our words, and repeated where that may help."""
        return self._retry.call(lambda: _translated(self.url, operation))


class _RawFile(io.RawIOBase):
    """Positioned reads of one version of a file; every byte is hashed when it is read for the first time."""

    def __init__(self, store: Store, name: str, size: int, progress: Callable[[int], None]) -> None:
        super().__init__()
        self._store = store
        self._name = name
        self.size = size
        self._version = store.info(name).version
        self._position = 0
        self._progress = progress
        self.digest = hashlib.sha256()
        self.seen = 0
        """Bytes that are hashed, from the beginning on."""

    def sample(self) -> bytes:
        data = bytearray(min(SAMPLE_BYTES, self.size))
        self._store.read_into(self._name, 0, memoryview(data), self._version)
        return bytes(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self.size - self._position)]
        if view:
            self._store.read_into(self._name, self._position, view, self._version)
            known = self.seen - self._position
            self._position += len(view)
            if 0 <= known < len(view):
                self.digest.update(view[known:])
                self.seen += len(view) - known
                self._progress(len(view) - known)
        return len(view)


class _Addition(CommitOperationAdd):
    """A file whose digest is known: the client's own class would read it once more to compute it."""

    def __init__(self, name: str, source: io.BufferedIOBase, known: UploadInfo) -> None:
        self.path_in_repo = name
        self.path_or_fileobj = cast("BinaryIO", source)
        self.upload_info = known


def _translated(where: str, operation: Callable[[], Result]) -> Result:
    """What the hub's client raises, in our words: theirs may hold URLs that are signed."""
    try:
        with _quiet():
            return in_our_words(where, lambda: _unwrapped(operation))
    except FileNotFoundError as error:
        raise _MissingError(f"{where}: no such repository, or no right to see it", _TOKEN) from error
    except (ResourceError, TemporaryError) as error:
        response = getattr(error.__cause__, "response", None)
        status = getattr(response, "status_code", None)
        if status in (401, 403):
            raise ResourceError(f"{where}: the hub answered {status}", _TOKEN) from error
        if status in (409, 412):
            raise _MovedError(f"{where}: the branch has moved") from error
        if isinstance(error, TemporaryError):
            _wait_as_asked(response)
            raise TemporaryError(error.message, _AGAIN) from error
        raise


def _unwrapped(operation: Callable[[], Result]) -> Result:
    try:
        return operation()
    except RuntimeError as error:  # the client wraps what happens to an upload
        raise error.__cause__ or error from None


def _wait_as_asked(response: Any) -> None:
    asked = getattr(response, "headers", {}).get("retry-after", "")
    if asked.isdecimal():
        time.sleep(min(float(asked), LONGEST_WAIT_SECONDS))


@contextmanager
def _quiet() -> Iterator[None]:
    """The client tells of things that are as they should be, on standard error."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
