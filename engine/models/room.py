"""How much memory reading the inputs' headers and texts may take: estimated from their bytes before they are parsed."""

from __future__ import annotations

import threading

from ..errors import ResourceError
from ..storage import DEFAULT_READ_LIMIT_BYTES, Store

BASE_BYTES = 160 << 20
"""Interpreter and libraries, before anything is read; measured."""
LEAST_BYTES = 32 << 20
"""Granted whatever the limit: whether a merge fits is decided later, with better numbers."""

# Measured as the growth of the process while texts of 200,000 repetitions of one thing are parsed, rounded up.
_BYTES_PER_BYTE = 5
"""Of any JSON text: it is held as bytes, as text and once more in values."""
_WIDE_BYTES_PER_BYTE = 9
"""Of a text that is not ASCII alone: one rare character makes all others take four bytes."""
_BYTES_PER_COMMA = 40
_BYTES_PER_BRACKET = 70
_BYTES_PER_KEY = 260
_PARSED_BYTES_PER_TENSOR = 700
"""Of a header, beyond the above, while it is parsed; its four keys within."""
KEPT_BYTES_PER_TENSOR = 1000
"""Of a header, for as long as the command runs: what it says, and what planning makes of it."""
BYTES_PER_TENSOR = 2500
"""Plan entries, receipts and table rows that a process holds for each tensor and source; measured 2400."""
_BYTES_PER_TOKEN = 150
"""Of a tokenizer.json, by its colons; measured 135 for a token of the vocabulary, and 625 for an added one of seven."""
_BYTES_PER_SCORED_TOKEN = 280
"""Of one whose tokens are pairs with a score, by its brackets; measured 264."""


class Room:
    """Memory of one command for headers and texts; what does not fit is refused before it is parsed.

    Args:
        memory_bytes: limit of the process; None: nothing is refused.
    """

    def __init__(self, memory_bytes: int | None = None) -> None:
        self._limit = None if memory_bytes is None else max(LEAST_BYTES, memory_bytes - BASE_BYTES)
        self._kept = 0
        self.lock = threading.RLock()
        """Held while a large header is read and parsed: several at once would need the memory of all."""

    def read(self, store: Store, name: str, limit_bytes: int = DEFAULT_READ_LIMIT_BYTES) -> bytes:
        """A JSON file that will be parsed whole.

        Raises:
            FileNotFoundError, InputError: as `Store.read_bytes`.
            ResourceError: parsing it takes more memory than there is.
        """
        where = f"{store.url}/{name}"
        size = store.info(name).size
        if size <= limit_bytes:
            self._check(where, size, _BYTES_PER_BYTE * size)
        data = store.read_bytes(name, limit_bytes)
        self.check_text(data, where)
        return data

    def check_text(self, data: bytes, where: str) -> None:
        """ResourceError when parsing a JSON text takes more memory than there is."""
        self._check(where, len(data), _text_bytes(data) + _BYTES_PER_KEY * data.count(b":"))

    def check_size(self, size: int, where: str) -> None:
        """The same for a text that was not read yet, or is never parsed whole: the least that one of its size takes."""
        self._check(where, size, _BYTES_PER_BYTE * size)

    def keep_header(self, data: bytes, where: str) -> None:
        """Count a header that will be parsed and kept; ResourceError when there is no memory for it.

        Every tensor of a header has a brace, so there are no more tensors than braces.

        Args:
            data: as for `parse_header`.
            where: the file's name for the message.
        """
        data = data[8:]
        tensors = data.count(b"{")
        other_keys = max(0, data.count(b":") - 4 * tensors)
        need = _text_bytes(data) + _PARSED_BYTES_PER_TENSOR * tensors + _BYTES_PER_KEY * other_keys
        kept = KEPT_BYTES_PER_TENSOR * tensors
        with self.lock:
            self._check(where, len(data), max(need, kept), f" with up to {tensors} tensors")
            self._kept += kept

    def keep_tokenizer(self, data: bytes, where: str) -> None:
        """Count a tokenizer.json that will be read and kept; ResourceError when there is no memory for it.

        Its text is taken apart member by member, so that it is never a tree of objects as a whole.
        """
        tokens = data.count(b":")
        kept = _BYTES_PER_TOKEN * tokens
        if b'"Unigram"' in data:
            tokens = max(tokens, data.count(b"["))
            kept += _BYTES_PER_SCORED_TOKEN * data.count(b"[")
        with self.lock:
            self._check(where, len(data), len(data) + kept, f" with up to {tokens} tokens")
            self._kept += kept

    def check_plan(self, tensors: int, sources: int, where: str) -> None:
        """ResourceError when a plan of so many tensors, each read from so many sources, takes more than there is.

        The memory of a merge is decided later, with better numbers; a plan that cannot fit is not worth the minutes.
        """
        need = BYTES_PER_TENSOR * tensors * sources
        if self._limit is not None and need > self._limit:
            raise ResourceError(
                f"{where} has {tensors} tensors: planning to merge them, and what is recorded of them, takes "
                f"{_mib(need)} MiB with {sources} sources; the limit leaves {_mib(self._limit)} MiB",
                f"If it is what it should be, give at least --memory {_mib(need + BASE_BYTES)}MiB.",
            )

    def _check(self, where: str, size: int, need: int, what: str = "") -> None:
        if self._limit is None or self._kept + need <= self._limit:
            return
        before = f", {_mib(self._kept)} MiB are taken by what was read before" if self._kept else ""
        raise ResourceError(
            f"{where}: {size} bytes of JSON{what} may take {_mib(need)} MiB to read{before}; the limit leaves "
            f"{_mib(self._limit)} MiB for reading headers and texts",
            f"If the file is what it should be, give at least --memory {_mib(self._kept + need + BASE_BYTES)}MiB.",
        )


def _text_bytes(data: bytes) -> int:
    per_byte = _BYTES_PER_BYTE if data.isascii() else _WIDE_BYTES_PER_BYTE
    brackets = data.count(b"[") + data.count(b"{")
    return per_byte * len(data) + _BYTES_PER_COMMA * data.count(b",") + _BYTES_PER_BRACKET * brackets


def _mib(count: int) -> int:
    return -(-count // (1 << 20))
