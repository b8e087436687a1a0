"""Reading `slices` and `modules`: forms that mean the same become one, and what no key shows alone is checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..methods import MethodSchema
from .groups import base_of
from .parameters import Setting, read_parameters
from .schema import Recipe, Slice
from .text import KeyPath, Problem, did_you_mean, shorten

WHOLE_MODEL_MODULES = ("default", "text_decoder")
"""What mergekit calls the only module of a language model, and the language model of a larger one."""
_MODULE_KEYS = ("slices", "models", "parameters")
STRUCTURES = ("models", "slices", "modules")


def lift_module(data: dict[str, Any], problems: list[Problem]) -> tuple[KeyPath, Any]:
    """Move what the recipe's only module says to the top, where it means the same.

    Args:
        data: the recipe; `modules` is taken out, its `slices` or `models` are put in.
        problems: everything that is wrong is appended here.

    Returns:
        The path of the module, and its `parameters`; () and None where there is none.
    """
    modules = data.pop("modules", None)
    if modules is None:
        return (), None
    path: KeyPath = ("modules",)
    names = list(modules) if isinstance(modules, dict) else []
    if len(names) != 1 or names[0] not in WHOLE_MODEL_MODULES:
        got = ", ".join(map(str, names)) if names else shorten(modules)
        text = f"expected one module that is the whole language model, {' or '.join(WHOLE_MODEL_MODULES)}, got {got}; "
        text += "other modules are not supported: write `slices` or `models` without `modules`"
        problems.append(Problem(path, text))
        return (), None
    path, module = (*path, names[0]), modules[names[0]]
    if not isinstance(module, dict):
        problems.append(Problem(path, f"expected a mapping with slices or models, got {shorten(module)}"))
        return (), None
    for key in module:
        if key not in _MODULE_KEYS:
            text = f"unknown key; expected one of {', '.join(_MODULE_KEYS)}{did_you_mean(key, _MODULE_KEYS)}"
            problems.append(Problem((*path, key), text))
    data |= {key: module[key] for key in ("slices", "models") if module.get(key) is not None and key not in data}
    return path, module.get("parameters")


def check_structure(data: Mapping[str, Any], problems: list[Problem]) -> None:
    """A recipe says once what is merged, and so does its module."""
    given = [key for key in STRUCTURES if data.get(key) is not None]
    if len(given) > 1:
        text = f"a recipe has one of {', '.join(STRUCTURES)}; this one has {' and '.join(given)}"
        problems.append(Problem((given[1],), text))
    if not given:
        problems.append(Problem(("models",), "the key is missing; models, slices or modules say what is merged"))
    modules = data.get("modules")
    holders: list[tuple[KeyPath, Any]] = [((), data)]
    holders += [(("modules", name), module) for name, module in modules.items()] if isinstance(modules, dict) else []
    for path, holder in holders:
        if not isinstance(holder, dict):
            continue
        if holder.get("slices") == []:
            problems.append(Problem((*path, "slices"), "the list is empty; expected at least one slice"))
        inside = sum(holder.get(key) is not None for key in ("models", "slices"))
        if path and inside != 1:
            problems.append(Problem(path, f"expected either models or slices, got {'both' if inside else 'neither'}"))


def each_slice(data: Mapping[str, Any]) -> Iterator[tuple[KeyPath, dict[str, Any], bool]]:
    """Every mapping of `slices` that may hold `parameters`: path, mapping, whether it is one model's."""
    slices = data.get("slices")
    for i, part in enumerate(slices if isinstance(slices, list) else []):
        if not isinstance(part, dict):
            continue
        yield ("slices", i), part, False
        sources = part.get("sources")
        for j, source in enumerate(sources if isinstance(sources, list) else []):
            if isinstance(source, dict):
                yield ("slices", i, "sources", j), source, True


def module_parameters(
    raw: Any, path: KeyPath, method: MethodSchema, recipe: Mapping[str, Setting], problems: list[Problem]
) -> dict[str, Setting]:
    """The recipe's parameters with its module's before them: the first rule that applies wins."""
    own = read_parameters(raw, (*path, "parameters"), method, problems, of_model=False)
    return {name: (*own.get(name, ()), *recipe.get(name, ())) for name in {**own, **recipe}}


def slice_contradictions(recipe: Recipe) -> Iterator[Problem]:
    """What is wrong with slices and shows in no key alone."""
    apart = recipe.method.base != "listed"
    bases = [base_of(recipe, part) for part in recipe.slices]
    for i, part in enumerate(recipe.slices):
        path: KeyPath = ("slices", i)
        lengths = [source.layer_range[1] - source.layer_range[0] for source in part.sources]
        for j, length in enumerate(lengths):
            if length != lengths[0]:
                text = f"has {length} layers, the first source has {lengths[0]}; all sources of a slice have as many"
                yield Problem((*path, "sources", j, "layer_range"), text)
        if lengths and apart:
            yield from _base_contradictions(recipe, part, path, bases)


def _base_contradictions(recipe: Recipe, part: Slice, path: KeyPath, bases: list[str | None]) -> Iterator[Problem]:
    """The base stands in every slice, as its layers too must be chosen."""
    method, base = recipe.merge_method, base_of(recipe, part)
    if base is None:
        if recipe.method.base == "required":
            text = f"base_model is missing, here and at the top; {method} merges models with a base model"
            yield Problem(path, text)
        elif any(bases):
            yield Problem(path, "base_model is missing; other slices of this recipe have one")
        return
    times = sum(source.model == base for source in part.sources)
    if times != 1:
        found = "is not among the sources" if times == 0 else f"is {times} times among the sources"
        text = f"the base model {shorten(base)} {found}; list it once, with the layers that the others are compared to"
        yield Problem((*path, "sources"), text)
