"""Merge methods by the name that a recipe gives: ours, and those of a user's own modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType, ModuleType
from typing import Any

from . import averages, breadcrumbs, emr, magnitude, pairs, ram, random, sce, spheres, task_arithmetic
from .schema import MergeMethod

FAMILIES: tuple[ModuleType, ...] = (
    task_arithmetic,
    magnitude,
    random,
    breadcrumbs,
    sce,
    averages,
    spheres,
    pairs,
    ram,
    emr,
)
"""In the order in which documents and messages list their methods."""

METHODS: Mapping[str, MergeMethod] = MappingProxyType(
    {
        method.schema.name: method
        for family in FAMILIES
        for method in vars(family).values()
        if isinstance(method, MergeMethod)
    }
)
"""Ours, by name."""

ENTRY_POINTS = "anabranch.methods"
"""The group of entry points in which packages offer methods."""


class NoMethod(ValueError):
    """What a recipe names leads to no merge method; says what to do."""


def find_method(name: str) -> MergeMethod | None:
    """Ours, that of an entry point, or `package.module:function`; None where nothing has the name.

    Raises:
        NoMethod: what has the name cannot be imported, or is no merge method.
    """
    return METHODS[name] if name in METHODS else _plugin(name)


@cache
def _plugin(name: str) -> MergeMethod | None:
    """A method of a user's own, whose schema has the name that recipes give it."""
    module, _, attribute = name.partition(":")
    points = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]
    if not points and not re.fullmatch(r"\w+(\.\w+)*:\w+", name):
        return None
    try:
        found: Any = points[0].load() if points else getattr(import_module(module), attribute)
    except Exception as error:
        text = f"{name} cannot be imported ({type(error).__name__}: {error})"
        raise NoMethod(f"{text}; put its folder on PYTHONPATH, or install its package") from error
    if not isinstance(found, MergeMethod):
        text = f"{name} is no merge method but {type(found).__name__}"
        raise NoMethod(f"{text}; decorate the function with @merge_method()")
    return replace(found, schema=replace(found.schema, name=name))
