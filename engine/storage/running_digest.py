"""SHA-256 that one process can put down and another take up: of a file that is written by several, one after the other.

`hashlib` does not give its state away. OpenSSL, on which it stands, does, where Python is linked to it as a library.
"""

from __future__ import annotations

import ctypes
import hashlib
from functools import cache

STATE_BYTES = 128
"""Room for OpenSSL's SHA256_CTX (112 bytes), and some more."""


class RunningDigest:
    """SHA-256 of bytes that come in order; made only where `digests_move`.

    Args:
        state: of the one that hashed what came before; None: nothing did.
    """

    def __init__(self, state: bytes | None = None) -> None:
        library = _openssl()
        assert library is not None, "asked before"
        self._library = library
        self._state = ctypes.create_string_buffer(state or b"", STATE_BYTES)
        if not state:
            library.SHA256_Init(self._state)

    def update(self, data: memoryview) -> None:
        """Hash more bytes, without Python's lock."""
        view = data.cast("B")
        if view.readonly:
            self._library.SHA256_Update(self._state, ctypes.c_char_p(bytes(view)), ctypes.c_size_t(len(view)))
        elif len(view):
            first = (ctypes.c_char * len(view)).from_buffer(view)
            self._library.SHA256_Update(self._state, first, ctypes.c_size_t(len(view)))

    @property
    def state(self) -> bytes:
        """What another one goes on from, on a machine of the same byte order."""
        return bytes(self._state)

    def hexdigest(self) -> str:
        """Of all that came."""
        last, result = ctypes.create_string_buffer(self.state, STATE_BYTES), ctypes.create_string_buffer(32)
        self._library.SHA256_Final(result, last)
        return bytes(result)[:32].hex()


def moving_digest(state: bytes | None) -> RunningDigest | hashlib._Hash:
    """What hashes on from a state, or from the beginning; the state can be put down only where `digests_move`."""
    return RunningDigest(state) if digests_move() else hashlib.sha256()


def digests_move() -> bool:
    """Whether a digest of this process can be taken up by another one."""
    return _openssl() is not None


@cache
def _openssl() -> ctypes.CDLL | None:
    """The library that hashes for `hashlib`, if it lets us call it and does what it says; else None."""
    try:
        import _hashlib

        library = ctypes.CDLL(_hashlib.__file__)
        for function in (library.SHA256_Init, library.SHA256_Update, library.SHA256_Final):
            function.restype = ctypes.c_int
    except (ImportError, AttributeError, OSError):
        return None
    data, state = bytes(range(200)), ctypes.create_string_buffer(STATE_BYTES)
    result = ctypes.create_string_buffer(32)
    library.SHA256_Init(state)
    library.SHA256_Update(state, ctypes.c_char_p(data), ctypes.c_size_t(77))
    moved = ctypes.create_string_buffer(bytes(state), STATE_BYTES)
    library.SHA256_Update(moved, ctypes.c_char_p(data[77:]), ctypes.c_size_t(123))
    library.SHA256_Final(result, moved)
    return library if bytes(result)[:32] == hashlib.sha256(data).digest() else None
