"""What a merge method needs from a recipe, read once from the signature of its function.

A keyword argument is a parameter: its name (`lambda_` is `lambda`), its default (none: the recipe must say it), and its
kind, from the annotation: `bool` a flag, `int` a whole number, `float` a number, `Literal` a choice, `float |
TadropDensity` a density, a tuple of these one value per model. `Annotated` adds a Range, what the parameter Means, or
SAME_FOR_ALL_TENSORS. The return annotation says which stages the method is made of.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from keyword import iskeyword
from types import UnionType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from .demands import MethodDemands, SelectionDemands
from .stages import Elect, Method, TaskVectorMerge
from .tadrop import TadropDensity

FLOAT32_MAX = 3.4028234663852886e38
"""Parameters meet tensors in fp32."""
MOST_COUNTED = 255
"""Models at most where a byte counts how many of them have kept, or change, an element."""

Kind = Literal["number", "density", "integer", "flag", "choice"]
Base = Literal["required", "optional", "listed"]
"""Whether there is a base apart from the models. `listed`: no, `base_model` may name one of them as reference."""


@dataclass(frozen=True, slots=True)
class Range:
    """The least and the largest value of a number."""

    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Means:
    """What a parameter means, for the documents."""

    text: str


class Mark(Enum):
    """What an annotation says besides a type."""

    SAME_FOR_ALL_TENSORS = "takes no filters and no gradients"
    HAS_BASE = "no parameter: whether the recipe has a base apart from the models"


SAME_FOR_ALL_TENSORS = Mark.SAME_FOR_ALL_TENSORS
HasBase: TypeAlias = Annotated[bool, Mark.HAS_BASE]

Value = TypeVar("Value")
PerModel: TypeAlias = tuple[Value, ...]
"""One value per model that is merged; a default is a tuple of the one value that holds for every model."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """What one key under `parameters` may hold."""

    name: str
    kind: Kind
    lowest: float = -FLOAT32_MAX
    highest: float = FLOAT32_MAX
    choices: tuple[str, ...] = ()
    per_model: bool = False
    """May be set for each model; the others are the same for all models."""
    by_tensor: bool = True
    """May differ between tensors, by filters and gradients."""
    default: bool | int | float | str | None = None
    """None: the recipe must say it."""
    meaning: str = ""

    @property
    def expected(self) -> str:
        """The values that are allowed, in words."""
        match self.kind:
            case "flag":
                return "true or false"
            case "choice":
                return "one of " + ", ".join(self.choices)
            case "integer":
                return f"a whole number from {self.lowest:.0f} to {self.highest:.0f}"
            case _:
                free = self.highest == FLOAT32_MAX
                text = "a finite number" if free else f"a number from {self.lowest:g} to {self.highest:g}"
                return text + (" or {tadrop: {}}" if self.kind == "density" else "")


@dataclass(frozen=True)
class MethodSchema:
    """What a merge method needs from a recipe: plain values, which go wherever a plan goes."""

    name: str
    """As recipes write it."""
    parameters: Mapping[str, Parameter]
    """By the name in recipes, in the order of the signature."""
    base: Base = "required"
    differences: bool = True
    """Merges differences to the base, where there is one."""
    fewest: int = 1
    """Models that it merges at least, not counting the base ..."""
    most: int | None = None
    """... and at most."""
    orders_magnitudes: bool = False
    """Masks may follow an order of magnitudes, in which activations may take part."""
    writes_tasks: bool = False
    """There is an output per task instead of one model."""

    @property
    def per_model(self) -> list[str]:
        """Parameters that may be set for each model."""
        return [name for name, parameter in self.parameters.items() if parameter.per_model]

    @property
    def shared(self) -> list[str]:
        """Parameters that are the same for all models."""
        return [name for name, parameter in self.parameters.items() if not parameter.per_model]


@dataclass(frozen=True)
class MergeMethod:
    """A function that makes a method's stages, with the schema that its signature says."""

    schema: MethodSchema
    function: Callable[..., Method]
    stages: tuple[type, ...]
    """What it may return."""
    selections: tuple[type, ...]
    """What the selection of a TaskVectorMerge may be."""
    base_arguments: tuple[str, ...]
    """Arguments that say whether the recipe has a base."""

    def make(self, values: Mapping[str, Any], *, has_base: bool) -> Method:
        """The stages that follow from values by their names in recipes; per model a tuple of them.

        Raises:
            TypeError: the function returns another thing than its signature says, or what no plan can hold.
        """
        arguments = {f"{name}_" if iskeyword(name) else name: value for name, value in values.items()}
        made = self.function(**arguments, **dict.fromkeys(self.base_arguments, has_base))
        right = isinstance(made, self.stages)
        if isinstance(made, TaskVectorMerge):
            right = right and isinstance(made.selection, self.selections)
        if not right:
            names = ", ".join(kind.__name__ for kind in (*self.stages, *self.selections))
            raise TypeError(f"it returned {made!r}, and its signature says {names}")
        _check_parts(made, [len(values[name]) for name in self.schema.per_model])
        return made


def merge_method(
    *, base: Base = "required", fewest: int = 1, most: int | None = None, differences: bool = True
) -> Callable[[Callable[..., Method]], MergeMethod]:
    """Make a merge method of a function whose signature is its schema.

    Args:
        base: whether it has a base apart from the models.
        fewest: models that it merges at least, not counting the base.
        most: models that it merges at most; where its selection counts models in a byte, 255 in any case.
        differences: whether it merges differences to the base, where there is one.

    Raises:
        TypeError: the signature says something that no recipe can.
    """

    def read(function: Callable[..., Method]) -> MergeMethod:
        hints = get_type_hints(function, include_extras=True)
        stages, selections = _stages(hints.pop("return", None))
        bases = tuple(name for name, hint in hints.items() if Mark.HAS_BASE in _unfold(hint)[1])
        defaults = {name: value.default for name, value in inspect.signature(function).parameters.items()}
        parameters = [_parameter(name, hints.get(name), defaults[name]) for name in defaults if name not in bases]
        counted = any(selection.counts_claims for selection in selections)
        schema = MethodSchema(
            name=function.__name__,
            parameters={parameter.name: parameter for parameter in parameters},
            base=base,
            differences=differences and base != "listed",
            fewest=fewest,
            most=min(most or MOST_COUNTED, MOST_COUNTED) if counted else most,
            orders_magnitudes=any(selection.orders_magnitudes for selection in selections),
            writes_tasks=Elect in stages,
        )
        return MergeMethod(schema, function, stages, selections, bases)

    return read


def _check_parts(made: Method, models: Sequence[int]) -> None:
    """Stages go to processes that may lack a user's module, are compared and hashed, and have a value per model."""
    for part in (made, *(getattr(made, field.name) for field in fields(made))):
        if not is_dataclass(part):
            continue
        if type(part).__module__.rpartition(".")[0] != __package__:
            raise TypeError(f"{type(part).__qualname__} is no stage of {__package__}, of which alone methods are made")
        for field in fields(part):
            value = getattr(part, field.name)
            if isinstance(value, tuple) and value and models and len(value) != models[0]:
                raise TypeError(f"it returned {made!r}, whose {field.name} are not one per model")
    hash(made)  # a TypeError that names the type, for a list in place of a tuple
    if isinstance(made, TaskVectorMerge) and made.needs_weights and not made.weights:
        raise TypeError(f"it returned {made!r}, which has no weights")


def _parameter(name: str, hint: Any, default: Any) -> Parameter:
    kind, notes = _unfold(hint)
    per_model = get_origin(kind) is tuple
    if per_model:
        kind, more = _unfold(get_args(kind)[0])
        notes = (*notes, *more)
        default = default[0] if isinstance(default, tuple) else default
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    word = "choice" if choices else _KINDS.get(kind)
    if word is None:
        raise TypeError(f"{name}: expected bool, int, float, a Literal, Density, or PerModel of these, got {hint}")
    bounds = next((note for note in notes if isinstance(note, Range)), Range(-FLOAT32_MAX, FLOAT32_MAX))
    return Parameter(
        name=name.removesuffix("_"),
        kind=word,
        lowest=bounds.lowest,
        highest=bounds.highest,
        choices=choices,
        per_model=per_model,
        by_tensor=SAME_FOR_ALL_TENSORS not in notes,
        default=None if default is inspect.Parameter.empty else default,
        meaning=next((note.text for note in notes if isinstance(note, Means)), ""),
    )


_KINDS: Mapping[Any, Kind] = {bool: "flag", int: "integer", float: "number", float | TadropDensity: "density"}


def _unfold(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without what `Annotated` adds, and what it adds."""
    return (get_args(hint)[0], hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())


def _stages(hint: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What a return annotation names: methods, and the selections of a TaskVectorMerge."""
    kinds = [(get_origin(member) or member, get_args(member)) for member in _members(hint)]
    stages = tuple(kind for kind, _ in kinds)
    selections = tuple(member for _, given in kinds for one in given for member in _members(one))
    right = all(isinstance(kind, type) and issubclass(kind, MethodDemands) for kind in stages)
    right = right and all(isinstance(kind, type) and issubclass(kind, SelectionDemands) for kind in selections)
    if not right or (TaskVectorMerge in stages and not selections):
        raise TypeError("its signature must say which stages it returns, such as `-> TaskVectorMerge[Top]`")
    return stages, selections


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
