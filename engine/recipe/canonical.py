"""One spelling per recipe: what is hashed into the plan and kept in the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..methods import TadropDensity
from .groups import ModelGroup, activations_of, donor_of, groups_of, may_be, names_of, rules_of
from .parameters import Setting, Value
from .schema import ModelEntry, Recipe, Slice, task_name


def canonical(recipe: Recipe, urls: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The recipe with defaults filled in and without what cannot change the output.

    Two recipes that say the same in other words give equal results; the result is itself a recipe.

    Args:
        recipe: a recipe.
        urls: what to write instead of each model reference, when given: absolute URLs do not depend on the
            directory that a command ran in.

    Returns:
        JSON-able, with a stable order of keys.
    """

    def url(reference: str) -> str:
        return urls[reference] if urls is not None else reference

    result: dict[str, Any] = {"merge_method": recipe.merge_method}
    if recipe.base_model is not None:
        result["base_model"] = url(recipe.base_model)
    groups = groups_of(recipe)
    entries = [_entries(recipe, group, url) for group in groups]
    settings = [_shared(recipe, group) for group in groups]
    if recipe.slices:
        result["slices"] = [
            _slice(part, group, own, url) | {"parameters": shared}
            for part, group, own, shared in zip(recipe.slices, groups, entries, settings, strict=True)
        ]
    else:
        result["models"], result["parameters"] = entries[0], settings[0]
    result["exclude"] = sorted(set(recipe.exclude))
    for key in ("seed", "nonfinite", "overflow", "strict", "extra_tensors", "vocab"):
        result[key] = getattr(recipe, key)
    if recipe.out_dtype or recipe.dtype:
        result["out_dtype"] = recipe.out_dtype or recipe.dtype
    if recipe.tokenizer_keys is not None:
        result["tokenizer"] = recipe.tokenizer_keys.plain(url, url(donor_of(recipe)))
    if recipe.chat_template is not None:
        result["chat_template"] = recipe.chat_template
    forms = {"experts": recipe.output.experts, "ties": recipe.output.ties}
    changed = {key: form for key, form in forms.items() if form != "as-base"}
    card = {"card": recipe.output.card} if recipe.output.card is not True else {}
    result["output"] = {"shard_size": recipe.output.shard_size_bytes} | changed | card
    return result


def _entries(recipe: Recipe, group: ModelGroup, url: Callable[[str], str]) -> list[dict[str, Any]]:
    """Every model with all parameters of its own, from wherever the recipe gives them."""
    return [
        {
            "model": url(entry.model),
            "parameters": _own(recipe, group, entry),
        }
        | _activations(activations_of(recipe, entry), url)
        | ({"names": names_of(recipe, entry)} if names_of(recipe, entry) else {})
        | ({"name": task_name(entry)} if recipe.method.writes_tasks else {})
        for entry in group.entries
    ]


def _own(recipe: Recipe, group: ModelGroup, entry: ModelEntry) -> dict[str, Any]:
    """The parameters of one model; that EMR-Merging keeps everything is not said, as its plans are older."""
    found = {name: _plain_setting(rules_of(recipe, name, entry, group)) for name in recipe.method.per_model}
    if recipe.method.writes_tasks and found.get("density") == 1.0:
        del found["density"]
    return found


def _activations(reference: str | None, url: Callable[[str], str]) -> dict[str, str]:
    return {} if reference is None else {"activations": url(reference)}


def _shared(recipe: Recipe, group: ModelGroup) -> dict[str, Any]:
    """The parameters that all models of a group share."""
    names = recipe.method.shared
    found = {name: _plain_setting(rules_of(recipe, name, None, group)) for name in names}
    if "rescale_norm" in names and not may_be(recipe, "rescale", True, group):
        found["rescale_norm"] = "none"
    return found


def _slice(part: Slice, group: ModelGroup, entries: list[dict[str, Any]], url: Callable[[str], str]) -> dict[str, Any]:
    """The sources in their order; the base among them has layers and no parameters."""
    of_place = dict(zip(group.places, entries, strict=True))
    sources = [
        of_place.get(i, {"model": url(source.model)}) | {"layer_range": list(source.layer_range)}
        for i, source in enumerate(part.sources)
    ]
    base = {"base_model": url(part.base_model)} if part.base_model is not None else {}
    return {"sources": sources} | base


def _plain_setting(setting: Setting) -> Any:
    """The shortest form in which a recipe may write a setting."""
    if len(setting) == 1 and setting[0].filter is None:
        return _plain_value(setting[0].value)
    return [
        {"value": _plain_value(rule.value)} | ({"filter": rule.filter} if rule.filter is not None else {})
        for rule in setting
    ]


def _plain_value(value: Value) -> Any:
    if isinstance(value, TadropDensity):
        options: dict[str, Any] = {"statistic": value.statistic}
        if value.mean is not None:
            options |= {"mean": value.mean, "spread": value.spread}
        if value.mean_of != "all":
            options["mean_of"] = value.mean_of
        return {"tadrop": options}
    return list(value) if isinstance(value, tuple) else value
