"""Merge methods by name: each is one typed function from a recipe's parameters to a composition of stages."""

from __future__ import annotations

from collections.abc import Callable

from .averages import linear, passthrough, task_arithmetic
from .magnitude import cabs, magnitude, ties
from .random import dare_linear, dare_ties
from .stages import Method

BUILDERS: dict[str, Callable[..., Method]] = {
    "task_arithmetic": task_arithmetic,
    "magnitude": magnitude,
    "cabs": cabs,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "linear": linear,
    "passthrough": passthrough,
}
"""Keyword arguments are the method's parameters that are the same for all models; weight and density are per model."""
