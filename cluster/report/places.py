"""Where a tensor stands in a model, from its name alone: the layer, and what kind of tensor of it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

OUTSIDE = -1
"""In place of the number of a layer."""
NO_LAYER = "-"
"""What pictures call it."""
OTHERS = "all others"
MAX_KINDS = 32
"""Kinds that pictures tell apart: those with most elements; the others are taken together."""


def place_of(name: str) -> tuple[int, str, str]:
    """(layer or OUTSIDE, what stands before its number, kind); of experts and the like the number is left out."""
    parts = name.removesuffix(".weight").split(".")
    at = next((i for i, part in enumerate(parts) if part.isdecimal() and len(part) <= 6), None)
    if at is None:
        return OUTSIDE, "", ".".join(parts)
    rest = ["*" if part.isdecimal() else part for part in parts[at + 1 :]]
    return int(parts[at]), ".".join(parts[:at]), ".".join(rest) or "itself"


class Places:
    """What a report calls the layers and kinds of a model's tensors.

    Args:
        tensors: (name, elements) of all of them, in the order of the model.
        most_cells: layers times kinds at most; neighbouring layers are taken together where there are more.
    """

    def __init__(self, tensors: Iterable[tuple[str, int]], most_cells: int) -> None:
        stacks: Counter[str] = Counter()
        sizes: Counter[tuple[str, str]] = Counter()
        last = OUTSIDE
        for name, numel in tensors:
            layer, stack, kind = place_of(name)
            sizes[stack, kind] += numel
            stacks[stack] += layer != OUTSIDE
            last = max(last, layer)
        main = max(stacks, key=stacks.__getitem__, default="")
        shown = {key for key, _ in sizes.most_common(MAX_KINDS - (len(sizes) > MAX_KINDS))}
        self._kinds = {
            (stack, kind): kind if stack in ("", main) else f"{stack}.*.{kind}"
            for stack, kind in sizes
            if (stack, kind) in shown
        }
        others = [OTHERS] if len(sizes) > len(shown) else []
        self.kinds = tuple(dict.fromkeys([*self._kinds.values(), *others]))
        """In the order of the model."""
        self._step = max(1, -(-(last + 1) * max(1, len(self.kinds)) // most_cells))
        numbered = [self._label(first) for first in range(0, last + 1, self._step)]
        self.layers = (*numbered, NO_LAYER)
        """Labels; what stands outside of layers comes last."""

    def find(self, name: str) -> tuple[str, str]:
        """(label of the layer, kind) of one of the tensors."""
        layer, stack, kind = place_of(name)
        return self._label(layer), self._kinds.get((stack, kind), OTHERS)

    def _label(self, layer: int) -> str:
        if layer == OUTSIDE:
            return NO_LAYER
        first = layer // self._step * self._step
        return str(first) if self._step == 1 else f"{first}-{first + self._step - 1}"
