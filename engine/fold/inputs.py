"""What the windows of one tensor hold: bytes of its inputs, decoded to the reference and to task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels import Array, Kernels, WindowInputs
from ..models import DTYPES
from ..plan import Plan, TensorTask, Window
from .workspace import Real, Workspace


@dataclass(frozen=True, slots=True)
class WindowData:
    """The bytes of one window in memory, and where its results go."""

    window: Window
    raws: Sequence[NDArray[np.uint8] | None]
    """Per source (reference first, then the models): uint8 bytes of elements [begin, read_end), shorter where the
    source ends earlier, None where there is no such source."""
    outs: Sequence[NDArray[np.uint8]]
    """Per target of the state, uint8 bytes of elements [own_begin, own_end) in its output dtype; empty in passes that
    only gather statistics."""


class TensorInputs:
    """Decodes the sources of one tensor. A source is 0 for the reference and i + 1 for the i-th model.

    Args:
        task: the tensor with its sources.
        plan: what is done with values that cannot be merged, and what the sources are called.
        kernels: where the arithmetic runs.
        real: in which numbers.
    """

    def __init__(self, task: TensorTask, plan: Plan, kernels: Kernels, real: Real) -> None:
        self._task = task
        self._plan = plan
        self._kernels = kernels
        self._real = real
        self._locations = {0: task.base} | {i + 1: model for i, model in enumerate(task.models) if model is not None}
        self.present = [source - 1 for source in self._locations if source]
        """The models that have the tensor."""
        self.count = 1 + len(task.models)
        """Sources, those without the tensor too."""

    @property
    def sources(self) -> list[int]:
        """Those that have the tensor, the reference first; calls for whole windows know no others."""
        return [*self._locations]

    def name(self, source: int) -> str:
        """What messages call a source of this tensor."""
        origin = self._plan.sources[self._task.origins[source]]
        return f"{origin.url}: tensor {self._locations[source].info.name!r}"

    def dtype(self, source: int) -> str:
        """Of a source that has the tensor."""
        return self._locations[source].info.dtype

    def load(self, data: WindowData, workspace: Workspace, begin: int, end: int, nonfinite: list[int]) -> None:
        """Decode the reference and every model's task vector of elements [begin, end) into the workspace.

        A model that ends earlier (fewer rows of a padded vocabulary) has t = 0 beyond its end.

        The number of NaN and Inf among these elements is added to `nonfinite`, per source.
        """
        length = end - begin
        base = workspace.base[:length]
        nonfinite[0] += self._kernels.decode(self.bytes_of(data, 0, begin, length), self.dtype(0), base)
        for i in self.present:
            t, dtype = workspace.task_vectors[i][:length], self.dtype(i + 1)
            raw = self.bytes_of(data, i + 1, begin, length)
            known = len(raw) // DTYPES[dtype].size
            if known:
                nonfinite[i + 1] += self._kernels.task_vector(raw, dtype, base[:known], t[:known])
            if known < length:
                t[known:] = 0
            if self._plan.terms.keep_base_where_nonfinite:
                self._kernels.zero_nonfinite(t, base)

    def bytes_of(self, data: WindowData, source: int, begin: int, length: int) -> Array:
        """Bytes of elements [begin, begin + length) of a source that has the tensor, fewer where it ends earlier."""
        raw, size = data.raws[source], DTYPES[self.dtype(source)].size
        first = begin - data.window.begin
        known = raw[first * size : (first + length) * size] if raw is not None else np.empty(0, np.uint8)
        return self._kernels.load(known)

    def whole(self, data: WindowData) -> WindowInputs | None:
        """What the window's own elements are in every source, where calls for whole windows may take them.

        None where bad values are replaced, arithmetic is in 64 bits, or a source ends earlier.
        """
        first, length = data.window.own_begin, data.window.own_end - data.window.own_begin
        if self._plan.terms.keep_base_where_nonfinite or self._real != "f32" or not length:
            return None
        raws: list[Array] = []
        dtypes: list[str] = []
        for source, location in self._locations.items():
            raw, dtype = self.bytes_of(data, source, first, length), location.info.dtype
            if len(raw) != length * DTYPES[dtype].size:
                return None
            raws.append(raw)
            dtypes.append(dtype)
        return WindowInputs(first, raws, dtypes)
