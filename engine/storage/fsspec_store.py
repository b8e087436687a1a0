"""Folders at URLs: buckets go to the store that they share, any other scheme that fsspec knows is handled here."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from huggingface_hub.errors import OfflineModeIsEnabled

from ..errors import AnabranchError, InputError, IntegrityError, ResourceError, TemporaryError
from .clouds import ACCOUNT, CLOUDS, open_cloud_store
from .coalesce import Coalescer
from .file_systems import is_no_outage, lacks_credentials, open_file_system
from .hub_cache import COMMIT, HubCacheStore, cached_snapshot
from .protocol import (
    DEFAULT_READ_LIMIT_BYTES,
    TEMPORARY_PREFIX,
    TEMPORARY_SUFFIX,
    FileInfo,
    Leftover,
    Store,
    check_name,
)
from .retry import Retry, RetryStore

Result = TypeVar("Result")

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://(?P<rest>.*)", re.DOTALL)
_S3_SCHEMES = {"s3", "s3a"}
_VERSION_FIELDS = (
    "ETag", "etag", "sha256", "blob_id", "md5Hash", "crc32c", "mtime", "LastModified", "last_modified", "updated",
    "modified", "created",
)  # fmt: skip


def open_remote_store(url: str) -> Store:
    """The store of a URL with a scheme other than file and memory.

    Raises:
        InputError: user names, passwords, queries or dots in the URL; an unknown scheme.
    """
    scheme, parts = _split_url(url)
    if scheme in _S3_SCHEMES:
        from .object_store import ObjectStore
        from .s3 import S3Bucket
        from .s3_client import shared_client

        return ObjectStore(S3Bucket(parts[0], shared_client()), "/".join(parts[1:]))
    if scheme in CLOUDS:
        return open_cloud_store(scheme, parts)
    if scheme == "hf":
        return RetryStore(_open_hub(parts))
    return RetryStore(FsspecStore(f"{scheme}://{'/'.join(parts)}", open_file_system(scheme), "/".join(parts)))


def _split_url(url: str) -> tuple[str, list[str]]:
    """Scheme and path parts; nothing secret, relative or chained may be in a URL that plans and logs will show."""
    match = _URL.fullmatch(url)
    assert match is not None, "open_store saw a scheme"
    scheme, rest = match["scheme"].lower(), match["rest"]
    shown = f"{scheme}://…"
    parts = [part for part in rest.split("/") if part]
    named = CLOUDS.get(scheme) == "azure" and parts and ACCOUNT.fullmatch(parts[0])
    if "?" in rest or "#" in rest or (parts and "@" in parts[0] and scheme != "hf" and not named):
        raise InputError(
            f"{shown}: a URL may not hold a user name, password or query",
            "Configure credentials through the environment or the configuration of AWS or fsspec.",
        )
    if not parts or any(part in (".", "..") for part in parts) or re.search(r"[\x00-\x1f\x7f]", rest):
        raise InputError(f"{shown}: expected {scheme}://NAME/FOLDER without dots or control characters")
    return scheme, parts


def _open_hub(parts: list[str], endpoint: str | None = None) -> Store:
    """A Hugging Face repository at the commit that its revision means now; everything is read from that commit.

    Where the hub may not or cannot be asked, the commit that its cache on this machine has under that revision.
    """
    from huggingface_hub import HfApi, HfFileSystem, constants

    text = "/".join(parts)
    match = re.fullmatch(r"(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>[^@]+))?", text)
    if match is None:
        raise InputError(f"hf://{text}: expected hf://owner/name or hf://owner/name@revision")
    repository, revision = match["repository"], match["revision"]
    cached = cached_snapshot(repository, revision)
    if cached and constants.HF_HUB_OFFLINE:
        return HubCacheStore(f"hf://{repository}@{cached[0]}", cached[1])
    api = HfApi(endpoint=endpoint)
    retry = Retry(attempts=1) if cached else Retry()
    try:
        info = retry.call(lambda: in_our_words(f"hf://{text}", lambda: api.model_info(repository, revision=revision)))
    except FileNotFoundError as error:
        raise InputError(
            f"hf://{text}: the hub knows no such model or revision", "Check the name. " + _NO_FOLDER
        ) from error
    except TemporaryError as error:
        if cached:
            return HubCacheStore(f"hf://{repository}@{cached[0]}", cached[1])
        raise TemporaryError(error.message, f"{error.hint} {_NOT_CACHED} {_NO_FOLDER}") from error
    except ResourceError as error:
        hint = f"{error.hint} {_NOT_CACHED}" if constants.HF_HUB_OFFLINE else error.hint
        raise ResourceError(error.message, hint) from error
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise InputError(f"hf://{text}: the hub names no commit for this revision")
    root = f"{repository}@{commit}"
    return FsspecStore(f"hf://{root}", HfFileSystem(endpoint=endpoint), root, immutable=True)


_NOT_CACHED = "The hub's cache on this machine (HF_HUB_CACHE) does not have it under this revision."
_NO_FOLDER = "If a directory was meant, there is none of that name."
"""A name on the hub looks like a relative path."""


class FsspecStore:
    """A folder of an fsspec file system that has no store of its own here.

    Without conditional requests a changed file is noticed by asking for its version before each read.
    """

    def __init__(self, url: str, file_system: Any, root: str, *, immutable: bool = False) -> None:
        self._url = url
        self._fs = file_system
        self._root = root
        self._immutable = immutable
        self._stages = False
        self._small_reads = Coalescer(self._fetch)

    @property
    def url(self) -> str:
        """Scheme, host and path; for the hub with the commit."""
        return self._url

    def info(self, name: str) -> FileInfo:
        """See `Store.info`; the version is the best that the file system offers."""
        details = self._do(name, lambda: self._fs.info(self._path(name)))
        if details.get("type") != "file":
            raise FileNotFoundError(f"{self._where(name)}: not a file")
        size = details.get("size")
        if not isinstance(size, int):
            raise InputError(f"{self._where(name)}: the server does not tell its size", "Copy the files first.")
        tags = [str(details[key]) for key in _VERSION_FIELDS if details.get(key) is not None]
        info = FileInfo(size, "-".join([*tags[:1], str(size)]))
        self._small_reads.note_size(name, info.version, info.size)
        return info

    def list(self, folder: str = "") -> list[str]:
        """See `Store.list`."""
        path = self._path(folder)
        try:
            entries = self._do(folder, lambda: self._fs.ls(path, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except NotImplementedError:
            raise InputError(f"{self._where(folder)}: files of this kind of store cannot be listed") from None
        prefix = f"{folder}/" if folder else ""
        names = [entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry.get("type") == "file"]
        return sorted(prefix + name for name in names if name not in ("", ".", ".."))

    def read_into(self, name: str, offset: int, into: memoryview, version: str | None = None) -> None:
        """See `Store.read_into`."""
        view = into.cast("B")
        if version is None or len(view) == 0 or not self._immutable:
            found = self.info(name)
            if version not in (None, found.version):
                raise InputError(f"{self._where(name)}: changed while in use ({found.version}, expected {version})")
            if offset + len(view) > found.size:
                raise InputError(f"{self._where(name)}: ends at byte {found.size}, expected {offset + len(view)} bytes")
        if len(view):
            self._small_reads.read_into(name, offset, view, version)

    def read_bytes(self, name: str, limit_bytes: int = DEFAULT_READ_LIMIT_BYTES) -> bytes:
        """See `Store.read_bytes`."""
        size = self.info(name).size
        if size > limit_bytes:
            raise InputError(f"{self._where(name)}: {size} bytes, expected at most {limit_bytes}")
        data = bytearray(size)
        if size:
            self._fetch(name, 0, memoryview(data), None)
        return bytes(data)

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`.

        Exclusive where the file system is able to. Elsewhere two different plans that race for one name may
        both write it, the later one wins, and reading it back tells the other; bytes depend on the plan alone,
        and all that follows reads the plan again.
        """
        try:
            self.info(name)
        except FileNotFoundError:
            pass
        else:
            return False
        if not getattr(self._fs, "async_impl", False):  # not an object store: `pipe_file` may leave half a file
            self.replace(name, data)
        else:
            try:
                self._do(name, lambda: self._fs.pipe_file(self._path(name), data, mode="create"))
            except FileExistsError:
                return False
            except NotImplementedError:  # knows no exclusive mode
                self.replace(name, data)
        return self.read_bytes(name, max(len(data), DEFAULT_READ_LIMIT_BYTES)) == data

    def replace(self, name: str, data: bytes) -> None:
        """See `Store.replace`."""
        writer = self.writer(name, len(data), {}, "")
        try:
            writer.write(data)
            writer.commit()
        finally:
            writer.discard()

    def writer(self, name: str, size: int, attributes: Mapping[str, str], run_id: str) -> FsspecWriter:
        """See `Store.writer`; file systems that cannot write unseen are refused."""
        del attributes, run_id
        self._check_staging()
        self._make_parent(name)
        return FsspecWriter(self._fs, self._path(name), self._where(name), size)

    def attributes(self, name: str) -> Mapping[str, str] | None:
        """None: receipts say what the files are."""
        del name
        return None

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        with contextlib.suppress(FileNotFoundError):
            self._do(name, lambda: self._fs.rm_file(self._path(name)))

    def leftovers(self, names: Collection[str], older_than_seconds: float = 0.0) -> tuple[Leftover, ...]:
        """None that fsspec could name."""
        del names, older_than_seconds
        return ()

    def delete_leftover(self, leftover: Leftover) -> None:
        """See `Store.delete_leftover`; there are none."""
        del leftover

    def free_bytes(self) -> int | None:
        """None: unknown."""
        return None

    def _fetch(self, name: str, offset: int, into: memoryview, version: str | None) -> None:
        del version  # checked by `read_into`
        path, end = self._path(name), offset + len(into)

        def read() -> bytes:
            if getattr(self._fs, "async_impl", False):
                return bytes(self._fs.cat_file(path, start=offset, end=end))
            # Without a cache: the usual one reads 5 MB beyond every range.
            with self._fs.open(path, "rb", cache_type="none") as file:
                file.seek(offset)
                return bytes(file.read(len(into)))

        data = self._do(name, read)
        if len(data) != len(into):
            raise TemporaryError(f"{self._where(name)}: got {len(data)} bytes, asked for {len(into)}")
        into[:] = data

    def _check_staging(self) -> None:
        """Refuse file systems that show a file while it is written; some ignore `autocommit` in silence."""
        if self._stages:
            return
        name = f"{TEMPORARY_PREFIX}probe-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
        self._make_parent(name)
        try:
            writer = FsspecWriter(self._fs, self._path(name), self._where(name), 0)
            writer.discard()
        finally:
            self.delete(name)
        self._stages = True

    def _make_parent(self, name: str) -> None:
        parent = self._path(name).rpartition("/")[0]
        self._do(name, lambda: self._fs.makedirs(parent, exist_ok=True))

    def _do(self, name: str, operation: Callable[[], Result]) -> Result:
        return in_our_words(self._where(name), operation)

    def _path(self, name: str) -> str:
        return f"{self._root}/{check_name(name)}" if name else self._root

    def _where(self, name: str) -> str:
        return f"{self._url}/{name}" if name else self._url


class FsspecWriter:
    """A file that fsspec stages and publishes at commit."""

    def __init__(self, file_system: Any, path: str, where: str, size: int) -> None:
        self._where = where
        self._size = size
        self._written = 0
        self._open = True
        try:
            # Not inside `with`: leaving that block by an exception would publish what was written so far.
            self._file = in_our_words(where, lambda: file_system.open(path, "wb", autocommit=False))
        except NotImplementedError as error:
            raise ResourceError(f"{where}: files of this kind of store cannot be written", "Choose another.") from error
        if getattr(self._file, "autocommit", True) or not hasattr(self._file, "discard"):
            self._file.close()
            raise ResourceError(
                f"{where}: this kind of store cannot write files unseen", "Write to a local folder or to S3, then copy."
            )

    def write(self, data: memoryview | bytes) -> None:
        """See `Writer.write`."""
        assert self._open, "write after commit or discard"
        view = memoryview(data).cast("B")
        in_our_words(self._where, lambda: self._file.write(bytes(view)))
        self._written += len(view)

    def commit(self) -> None:
        """See `Writer.commit`."""
        assert self._open, "commit after commit or discard"
        if self._written != self._size:
            raise IntegrityError(f"{self._where}: {self._written} bytes were written, expected {self._size}")
        in_our_words(self._where, self._file.close)
        in_our_words(self._where, self._file.commit)
        self._open = False

    def discard(self) -> None:
        """See `Writer.discard`."""
        if not self._open:
            return
        self._open = False
        with contextlib.suppress(Exception):
            self._file.close()
        with contextlib.suppress(Exception):
            self._file.discard()


def in_our_words(where: str, operation: Callable[[], Result]) -> Result:
    """Run an operation of a foreign library; its failures in our own words only, as theirs may quote URLs."""
    try:
        return operation()
    except (AnabranchError, NotImplementedError):
        raise
    except (FileNotFoundError, FileExistsError) as error:
        raise type(error)(f"{where}: {'no such file' if isinstance(error, FileNotFoundError) else 'exists'}") from error
    except PermissionError as error:
        raise ResourceError(f"{where}: permission denied", "Check the credentials and their rights.") from error
    except OfflineModeIsEnabled as error:
        raise ResourceError(
            f"{where}: the hub may not be asked", "Unset HF_HUB_OFFLINE, or use a local copy."
        ) from error
    except ValueError as error:
        if "mode" in str(error):
            raise NotImplementedError(f"{where}: mode not known") from error
        raise ResourceError(f"{where}: the store refuses this ({type(error).__name__})", "Check the URL.") from error
    except Exception as error:
        if lacks_credentials(error) and not hasattr(error, "response"):
            raise ResourceError(
                f"{where}: no usable credentials ({type(error).__name__})",
                "Set them up as the store's own tools want them (environment, configuration files, a login).",
            ) from error
        if is_no_outage(error):
            raise ResourceError(
                f"{where}: this kind of store cannot do what is asked ({type(error).__name__})"
            ) from error
        raise _by_status(error, where) or TemporaryError(
            f"{where}: {type(error).__name__}", "Run the same command again; it goes on where it stopped."
        ) from error


def _by_status(error: Exception, where: str) -> Exception | None:
    """The error for an HTTP status, which both the hub's and fsspec's own clients attach; None without one."""
    status = getattr(getattr(error, "response", error), "status_code", None) or getattr(error, "status", None)
    if not isinstance(status, int):
        return None
    text = f"{where}: the server answered {status}"
    if status in (401, 403):
        return ResourceError(text, "Check the credentials (`hf auth login`), and whether the model asks for consent.")
    if status == 404:
        return FileNotFoundError(text)
    if status == 429 or status >= 500:
        return TemporaryError(text, "Run the same command again later.")
    return ResourceError(text, "Check the URL.")
