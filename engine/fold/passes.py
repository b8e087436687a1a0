"""A pass: one reading of a tensor, window by window, by any thread in any order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..plan import Window
from .workspace import Workspace


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

    @property
    def out(self) -> NDArray[np.uint8] | None:
        """The place of the only result, or None."""
        return self.outs[0] if self.outs else None


class Pass(Protocol):
    """One reading of a tensor: `run` for every window by any thread in any order, then `finish` once."""

    def run(self, data: WindowData, workspace: Workspace) -> None: ...

    def finish(self) -> None: ...


class OptionalPass(ABC):
    """A pass that the passes before may make superfluous: then it is neither run nor finished, and nothing is read."""

    @property
    @abstractmethod
    def needed(self) -> bool:
        """Whether there is anything to do; asked when the passes before are finished."""


def add_into(total: list[int], more: list[int]) -> None:
    """total += more, element by element."""
    for i, value in enumerate(more):
        total[i] += value
