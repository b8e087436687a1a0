"""A recipe as it may be shown to anybody: public names, and no word more than it needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .canonical import canonical
from .groups import may_be
from .schema import Recipe

_DEFAULTS: Mapping[str, Any] = {
    "exclude": [],
    **{name: Recipe.model_fields[name].default for name in ("seed", "nonfinite", "overflow", "strict")},
    **{name: Recipe.model_fields[name].default for name in ("extra_tensors", "vocab")},
}


def published(recipe: Recipe, names: Mapping[str, str]) -> dict[str, Any]:
    """The canonical recipe without what is a default anyway; itself a recipe that says the same.

    Args:
        recipe: a recipe.
        names: what to write instead of each reference to a model or file.
    """
    plain = {key: value for key, value in canonical(recipe, names).items() if _DEFAULTS.get(key) != value}
    output = {key: value for key, value in plain.pop("output").items() if value != _layout_default(key)}
    plain |= {"output": output} if output else {}
    if "tokenizer" in plain:
        plain["tokenizer"] = {key: value for key, value in plain["tokenizer"].items() if value}
    for holder in _holders(plain):
        own = holder.pop("parameters", {})
        kept = {name: value for name, value in own.items() if not _is_default(recipe, name, value)}
        holder |= {"parameters": kept} if kept else {}
    return plain


def _layout_default(key: str) -> Any:
    fields = type(Recipe.model_fields["output"].get_default(call_default_factory=True)).model_fields
    return next(field.default for name, field in fields.items() if key in (name, field.alias))


def _holders(plain: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Every mapping that may hold `parameters`."""
    yield plain
    yield from plain.get("models", [])
    for part in plain.get("slices", []):
        yield part
        yield from part["sources"]


def _is_default(recipe: Recipe, name: str, value: Any) -> bool:
    if name == "rescale_norm" and value == "none" and not may_be(recipe, "rescale", True):
        return True  # without a rescale there is nothing to choose
    default = recipe.method.parameters[name].default
    return default is not None and type(default) is type(value) and default == value
