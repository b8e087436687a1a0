"""What a run is made of: members, where their work is done, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..output import Manifest, OutputDirectory
from ..plan import Inputs, Plan, Receipt, Round, Survey
from .shard import Shard

Step = Literal["survey", "merge", "commit"]


@dataclass(frozen=True)
class Member:
    """One recipe of a run: its inputs, and the output directory that it fills."""

    inputs: Inputs
    output: OutputDirectory

    @property
    def plan(self) -> Plan:
        return self.inputs.plan


class Runner(Protocol):
    """Where the shards of a group of recipes are surveyed and merged; members are places in the group."""

    def survey(self, shards: Sequence[int], round_: Round, members: Sequence[int], done: Callable[[int], None]) -> None:
        """Take the statistics that these members agree on, publish each shard's parts for all, then call `done`."""

    def merge(
        self, shards: Sequence[Shard], surveys: Sequence[Survey | None], done: Callable[[int, Receipt], None]
    ) -> None:
        """Write each shard of its members, publish their receipts, then call `done` with each."""


class Progress(Protocol):
    """Is told what happens; sizes are bytes of inputs looked at."""

    def phase(self, name: Step, total_bytes: int, done_bytes: int) -> None: ...

    def shard_done(self, shard: int) -> None: ...

    def note(self, text: str) -> None:
        """Something happened that a user should know, such as the loss of a worker."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run did."""

    manifest: Manifest
    merged_shards: tuple[int, ...]
    """Shards that this run made."""
    resumed_shards: tuple[int, ...]
    """Shards that were already there."""
    already_complete: bool
