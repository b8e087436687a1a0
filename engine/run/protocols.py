"""What a run is made of: members, where their work is done, and who is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..output import Manifest, OutputDirectory
from ..plan import Inputs, Plan
from .shard import Shard
from .work import Done, R, Step, Work


@dataclass(frozen=True)
class Member:
    """One recipe of a run: its inputs, and the output directory that it fills."""

    inputs: Inputs
    output: OutputDirectory

    @property
    def plan(self) -> Plan:
        return self.inputs.plan


class Runner(Protocol):
    """Where work on the shards of a group of recipes is done."""

    def run(self, work: Work[R], shards: Sequence[Shard], done: Done[R]) -> None:
        """Have it done for each shard and its members; every member's receipt is handed to `done` once.

        Raises:
            InputError, ResourceError, TemporaryError: what stopped it; what was done until then stays.
        """


class Progress(Protocol):
    """Is told what happens; sizes are bytes of inputs looked at."""

    def phase(self, name: Step, total_bytes: int, done_bytes: int) -> None: ...

    def shard_done(self, shard: int) -> None: ...

    def note(self, text: str) -> None:
        """Something happened that a user should know, such as the loss of a worker."""


class Silent:
    """Progress that nobody watches."""

    def phase(self, name: str, total_bytes: int, done_bytes: int) -> None:
        pass

    def shard_done(self, shard: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@dataclass(frozen=True)
class Outcome:
    """What a finished run did."""

    manifest: Manifest
    merged_shards: tuple[int, ...]
    """Shards that this run made."""
    resumed_shards: tuple[int, ...]
    """Shards that were already there."""
    already_complete: bool
