"""Whether files are still what they were when they were published, as far as one can see without reading them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

from ..errors import IntegrityError
from ..storage import FileInfo, Store
from .manifest import MANIFEST_NAME, PLAN_ATTRIBUTE, PLAN_NAME, Manifest
from .problems import Problem, check_file
from .tables import table_problem

THREADS = 8
"""Questions at the same time: an object store answers each in some 20 ms."""
SMALL_BYTES = 16 << 20
"""Files that are read again rather than believed where nothing tells that they changed."""


class Watch:
    """Remembers files of an output as they were when they appeared.

    Args:
        store: the output directory.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[str, FileInfo | None] = {}

    def see(self, name: str) -> None:
        """Remember a file that was published just now."""
        self._seen[name] = self._info(name)

    def problems(self, manifest: Manifest) -> list[Problem]:
        """What became of published files: those that are missing, and those that are others and have other content.

        A twin may have published the same file again, so that it is another one with the same bytes: files that are
        not the ones that were seen are read.
        """
        return self._of(manifest, lambda name, info: self._seen.get(name) != info)

    def problems_since(self, manifest: Manifest, shards: Collection[str]) -> list[Problem]:
        """The same for an output that somebody else finished.

        A file system says which files changed after the manifest, or before the plan, which only a clock that was set
        back does: these are read. An object store does not, but keeps a plan's id with each of the `shards`, which
        whatever replaced one does not have; small files are read there.
        """
        written = self._store.info(MANIFEST_NAME).changed_ns
        plan = self._info(PLAN_NAME)
        begun = 0 if plan is None else plan.changed_ns or 0

        def doubted(name: str, info: FileInfo) -> bool:
            if written is not None and info.changed_ns is not None:
                return not begun <= info.changed_ns <= written
            if name not in shards:
                return info.size <= SMALL_BYTES
            attributes = self._store.attributes(name)
            return attributes is not None and attributes.get(PLAN_ATTRIBUTE) != manifest.plan_id

        return self._of(manifest, doubted)

    def _of(self, manifest: Manifest, doubted: Callable[[str, FileInfo], bool]) -> list[Problem]:
        def look(name: str) -> Problem | None:
            entry, info = manifest.files.get(name), self._info(name)
            if info is None:
                return Problem(name, "missing")
            if entry is not None and info.size != entry.size:
                return Problem(name, f"damaged: {info.size} bytes, expected {entry.size}")
            if not doubted(name, info):
                return None
            if entry is not None:
                return check_file(self._store, name, entry, lambda _: None)
            return table_problem(self._store, name, manifest.tables[name])

        with ThreadPoolExecutor(THREADS, "look") as pool:
            names = sorted({*manifest.files, *manifest.tables})
            return [problem for problem in pool.map(look, names) if problem is not None]

    def _info(self, name: str) -> FileInfo | None:
        try:
            return self._store.info(name)
        except FileNotFoundError:
            return None


def vanished_error(url: str, problems: Collection[Problem]) -> IntegrityError:
    """What to raise when published files are gone or are others at the end of a merge."""
    first = next(iter(problems))
    more = f" and {len(problems) - 1} more files" if len(problems) > 1 else ""
    return IntegrityError(
        f"{url}/{first.file}{more} changed while the merge ran: {first.text}",
        "something else removes or changes files there; when it has stopped, run the same command again: it makes what "
        "is gone",
    )
