"""Where bytes come from and go to: one small protocol, and the function that opens the store of a URL."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from ..errors import InputError

DEFAULT_READ_LIMIT_BYTES = 64 << 20
"""`read_bytes` refuses larger files: it is for indexes, plans and receipts, never for weights."""

TEMPORARY_PREFIX = ".anabranch-"
TEMPORARY_SUFFIX = ".tmp"


class FileInfo(NamedTuple):
    """What a store knows about a file without reading it."""

    size: int
    """Bytes."""
    version: str
    """Changes when the file changes: an ETag, or modification time and size."""
    inode: int | None = None
    """Which file of a file system it is; None where there is no such number, as for all that follow."""
    changed_ns: int | None = None
    """When its content or its name changed last, in nanoseconds by the clock of the file system; nobody can set it."""


class Leftover(NamedTuple):
    """What an unfinished write left behind: a temporary file, or an upload that was never completed."""

    name: str
    """The file that it would have become."""
    token: str
    """Identifies this left-over to the store."""
    age_seconds: float
    size: int
    """Bytes that it occupies, as far as the store can tell cheaply; else 0."""


@runtime_checkable
class Writer(Protocol):
    """One file being written; invisible under its name until `commit`."""

    def write(self, data: memoryview | bytes) -> None:
        """Append bytes. The caller may reuse the memory as soon as this returns."""

    def commit(self) -> None:
        """Make the file visible, whole and durable.

        Raises:
            IntegrityError: fewer or more bytes were written than announced.
            FileNotFoundError: a twin finished and somebody removed our temporary file; look at what is there.
        """

    def discard(self) -> None:
        """Leave nothing behind; does nothing after `commit`, and may be called twice."""


@runtime_checkable
class Store(Protocol):
    """A folder of files, local or remote; names are relative, with "/" between parts.

    All methods may be called from several threads. Besides what they document, they raise ResourceError
    (space, permission), TemporaryError (may work later), and InputError (a file changed while it was read).
    """

    @property
    def url(self) -> str:
        """Absolute and normalised, without credentials."""

    def info(self, name: str) -> FileInfo:
        """Size and version; FileNotFoundError when absent."""

    def list(self, folder: str = "") -> list[str]:
        """Names of the files directly in a folder, sorted, relative to the store; [] when it does not exist.

        Temporary files of unfinished writes are not listed.
        """

    def read_into(self, name: str, offset: int, into: memoryview, version: str | None = None) -> None:
        """Fill `into` wholly from byte `offset` on.

        Raises:
            FileNotFoundError: no such file.
            InputError: the file ends too early, or `version` is given and the file has another one.
        """

    def read_bytes(self, name: str, limit_bytes: int = DEFAULT_READ_LIMIT_BYTES) -> bytes:
        """The whole file; InputError when it is larger than the limit."""

    def create(self, name: str, data: bytes) -> bool:
        """Create a whole, durable file unless one of that name exists.

        Returns:
            True when this call created it. False when a file of that name exists; the caller compares, as it
            may even be ours (an answer was lost and the request repeated).
        """

    def replace(self, name: str, data: bytes) -> None:
        """Write a whole, durable file in place of what was there, if anything."""

    def writer(self, name: str, size: int, attributes: Mapping[str, str], run_id: str) -> Writer:
        """Start writing a large file of exactly `size` bytes.

        Args:
            name: the file; an existing one is replaced at commit.
            size: bytes that will be written.
            attributes: kept beside the object where the store can (see `attributes`), else ignored; names of
                lower-case letters, digits and underscores, values of ASCII text.
            run_id: letters and digits that mark this run's temporary files.
        """

    def attributes(self, name: str) -> Mapping[str, str] | None:
        """What `writer` was given for this file; None when the store keeps no attributes."""

    def delete(self, name: str) -> None:
        """Remove a file; absent is fine."""

    def leftovers(self, names: Collection[str], older_than_seconds: float = 0.0) -> tuple[Leftover, ...]:
        """What unfinished writes of these files left behind, sorted; never anybody else's."""

    def delete_leftover(self, leftover: Leftover) -> None:
        """Remove one of `leftovers`; absent is fine."""

    def free_bytes(self) -> int | None:
        """Space left for new files; None when unknown or unlimited."""


class RangeRules(NamedTuple):
    """Where ranges of one file may begin."""

    border_bytes: int
    """At multiples of it."""
    least_bytes: int
    """None is shorter, but the one at the file's end."""


class UnjoinableError(Exception):
    """Every range is there, and the server makes no file of them; another file has to be written, whole."""


@runtime_checkable
class PartedStore(Store, Protocol):
    """A store where several processes may write one file."""

    @property
    def takes_ranges(self) -> bool:
        """Whether the server behind it allows that; where it does not, nothing else is asked."""

    def range_rules(self, size: int) -> RangeRules:
        """Where ranges of a file of `size` bytes begin; the same in every process."""

    def begin(self, name: str, size: int, attributes: Mapping[str, str], run_id: str) -> str:
        """Start a file that is written in ranges; arguments as those of `writer`.

        Returns:
            What ranges are written with; it is `leftovers`' until `complete`.
        """

    def range_writer(self, name: str, token: str, begin: int, end: int, size: int) -> Writer:
        """Write the bytes from `begin` to `end` of a file of `size` bytes; see `range_rules`.

        `commit` makes them durable, and nothing visible. The same bytes may be written again, by others at the same
        time, too. `discard` leaves the unfinished file to the others.

        Raises:
            FileNotFoundError: the unfinished file was removed; perhaps only `commit` says so.
        """

    def complete(self, name: str, token: str, size: int, attributes: Mapping[str, str]) -> None:
        """Make the file visible, whole and durable, after every range was committed; attributes as for `begin`.

        Returns also where it finds that somebody else completed this file, if the store keeps attributes.

        Raises:
            IntegrityError: it has another size.
            FileNotFoundError: a twin completed it, or somebody removed it; look at what is there.
            UnjoinableError: see there.
        """

    def give_up(self, name: str, token: str) -> None:
        """Leave nothing behind of an unfinished file; absent is fine."""


def check_name(name: str) -> str:
    """A normal relative path, as it is; names that users give are checked long before.

    Raises:
        InputError: it is none, so it might lead out of the folder.
    """
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise InputError(f"{name!r} is no name of a file inside a folder", "Files that name such a file are not ours.")
    return name


class Upload(Protocol):
    """Files on their way to a place where they become visible together."""

    url: str
    """Of the place."""
    uploaded_bytes: int
    """Without what was there already."""

    def open(self, public: bool) -> None:
        """Make the place where it is missing; `public`: all may see it.

        Raises:
            ResourceError: no right to; or all may see what is there, and `public` is not set.
        """

    def head(self) -> tuple[str, list[str]]:
        """(an id of what is visible there now, names of its files)."""

    def others(self, present: Collection[str], own: Collection[str]) -> list[str]:
        """Files of another model among those that are there."""

    def add(self, store: Store, name: str, size: int, sha256: str, progress: Callable[[int], None]) -> None:
        """Upload a file of a store, unless its content is there; nobody sees it before the commit.

        Raises:
            IntegrityError: the bytes that were read are not those of the digest.
        """

    def commit(self, message: str, parent: str, removed: Collection[str] = ()) -> str | None:
        """Make all added files visible and take the removed ones away, in one step.

        Returns:
            The new id; None where what is visible is not `parent` any more. Who changed it may have been we, when the
            answer to a first try was lost.
        """
