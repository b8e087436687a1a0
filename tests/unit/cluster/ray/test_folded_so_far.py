"""What a bar shows of shards that workers have in hand: never twice, and never less because of a twin."""

from __future__ import annotations

from anabranch.cluster.progress import folded_bytes
from anabranch.cluster.ray.folded_so_far import FoldedSoFar
from anabranch.engine.run import Meter


def test_work_in_hand_is_shown_until_it_is_counted() -> None:
    meter = Meter()
    shown, going = folded_bytes(meter), FoldedSoFar(meter)
    going.note(3, 100)
    going.note(7, 50)
    going.note(3, 40)  # a twin that began later
    assert shown() == 150
    going.done(3)
    meter.usage["fold"].bytes += 120
    assert shown() == 170
    going.note(3, 60)  # the twin does not know yet
    assert shown() == 170
    going.done(7)
    assert shown() == 120
