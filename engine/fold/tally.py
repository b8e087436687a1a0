"""What is counted of one tensor: of a window, and of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from ..plan import TensorTask


@dataclass(slots=True)
class Target:
    """What one recipe makes of a tensor: recipes that select alike share everything else."""

    task: TensorTask
    """The recipe's own task: its weights and its output dtype count."""
    saturate: bool
    member: int = 0
    """Place of the recipe among those that are merged together."""
    label: str = ""
    """What messages call the recipe; empty where there is only one."""
    overflowed: int = 0
    """Results beyond the output dtype's range."""


@dataclass(slots=True)
class WindowTally:
    """What one pass counted of one window."""

    nonfinite: list[int]
    """Per source, reference first."""
    kept: list[int]
    """Per model, elements its mask kept."""
    overlaps: dict[tuple[int, int], int]
    """Per pair of models that have the tensor, elements that both masks kept."""
    overflowed: list[int]
    """Per target, results beyond its dtype."""
    claimed: list[int]
    """For each number of models from 3, elements that so many masks kept; smaller numbers follow, see `claims`."""

    def add_nonfinite(self, sources: Sequence[int], counts: Sequence[int]) -> None:
        """Add what a call for a whole window counted of some sources."""
        for source, count in zip(sources, counts, strict=True):
            self.nonfinite[source] += count


@dataclass(slots=True)
class Tally:
    """What all windows of one tensor counted. Only integers are added, so the order of windows shows nowhere."""

    present: Sequence[int]
    """The models that have the tensor."""
    targets: Sequence[Target]
    nonfinite: list[int]
    """Per source, reference first; of a whole look at the tensor."""
    kept: list[int]
    """Per model, elements its mask kept."""
    overlaps: dict[tuple[int, int], int] = field(default_factory=dict)
    """Per pair of models, elements that both masks kept."""
    claimed: list[int] = field(default_factory=list)
    """By number of models from 3, elements that so many masks kept."""

    def new_window(self) -> WindowTally:
        """Nothing counted yet."""
        pairs = dict.fromkeys(combinations(self.present, 2), 0)
        claimed = [0] * (1 + len(self.present))
        return WindowTally([0] * len(self.nonfinite), [0] * len(self.kept), pairs, [0] * len(self.targets), claimed)

    def add(self, window: WindowTally) -> None:
        """Add what a window counted, but for its values that are not finite; the caller holds the state's lock."""
        add_into(self.kept, window.kept)
        for pair, count in window.overlaps.items():
            self.overlaps[pair] = self.overlaps.get(pair, 0) + count
        self.claimed = [a + b for a, b in zip(self.claimed or [0] * len(window.claimed), window.claimed, strict=True)]
        for target, count in zip(self.targets, window.overflowed, strict=True):
            target.overflowed += count

    def claims(self, numel: int) -> tuple[int, ...]:
        """How many elements are kept by 0, 1, ... of the models that have the tensor, from what was counted.

        With c(n) of them kept by n models, the masks' sizes add up to the sum of n c(n), and those of what pairs share
        to the sum of n (n - 1) / 2 c(n).
        """
        if len(self.present) > 255 or not self.claimed:
            return ()
        counts = list(self.claimed)
        more = range(3, len(counts))
        if len(counts) > 2:
            counts[2] = sum(self.overlaps.values()) - sum(n * (n - 1) // 2 * counts[n] for n in more)
        if len(counts) > 1:
            counts[1] = sum(self.kept) - sum(n * counts[n] for n in range(2, len(counts)))
        counts[0] = numel - sum(counts[1:])
        return tuple(counts)


def add_into(total: list[int], more: list[int]) -> None:
    """total += more, element by element."""
    for i, value in enumerate(more):
        total[i] += value
