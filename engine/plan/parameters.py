"""A recipe's parameters become plain values for one tensor and one model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..errors import RecipeError
from ..models import is_number
from ..recipe import ModelEntry, ModelGroup, Recipe, Setting, Value, rules_of, shorten

Values = tuple[Value, ...]
"""Values of parameters for one tensor, in the order of the schema."""


class ParameterResolver:
    """Looks up parameters by tensor name and position; the same ones always give an equal tuple.

    Args:
        recipe: a recipe.
        group: the models that are merged with each other.
    """

    def __init__(self, recipe: Recipe, group: ModelGroup) -> None:
        method = recipe.method

        def rules(names: Sequence[str], entry: ModelEntry | None) -> dict[str, Setting]:
            return {name: rules_of(recipe, name, entry, group) for name in names}

        self._models = [
            _Lookup(rules(method.per_model, entry), f"model {shorten(entry.model)}") for entry in group.entries
        ]
        self._shared = _Lookup(rules(method.shared, None), "the merge")

    def model(self, index: int, tensor_name: str, position: float) -> Values:
        """The values of one model (0-based in the group) for one tensor, in the order of `MethodSchema.per_model`.

        Args:
            index: which model.
            tensor_name: the model's own name of the tensor.
            position: where it stands on gradients, from 0.0 to 1.0.

        Raises:
            RecipeError: a parameter without a default has no rule for this tensor.
        """
        return self._models[index].get(tensor_name, position)

    def shared(self, tensor_name: str, position: float) -> Values:
        """The values that all models share for one tensor of the output, in the order of `MethodSchema.shared`."""
        return self._shared.get(tensor_name, position)


def layer_of(tensor_name: str) -> tuple[str, int] | None:
    """The layer that a tensor belongs to, as the name of its stack and its number there.

    The first part of a dotted name that is a number is the layer: `encoder.layer.3.output` is (`encoder.layer`, 3).
    """
    parts = tensor_name.split(".")
    for i, part in enumerate(parts):
        if is_number(part):
            return ".".join(parts[:i]), int(part)
    return None


def count_layers(tensor_names: Iterable[str]) -> dict[str, int]:
    """By stack of layers, one more than its largest number: a decoder may have fewer layers than its encoder."""
    counts: dict[str, int] = {}
    for stack, number in filter(None, map(layer_of, tensor_names)):
        counts[stack] = max(counts.get(stack, 0), number + 1)
    return counts


def layer_position(tensor_name: str, counts: Mapping[str, int]) -> float:
    """Where a tensor stands on a gradient: 0.0 at the first layer of its stack, 1.0 at the last.

    As in mergekit 0.1.5, tensors outside the layers stand at 0.0 and the only layer of a stack at 1.0.
    """
    layer = layer_of(tensor_name)
    if layer is None:
        return 0.0
    stack, number = layer
    count = counts[stack]
    assert number < count, f"{tensor_name} lies beyond the {count} layers that gradients were made for"
    return number / (count - 1) if count > 1 else 1.0


def interpolate(gradient: tuple[float, ...], position: float) -> float:
    """The value at a position from 0.0 to 1.0 between numbers at equal distances, in fp64."""
    scaled = position * (len(gradient) - 1)
    left = int(scaled)
    right = min(left + 1, len(gradient) - 1)
    share = scaled - left
    return (1.0 - share) * gradient[left] + share * gradient[right]


class _Lookup:
    """One group of parameters; tensors that match the same rules at the same position share one tuple."""

    def __init__(self, rules: Mapping[str, Setting], owner: str) -> None:
        self._rules = rules
        self._owner = owner
        values = [rule.value for setting in rules.values() for rule in setting]
        self._has_gradient = any(isinstance(value, tuple) for value in values)
        self._filtered = [name for name, setting in rules.items() if setting[0].filter is not None]
        plain = not self._filtered and not self._has_gradient
        self._constant = self._resolve("", 0.0) if plain else None
        self._made: dict[tuple[object, ...], Values] = {}

    def get(self, tensor_name: str, position: float) -> Values:
        if self._constant is not None:
            return self._constant
        key = (position if self._has_gradient else 0.0, *(self._match(name, tensor_name) for name in self._filtered))
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._resolve(tensor_name, position)
        return found

    def _match(self, name: str, tensor_name: str) -> int:
        for i, rule in enumerate(self._rules[name]):
            if rule.filter is None or rule.filter in tensor_name:
                return i
        raise RecipeError(
            f"{name} has no value for tensor {tensor_name!r} of {self._owner}: none of its filters matches",
            f"Add an entry without a filter at the end: {name}: [..., {{value: ...}}].",
        )

    def _resolve(self, tensor_name: str, position: float) -> Values:
        values = [setting[self._match(name, tensor_name)].value for name, setting in self._rules.items()]
        return tuple(interpolate(value, position) if isinstance(value, tuple) else value for value in values)
