"""Parameters that several methods take, with what they may hold and what they mean."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from . import tadrop
from .schema import Means, PerModel, Range
from .stages import Rescale

Share: TypeAlias = Annotated[float, Range(0, 1)]
Weight: TypeAlias = Annotated[
    PerModel[float], Means("factor of a model's difference, or of the model itself in `linear`")
]
Density: TypeAlias = Annotated[
    PerModel[Annotated[tadrop.Density, Range(0, 1)]], Means("share of a tensor's elements to keep")
]
Lambda: TypeAlias = Annotated[float, Means("factor of the sum of all differences")]
Normalize: TypeAlias = Annotated[
    bool, Means("divide by the sum of weights; with a sign election, by the sum of the weights that agree")
]
Enlarge: TypeAlias = Annotated[
    bool,
    Means(
        "enlarge what was kept to make up for what was dropped; in `task_arithmetic`, which drops nothing, without "
        "effect"
    ),
]
RescaleNorm: TypeAlias = Annotated[
    Literal["none", "l1", "l2"],
    Means(
        "how, when `rescale` is true: `none` divides by the density, `l1` and `l2` restore that norm of the tensor "
        "(`l1` is what mergekit does). An error when `rescale` is false"
    ),
]


def divisor(rescale: bool, rescale_norm: Literal["none", "l1", "l2"]) -> Rescale:
    """What kept values are divided by."""
    if not rescale:
        return "none"
    return "density" if rescale_norm == "none" else rescale_norm
