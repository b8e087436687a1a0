"""How one tensor is cut: windows are read and written at once, tiles are folded inside the processor's cache."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache

from ..kernels import ROW

"""Statistics are folded in rows of so many elements (ALGORITHMS 1.4), so every window starts at a multiple of it."""
TILE_ELEMENTS = 1 << 17
"""A tile of fp32 is 512 KiB: base, task vector and sum of one tile stay in a level-2 or level-3 cache."""
MAX_TILE_ELEMENTS = 1 << 18
"""A common multiple of rows and grain up to this size is used as the tile; beyond it the two loops are separate."""


@dataclass(frozen=True, slots=True)
class Window:
    """Elements [begin, end) take part in statistics; [own_begin, own_end) are selected, merged and written.

    The two differ only where a grain (a block of n:m) crosses a window's border: it belongs to the window it starts in.
    """

    index: int
    begin: int
    end: int
    own_begin: int
    own_end: int

    @property
    def read_end(self) -> int:
        """Elements [begin, read_end) must be in memory: whole grains where one starts here."""
        return max(self.end, self.own_end) if self.own_begin < self.own_end else self.end


@cache
def tile_elements(grain: int) -> int:
    """Tile size: a multiple of rows and grain where one of at most MAX_TILE_ELEMENTS exists, else of the grain."""
    both = math.lcm(ROW, grain)
    unit = both if both <= MAX_TILE_ELEMENTS else grain
    return max(unit, TILE_ELEMENTS // unit * unit)


def least_window_elements(grain: int) -> int:
    """What one buffer must hold at least: windows start at rows, and tiles of whole rows and grains are not cut."""
    both = math.lcm(ROW, grain)
    return both if both <= MAX_TILE_ELEMENTS else ROW + grain


@cache
def window_elements(slab_bytes: int, element_bytes: int, grain: int) -> int:
    """The largest window, in elements, whose bytes (with a grain's overhang) fit one slab."""
    room = slab_bytes // element_bytes
    assert room >= least_window_elements(grain), "the memory plan asks for large enough buffers"
    both, tile = math.lcm(ROW, grain), tile_elements(grain)
    if tile % ROW == 0:
        return room // tile * tile if room >= tile else room // both * both
    return (room - grain) // ROW * ROW


def least_joint_elements(grains: Collection[int]) -> int:
    """As `least_window_elements`, for windows that several readers with grains of their own share."""
    joint = math.lcm(*grains)
    if len(set(grains)) == 1 or math.lcm(ROW, joint) <= MAX_TILE_ELEMENTS:
        return least_window_elements(joint)
    return ROW + max(grains)


def joint_window_elements(slab_bytes: int, element_bytes: int, grains: Collection[int]) -> int:
    """As `window_elements`, for windows that several readers share: each keeps its own grains whole."""
    joint = math.lcm(*grains)
    if len(set(grains)) == 1 or math.lcm(ROW, joint) <= MAX_TILE_ELEMENTS:
        return window_elements(slab_bytes, element_bytes, joint)
    room = slab_bytes // element_bytes
    assert room >= least_joint_elements(grains), "the memory plan asks for large enough buffers"
    return (room - max(grains)) // ROW * ROW


def cut_windows(numel: int, elements: int, grain: int) -> list[Window]:
    """Windows of `elements` elements (a multiple of ROW) over a tensor of numel elements, grains kept whole.

    A tensor without elements has one empty window, so that it passes through like any other.
    """
    if numel == 0:
        return [Window(0, 0, 0, 0, 0)]
    windows = []
    for index, begin in enumerate(range(0, numel, elements)):
        end = min(begin + elements, numel)
        own_begin = min(-(-begin // grain) * grain, numel)
        own_end = min(-(-end // grain) * grain, numel)
        windows.append(Window(index, begin, end, own_begin, own_end))
    return windows


def cut_stretch(begin: int, end: int, elements: int, grain: int) -> list[Window]:
    """The same over elements [begin, end) of a tensor that is cut there; `grain` and ROW divide `begin`."""
    return [
        Window(w.index, begin + w.begin, begin + w.end, begin + w.own_begin, begin + w.own_end)
        for w in cut_windows(end - begin, elements, grain)
    ]


def tiles(begin: int, end: int, elements: int) -> Iterator[tuple[int, int]]:
    """Cut [begin, end) into tiles of `elements` elements, the last one shorter."""
    for start in range(begin, end, elements):
        yield start, min(start + elements, end)
