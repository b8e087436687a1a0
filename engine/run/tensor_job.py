"""One tensor on its way through the pipeline: what is read of it, by whom, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..fold import OptionalPass, Pass, Target, TensorState
from ..models import TensorLocation
from .taken import TakenBytes

Need = tuple[int, TensorLocation]
"""A source of the pipeline, and the tensor in it."""


@dataclass(slots=True)
class PassGroup:
    """Recipes that look at a tensor alike: passes that run in order, the last of which writes the state's targets."""

    state: TensorState
    passes: Sequence[Pass]
    places: Sequence[int]
    """The pipeline's source for each of the state's plan."""
    needs: Sequence[Need | None] = field(init=False)
    """What is read: of the reference, then of every model of the tensor."""
    picks: Sequence[int | None] = field(init=False)
    """Which of the job's needs these are."""

    def __post_init__(self) -> None:
        task = self.state.task
        self.needs = [
            None if location is None else (self.places[origin], location)
            for origin, location in zip(task.origins, task.sources, strict=True)
        ]

    def needed(self, turn: int) -> bool:
        """Whether its pass in that turn has something to do; valid when the turns before are over."""
        own = self.passes[turn]
        return own.needed if isinstance(own, OptionalPass) else True


@dataclass(slots=True)
class TensorJob:
    """One tensor on its way through the pipeline: in each turn every part that has another pass takes it."""

    parts: Sequence[PassGroup]
    """Their windows begin and end alike; each keeps grains of its own whole."""
    noted: bool
    """Whether it is noted what was read."""
    needs: Sequence[Need] = field(init=False)
    """What the passes of all turns read, each once."""
    taken: Sequence[TakenBytes] = field(init=False)
    """What was read, by need; nothing where it is not noted."""

    def __post_init__(self) -> None:
        numbers: dict[Need, int] = {}
        for part in self.parts:
            part.picks = [None if need is None else numbers.setdefault(need, len(numbers)) for need in part.needs]
        self.needs = [*numbers]
        self.taken = [TakenBytes() for _ in numbers] if self.noted else []

    def taken_of(self, need: int) -> TakenBytes | None:
        """Where it is noted what is read of one of the needs."""
        return self.taken[need] if self.noted else None

    @property
    def turns(self) -> int:
        return max(len(part.passes) for part in self.parts)

    @property
    def windows(self) -> int:
        return len(self.parts[0].state.windows)

    def span(self, window: int) -> tuple[int, int]:
        """First and last element (exclusive) that the parts together need in memory."""
        windows = [part.state.windows[window] for part in self.parts]
        return windows[0].begin, max(each.read_end for each in windows)

    def in_turn(self, turn: int) -> list[PassGroup]:
        """The parts that have a pass then."""
        return [part for part in self.parts if turn < len(part.passes)]

    def optional(self, turn: int) -> bool:
        """Whether it is known only when the turns before are over that parts have something to do then."""
        return all(isinstance(part.passes[turn], OptionalPass) for part in self.in_turn(turn))

    def written_in(self, turn: int) -> list[tuple[PassGroup, Target]]:
        """What the last passes of parts write in that turn."""
        return [(part, target) for part in self.parts if turn == len(part.passes) - 1 for target in part.state.targets]

    def needs_in(self, turn: int) -> list[int]:
        """Which of the needs the passes of that turn read, each once."""
        return list(dict.fromkeys([pick for part in self.in_turn(turn) for pick in part.picks if pick is not None]))

    @property
    def targets(self) -> list[Target]:
        """Everything that is written, by part."""
        return [target for part in self.parts for target in part.state.targets]
