"""Coefficients of a sum of tensors: pure formulas over dot products, in fp64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Weights:
    """The models' own weights."""

    def solve(self, weights: Sequence[float]) -> tuple[float, ...]:
        """One coefficient per model."""
        return tuple(weights)


Coefficients = Weights
