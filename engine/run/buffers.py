"""Window buffers: made once, borrowed and given back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray


class PoolClosed(Exception):
    """The run is being stopped; nobody gets another buffer."""


def plain_buffer(size_bytes: int) -> NDArray[np.uint8]:
    """Memory of this process."""
    return np.empty(size_bytes, np.uint8)


class BufferPool:
    """Window buffers that are made once and reused: fresh pages are many times slower than used ones.

    Args:
        slab_bytes: size of each buffer.
        slabs: how many there may be; they are made when first needed.
        make: makes one, from its size in bytes; whoever computes on a device wants memory that it copies from quickly.
    """

    def __init__(self, slab_bytes: int, slabs: int, make: Callable[[int], NDArray[np.uint8]] = plain_buffer) -> None:
        self._make = make
        self.slab_bytes = slab_bytes
        self.slabs = slabs
        self.made = 0
        """Buffers that exist."""
        self._free: list[NDArray[np.uint8]] = []
        self._closed = False
        self._changed = threading.Condition()

    def acquire(self) -> NDArray[np.uint8]:
        """One buffer, uint8 [slab_bytes]; waits until one is free.

        Raises:
            PoolClosed: the run is being stopped.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._free or self.made < self.slabs)
            if self._closed:
                raise PoolClosed
            if self._free:
                return self._free.pop()
            self.made += 1
        return self._make(self.slab_bytes)

    def release(self, slabs: Sequence[NDArray[np.uint8]]) -> None:
        with self._changed:
            self._free.extend(slabs)
            self._changed.notify_all()

    @property
    def free(self) -> int:
        """Buffers that nobody holds."""
        return len(self._free)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
