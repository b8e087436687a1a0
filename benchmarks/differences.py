"""Compare two merged checkpoints by value, however they are cut into shards.

    python -m benchmarks.differences ONE OTHER

Prints JSON: how many elements there are, how many differ, and which tensors only one of them has.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

WINDOW = 1 << 20  # elements read at a time


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bf16 tensor lies."""

    path: Path
    offset: int
    numel: int


def places(folder: Path) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] != "BF16":
                raise SystemExit(f"{path}: {name} is {entry['dtype']}, expected BF16")
            start, end = entry["data_offsets"]
            found[name] = Place(path, 8 + length + start, (end - start) // 2)
    return found


def differing(one: Place, other: Place) -> int:
    """Elements with different values; +0.0 and -0.0 are equal, as are all NaNs."""
    if one.numel != other.numel:
        return max(one.numel, other.numel)
    count = 0
    for first in range(0, one.numel, WINDOW):
        a, b = (_read(place, first, min(WINDOW, one.numel - first)) for place in (one, other))
        count += int(np.count_nonzero(_canonical(a) != _canonical(b)))
    return count


def _read(place: Place, first: int, count: int) -> npt.NDArray[np.uint16]:
    return np.fromfile(place.path, np.uint16, count, offset=place.offset + 2 * first)


def _canonical(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    magnitude = bits & 0x7FFF
    bits[magnitude == 0] = 0
    bits[magnitude > 0x7F80] = 0x7FC0
    return bits


def compare(one: Path, other: Path) -> dict[str, object]:
    left, right = places(one), places(other)
    common = left.keys() & right.keys()
    total = sum(left[name].numel for name in common)
    count = sum(differing(left[name], right[name]) for name in sorted(common))
    return {
        "elements": total,
        "differing": count,
        "share": count / total if total else None,
        "only_in_one": sorted(left.keys() ^ right.keys()),
    }


if __name__ == "__main__":
    print(json.dumps(compare(Path(sys.argv[1]), Path(sys.argv[2]))))
