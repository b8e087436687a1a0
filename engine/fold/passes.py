"""A pass: one reading of a tensor, window by window, by any thread in any order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from ..errors import InputError
from .inputs import WindowData
from .tally import WindowTally, add_into
from .tensor import TensorState
from .workspace import Workspace


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


@dataclass(frozen=True, slots=True)
class Share:
    """What one look at a stretch of a tensor found, for a tensor that several processes merge."""

    counts: WindowTally
    numbers: Sequence[NDArray[Any]]
    """What the pass gathers besides, as it alone knows."""


class CountingPass(ABC):
    """A pass that counts what it finds in windows, and stops the run where that cannot be merged."""

    def __init__(self, state: TensorState) -> None:
        self._state = state
        self._nonfinite = [0] * state.inputs.count

    def run(self, data: WindowData, workspace: Workspace) -> None:
        tally = self._state.tally.new_window()
        self._look(data, workspace, tally)
        with self._state.lock:
            add_into(self._nonfinite, tally.nonfinite)
            self._state.tally.add(tally)

    def finish(self) -> None:
        """Raises InputError: a source holds NaN or Inf, or a result is beyond the output dtype."""
        check_nonfinite(self._state, self._nonfinite)
        self._conclude()
        check_overflow(self._state)

    def share(self, begin: int, end: int) -> Share:
        """What was found in elements [begin, end), when all their windows and no others were looked at."""
        tally, overflowed = self._state.tally, [target.overflowed for target in self._state.targets]
        counts = WindowTally(self._nonfinite, tally.kept, tally.overlaps, overflowed, tally.claimed)
        return Share(counts, self._own_share(begin, end))

    def take(self, share: Share) -> None:
        """Add what was found elsewhere. Shares come in the order of their elements; `finish` follows the last one."""
        add_into(self._nonfinite, share.counts.nonfinite)
        self._state.tally.add(share.counts)
        self._take_own(share.numbers)

    def _own_share(self, begin: int, end: int) -> Sequence[NDArray[Any]]:  # noqa: ARG002
        """What a pass gathers besides counts."""
        return ()

    def _take_own(self, numbers: Sequence[NDArray[Any]]) -> None:  # noqa: B027
        """Add what `_own_share` gave elsewhere."""

    @abstractmethod
    def _look(self, data: WindowData, workspace: Workspace, tally: WindowTally) -> None:
        """Do what the pass does with a window; by any thread, so what windows share is changed under the state's lock.

        Args:
            data: the window.
            workspace: of this thread.
            tally: gets what is counted.
        """

    def _conclude(self) -> None:  # noqa: B027
        """Draw conclusions from all windows; nothing unless a pass has any."""


class SharePass:
    """The only pass over a tensor, for elements [begin, end) alone: ends with a share instead of conclusions."""

    def __init__(self, whole: CountingPass, begin: int, end: int) -> None:
        self._whole = whole
        self._begin = begin
        self._end = end
        self.share: Share | None = None
        """Of all windows, once they have run."""

    def run(self, data: WindowData, workspace: Workspace) -> None:
        """See `Pass`."""
        self._whole.run(data, workspace)

    def finish(self) -> None:
        """See `Pass`."""
        self.share = self._whole.share(self._begin, self._end)


def check_nonfinite(state: TensorState, counts: list[int]) -> None:
    """Keep what a whole pass counted; stop the run unless the recipe says what to do with such values.

    Raises:
        InputError: a source holds NaN or Inf.
    """
    state.tally.nonfinite = counts
    if state.keeps_nonfinite or not any(counts):
        return
    source = next(i for i, count in enumerate(counts) if count)
    raise InputError(
        f"{state.inputs.name(source)} holds {counts[source]} NaN or Inf values",
        "repair the checkpoint, exclude the tensor, or set `nonfinite: keep-base` in the recipe",
    )


def check_overflow(state: TensorState) -> None:
    """Raises InputError when results are not finite; a recipe that saturates still has no answer to Inf - Inf."""
    for target in state.targets:
        count, what = target.overflowed, f"{target.label}tensor {target.task.name!r}"
        if count and target.saturate:
            raise InputError(
                f"{what}: {count} results are NaN, which saturation cannot repair", "choose smaller weights"
            )
        if count:
            raise InputError(
                f"{what}: {count} values are beyond the range of {target.task.out_dtype}",
                "choose a wider `out_dtype`, smaller weights, or set `overflow: saturate` in the recipe",
            )
