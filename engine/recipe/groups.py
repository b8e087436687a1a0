"""Which models are merged with each other: all of `models`, or the sources of one slice; and by which rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .parameters import Rule, Setting, Value
from .schema import ModelEntry, Recipe, Slice, SliceSource
from .text import KeyPath


@dataclass(frozen=True)
class ModelGroup:
    """Models that are merged with each other."""

    path: KeyPath
    """Where the list of them stands."""
    places: tuple[int, ...]
    """Where in that list each entry stands."""
    entries: tuple[ModelEntry, ...]
    """In recipe order, without the base where the method sets it apart."""
    apart: str | None
    """The base, where the method sets it apart."""
    base: SliceSource | None
    """The base's layers, in a slice of a method that sets it apart."""
    parameters: Mapping[str, Setting]
    """The slice's own."""

    def entry_path(self, position: int) -> KeyPath:
        return (*self.path, self.places[position])


def groups_of(recipe: Recipe) -> tuple[ModelGroup, ...]:
    """One group per slice in the order of the output, or the one group of a recipe without slices."""
    if not recipe.slices:
        apart = recipe.base_model if recipe.has_base else None
        return (ModelGroup(("models",), tuple(range(len(recipe.models))), recipe.models, apart, None, {}),)
    return tuple(_group_of(recipe, number, part) for number, part in enumerate(recipe.slices))


def _group_of(recipe: Recipe, number: int, part: Slice) -> ModelGroup:
    apart = base_of(recipe, part) if recipe.method.base != "listed" else None
    places = tuple(i for i, source in enumerate(part.sources) if source.model != apart)
    base = next((source for source in part.sources if source.model == apart), None)
    path = ("slices", number, "sources")
    return ModelGroup(path, places, tuple(part.sources[i] for i in places), apart, base, part.parameters)


def base_of(recipe: Recipe, part: Slice) -> str | None:
    """The base of one slice: its own, or the recipe's."""
    return part.base_model or recipe.base_model


def donor_of(recipe: Recipe) -> str:
    """The model whose configuration and other files the output gets: the base, or the first model."""
    if recipe.base_model is not None:
        return recipe.base_model
    if not recipe.slices:
        return recipe.models[0].model
    first = recipe.slices[0]
    return first.base_model or first.sources[0].model


def references_of(recipe: Recipe) -> list[str]:
    """Every model that a recipe names for its weights, once, in order of appearance."""
    found: dict[str | None, None] = {recipe.base_model: None}
    for entry in recipe.models:
        found[entry.model] = None
    for part in recipe.slices:
        found[part.base_model] = None
        for source in part.sources:
            found[source.model] = None
    return [reference for reference in found if reference is not None]


def activations_of(recipe: Recipe, entry: ModelEntry) -> str | None:
    """The file that orders one model's changes: its own, or the recipe's."""
    return entry.activations or recipe.activations


def names_of(recipe: Recipe, entry: ModelEntry) -> dict[str, str]:
    """Patterns of a model's tensor names and what stands in their place: the recipe's, and its own."""
    return {**recipe.names, **entry.names}


# -- parameters --------------------------------------------------------------------------------------------------------


def rules_of(recipe: Recipe, name: str, entry: ModelEntry | None = None, group: ModelGroup | None = None) -> Setting:
    """The rules that give a parameter its value: the model's own, the slice's, the recipe's, the method's default.

    Ends with the first rule that applies to every tensor; without one, tensors may have no value.
    """
    default = recipe.method.parameters[name].default
    rules: list[Rule] = []
    for rule in (
        *(entry.parameters.get(name, ()) if entry else ()),
        *(group.parameters.get(name, ()) if group else ()),
        *recipe.parameters.get(name, ()),
        *(() if default is None else (Rule(default),)),
    ):
        rules.append(rule)
        if rule.filter is None:
            break
    return tuple(rules)


def may_be(recipe: Recipe, name: str, value: Value, group: ModelGroup | None = None) -> bool:
    """Whether any tensor (of a group) may get this value of a parameter that all models share."""
    if name not in recipe.method.parameters:
        return False
    groups = groups_of(recipe) if group is None else (group,)
    return any(rule.value == value for one in groups for rule in rules_of(recipe, name, None, one))
