"""The picture of the rooms in docs/architecture.md, drawn from what the files import.

    python -m benchmarks.rooms          # writes it; `make docs`
    python -m benchmarks.rooms --check  # fails where the document shows another one

An arrow goes from a room to one whose names it imports. What already follows from other arrows is left out, so that the
order of the rooms can be seen.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence

from .sources import OUTSIDE_ROOMS, ROOT, read_sources, room_of
from .structure import reach

DOCUMENT = ROOT / "docs" / "architecture.md"
BLOCK = re.compile(r"^```mermaid\n.*?^```\n", flags=re.DOTALL | re.MULTILINE)


def arrows() -> dict[str, set[str]]:
    """By room, those that it imports directly."""
    found: dict[str, set[str]] = {}
    for source in read_sources():
        if source.name.partition(".")[2] and source.room not in OUTSIDE_ROOMS:
            others = {room_of(item.name) for item in source.imports if item.ours}
            found.setdefault(source.room, set()).update(others - {source.room, "", *OUTSIDE_ROOMS})
    return found


def reduced(imports: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Without arrows to what a room reaches by way of another one."""
    reached = {room: reach(imports, room) for room in imports}
    return {
        room: sorted(other for other in others if not any(other in reached[way] for way in others - {other}))
        for room, others in imports.items()
    }


def picture() -> str:
    """Mermaid, as GitHub shows it."""
    lines = [f"    {room} --> {other}" for room, others in sorted(reduced(arrows()).items()) for other in others]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```", ""])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw the rooms in docs/architecture.md.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where the document differs")
    check = parser.parse_args(arguments).check
    text = DOCUMENT.read_text(encoding="utf-8")
    drawn, count = BLOCK.subn(lambda _: picture(), text)
    if count != 1:
        sys.exit(f"{DOCUMENT}: expected one mermaid block, found {count}")
    if check:
        return int(drawn != text)
    DOCUMENT.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
