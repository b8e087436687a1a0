"""Merge methods by name."""

from __future__ import annotations

from collections.abc import Callable

from .averages import linear, passthrough, task_arithmetic
from .emr import emr
from .magnitude import breadcrumbs, breadcrumbs_ties, cabs, magnitude, ties
from .pairs import arcee_fusion, nearswap
from .ram import ram, ramplus_tl
from .random import dare_linear, dare_ties, della, della_linear
from .sce import sce
from .spheres import karcher, model_stock, multislerp, nuslerp, slerp
from .stages import Method

BUILDERS: dict[str, Callable[..., Method]] = {
    "task_arithmetic": task_arithmetic,
    "magnitude": magnitude,
    "cabs": cabs,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "della": della,
    "della_linear": della_linear,
    "breadcrumbs": breadcrumbs,
    "breadcrumbs_ties": breadcrumbs_ties,
    "sce": sce,
    "linear": linear,
    "passthrough": passthrough,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "model_stock": model_stock,
    "nearswap": nearswap,
    "arcee_fusion": arcee_fusion,
    "ram": ram,
    "ramplus_tl": ramplus_tl,
    "emr": emr,
}
"""Keyword arguments are the method's parameters that are the same for all models, and `has_base`: whether the recipe
has a base apart from the models. The others are per model."""
