"""What makes a merge good: one number from the scores of all tasks, larger is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...engine.errors import RecipeError

Scores = Mapping[str, float]
"""By task."""
LOSS_FACTOR = 100.0
"""How often what gets worse counts in the asymmetric objective (CABS+, arXiv 2608.12842)."""
FORMS = "mean, min, task:NAME, weighted:NAME=WEIGHT,NAME=WEIGHT or asymmetric"


@dataclass(frozen=True, slots=True)
class Objective:
    """One of `FORMS`, as the user wrote it."""

    text: str
    kind: str
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of tasks by name, where the objective names tasks."""

    @property
    def relative(self) -> bool:
        """Whether it compares with the scores of a reference recipe."""
        return self.kind == "asymmetric"

    def value(self, scores: Scores, reference: Scores) -> float:
        """The number to be made large.

        Args:
            scores: of every task.
            reference: the reference recipe's, of the same tasks; empty where no objective is relative.

        Raises:
            RecipeError: a task that the objective names has no score, or a reference score is 0.
        """
        if missing := sorted(self.weights.keys() - scores.keys()):
            raise RecipeError(f"--objective {self.text}: no score for {missing[0]}; there are {', '.join(scores)}")
        match self.kind:
            case "mean":
                return math.fsum(scores.values()) / len(scores)
            case "min":
                return min(scores.values())
            case "asymmetric":
                return math.fsum(_asymmetric(scores[task], reference[task]) for task in scores) / len(scores)
            case _:
                total = math.fsum(abs(weight) for weight in self.weights.values())
                return math.fsum(weight * scores[task] for task, weight in self.weights.items()) / total


def _asymmetric(score: float, reference: float) -> float:
    gain = (score - reference) / abs(reference)
    return gain if gain >= 0 else LOSS_FACTOR * gain


def check_reference(scores: Scores) -> None:
    """RecipeError where a score of the reference recipe allows no relative gain."""
    zero = [task for task, score in scores.items() if score == 0]
    if zero:
        raise RecipeError(
            f"the reference recipe scores 0 on {zero[0]}, so that no gain is relative to it",
            "use another reference, or an objective such as mean or weighted",
        )


def read_objective(text: str) -> Objective:
    """Read one of `FORMS`; RecipeError when it is none."""
    kind, _, rest = text.partition(":")
    if text in ("mean", "min", "asymmetric"):
        return Objective(text, kind)
    if kind == "task" and rest:
        return Objective(text, kind, {rest: 1.0})
    if kind == "weighted" and rest:
        weights = {}
        for pair in rest.split(","):
            task, _, number = pair.rpartition("=")
            try:
                weights[task] = float(number)
            except ValueError:
                weights[task] = math.nan
        if "" not in weights and all(math.isfinite(weight) and weight for weight in weights.values()):
            return Objective(text, kind, weights)
    raise RecipeError(f"--objective {text}: expected {FORMS}")


def pareto(values: Mapping[int, tuple[float, ...]]) -> list[int]:
    """Those that no other one beats: at least as good in every objective and better in one; in order of number."""
    return [number for number, mine in values.items() if not any(_beats(other, mine) for other in values.values())]


def _beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))


def ranked(values: Mapping[int, tuple[float, ...]]) -> list[int]:
    """Best first: those that nothing beats, then the others; the first objective decides, then the next, the number."""
    front = {*pareto(values)}
    return sorted(values, key=lambda number: (number not in front, tuple(-value for value in values[number]), number))
