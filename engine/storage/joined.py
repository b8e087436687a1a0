"""A folder to which files of other folders are added by their URL: a model whose weights lie in several places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from .protocol import FileInfo, Store
from .retry import WrappedStore

Result = TypeVar("Result")


class JoinedStore(WrappedStore):
    """Reads names as its home does, and `URL/name` from the other folder with that URL.

    Args:
        url: what it is called in messages.
        home: the folder of plain names; everything but reading ranges happens there.
        others: further folders.
    """

    def __init__(self, url: str, home: Store, others: Sequence[Store]) -> None:
        super().__init__(home)
        self._url = url
        self._others = others

    @property
    def url(self) -> str:
        """What it is called in messages."""
        return self._url

    def info(self, name: str) -> FileInfo:
        """See `Store.info`."""
        for other in self._others:
            if name.startswith(f"{other.url}/"):
                return other.info(name.removeprefix(f"{other.url}/"))
        return self._inner.info(name)

    def read_into(self, name: str, offset: int, into: memoryview, version: str | None = None) -> None:
        """See `Store.read_into`."""
        for other in self._others:
            if name.startswith(f"{other.url}/"):
                other.read_into(name.removeprefix(f"{other.url}/"), offset, into, version)
                return
        self._inner.read_into(name, offset, into, version)

    def _around(self, _verb: str, _name: str, operation: Callable[[], Result], /) -> Result:
        return operation()
