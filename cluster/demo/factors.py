"""Methods as recipes, and the search for each method's lambda. Pure: nothing is merged here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LEAST, MOST = -12, 20
"""Factors go from 2**(LEAST / 2) to 2**(MOST / 2): 0.016 to 1024."""


@dataclass(frozen=True, eq=False)
class Method:
    """One row of merges: what a recipe says beside models and lambda."""

    title: str
    merge_method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    ours: bool = False
    """Whether it is conflict-aware or balanced sparsification, or a density by TADrop."""

    @property
    def name(self) -> str:
        """The title as a file's name."""
        return "".join(c if c.isalnum() else "_" for c in self.title.lower())

    def recipe(self, base: str, models: Sequence[str], factor: float | None = None) -> dict[str, Any]:
        """The recipe of a merge of these models, with a lambda or the method's own."""
        factors = {} if factor is None else {"lambda": factor}
        return {
            "merge_method": self.merge_method,
            "base_model": base,
            "models": [{"model": model} for model in models],
            "parameters": {**self.parameters, **factors},
        }


@dataclass(frozen=True)
class Chosen:
    """The best factor of those that were tried."""

    factor: float
    tried: Mapping[float, float]
    """Score by factor, the smallest factor first."""

    @property
    def at_edge(self) -> bool:
        """Whether no smaller or no larger factor was tried."""
        return self.factor in (min(self.tried), max(self.tried))


def nth_factor(step: int) -> float:
    """2**(step / 2), as a recipe would spell it: 0.354, 0.5, 0.707, 1, 1.41, 2."""
    return float(f"{2 ** (step / 2):.3g}")


def choose_factor(score: Callable[[float], float]) -> Chosen:
    """Try factors by powers of two from 1/2 to 8, go on while the best is at an end, then try its neighbours between.

    Of equal scores the smallest factor wins. So the best is never at an edge of what was tried, but where it is the
    smallest or the largest there is. The first five are tried in any case: sparse changes often answer little between 1
    and 2 and most beyond, so that a search that stops at the first fall never gets there.
    """
    scores = {step: score(nth_factor(step)) for step in (-2, 0, 2, 4, 6)}

    def best() -> int:
        return min(scores, key=lambda step: (-scores[step], step))

    while (end := best()) in (min(scores), max(scores)):
        step = end + (2 if end == max(scores) else -2)
        if not LEAST <= step <= MOST:
            break
        scores[step] = score(nth_factor(step))
    centre = best()
    for step in (centre - 1, centre + 1):
        if LEAST <= step <= MOST:
            scores[step] = score(nth_factor(step))
    return Chosen(nth_factor(best()), {nth_factor(step): scores[step] for step in sorted(scores)})
