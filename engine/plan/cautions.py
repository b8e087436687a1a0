"""Recipes that can be carried out, but are rarely what is wanted: densities that ask for another factor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..methods import Elect, Method, TadropDensity, TaskVectorMerge
from .task import TensorTask

SPARSE = 0.2
"""Densities below this want a factor above 1 (docs/choosing.md)."""


def check_densities(tasks: Sequence[TensorTask], warnings: list[str]) -> None:
    """Warn of sparse changes that are not enlarged, of masks that have no room, of elections with little to elect."""
    said = (_first(tasks, caution) for caution in (_not_enlarged, _no_room, _little_to_elect))
    warnings.extend(each for each in said if each)


def _first(tasks: Iterable[TensorTask], caution: Callable[[Method], str]) -> str:
    """What is said of the first tensor that there is something to say of."""
    seen: set[int] = set()
    for task in tasks:
        if task.method is None or id(task.method) in seen:
            continue
        seen.add(id(task.method))
        if said := caution(task.method):
            return f"tensor {task.name!r}: {said}"
    return ""


def _share(density: float | TadropDensity) -> float | None:
    """The share that is kept, as far as the recipe says it."""
    return density.mean if isinstance(density, TadropDensity) else density


def _not_enlarged(method: Method) -> str:
    """Of what keeps few elements as they are, the factor that they are added with."""
    if not isinstance(method, TaskVectorMerge) or method.rescale != "none" or not method.needs_weights:
        return ""
    for density, weight in zip(method.densities, method.weights, strict=False):
        share, factor = _share(density), method.lambda_ * (1.0 if method.normalize else weight)
        if share is not None and 0 < share < SPARSE and 0 < factor <= 1:
            return (
                f"density {share:g} with a factor of {factor:g} (weight times lambda): changes this sparse mostly want "
                "one above 1; choose it on samples of your tasks (docs/choosing.md)"
            )
    return ""


def _no_room(method: Method) -> str:
    """Of models that choose in turn, how much they want together."""
    if not isinstance(method, TaskVectorMerge) or not method.selection.counts_claims:
        return ""
    shares = [_share(density) for density in method.densities]
    total = sum(share for share in shares if share is not None)
    if total <= 1 + 1e-9:
        return ""
    return (
        f"densities sum to {total:g}, so models that choose in turn have to share positions; up to 1 they need not "
        "(docs/choosing.md)"
    )


def _little_to_elect(method: Method) -> str:
    """Of EMR-Merging, targets of TADrop that leave too little."""
    if not isinstance(method, Elect):
        return ""
    targets = [density.mean for density in method.target_densities.values() if density.mean is not None]
    if not targets or min(targets) >= SPARSE:
        return ""
    return (
        f"TADrop with a mean of {min(targets):g} before an election: tensors with many unchanged elements keep little "
        "or nothing; leave the mean out, or take one of 0.25 or more (docs/choosing.md)"
    )
