"""How far tasks are that workers have in hand, for whoever watches a run: a shard may take a minute."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...engine.run import Meter


@dataclass(slots=True)
class FoldedSoFar:
    """Keeps a meter's count of what other processes have looked at, for tasks that are not done.

    Args:
        meter: gets it in `folded_elsewhere_bytes`; what tasks used in the end is added to it by others.
    """

    meter: Meter
    _bytes: dict[int, int] = field(default_factory=dict)
    _done: set[int] = field(default_factory=set)

    def note(self, task: int, folded_bytes: int) -> None:
        """A worker has looked at so many bytes for a task; its twin, or a first try, may have been further."""
        if task not in self._done:
            self._bytes[task] = max(self._bytes.get(task, 0), folded_bytes)
            self._tell()

    def done(self, task: int) -> None:
        """Leave the task out from now on."""
        self._done.add(task)
        self._bytes.pop(task, None)
        self._tell()

    def _tell(self) -> None:
        self.meter.folded_elsewhere_bytes = sum(self._bytes.values())
