"""What is wrong with files of an output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import IntegrityError


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one file."""

    file: str
    text: str


def problems_error(url: str, problems: Sequence[Problem]) -> IntegrityError:
    """What to raise when an output is not whole."""
    return IntegrityError(
        f"{url}: {len(problems)} {'problem' if len(problems) == 1 else 'problems'} found",
        "`anabranch verify OUT --repair RECIPE` makes what is damaged or missing again from the inputs; files that are "
        "unexpected are yours to remove",
    )
