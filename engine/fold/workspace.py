"""The arrays in which one thread folds tiles."""

from __future__ import annotations

from typing import Literal

from ..kernels import ROW, Array, Kernels

Real = Literal["f32", "f64"]


HISTOGRAM_BINS = 1 << 16


class Workspace:
    """The arrays in which one thread folds tiles; made once and reused from the first tile to the last."""

    def __init__(self, kernels: Kernels, real: Real, models: int, elements: int) -> None:
        self.elements = elements
        self.base = kernels.empty(elements, real)
        self.sum = kernels.empty(elements, real)
        self.signs = kernels.empty(elements, real)
        self.weight_sum = kernels.empty(elements, real)
        self.order = kernels.empty(elements, real)
        self.task_vectors = [kernels.empty(elements, real) for _ in range(models)]
        self.masks = [kernels.empty(elements, "u8") for _ in range(models)]
        self.claims = kernels.empty(elements, "u8")
        self.active = kernels.empty(elements, "u8")
        self.agreeing = kernels.empty(elements, "u8")
        self.spare = kernels.empty(elements, "u8")
        self.rows = kernels.empty(3 * -(-elements // ROW), "f64")
        self._kernels = kernels
        self._histograms: list[Array] = []

    def histograms(self, count: int) -> list[Array]:
        """`count` i64 arrays of HISTOGRAM_BINS zeros."""
        while len(self._histograms) < count:
            self._histograms.append(self._kernels.empty(HISTOGRAM_BINS, "i64"))
        for histogram in self._histograms[:count]:
            histogram[:] = 0
        return self._histograms[:count]

    @staticmethod
    def bytes_for(models: int, elements: int, real_bytes: int, histograms: int) -> int:
        """Bytes of one workspace, for the memory plan."""
        reals = (5 + models) * real_bytes
        return elements * (reals + models + 4) + 24 * (elements // ROW + 1) + histograms * HISTOGRAM_BINS * 8
