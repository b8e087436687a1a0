"""How recipes write parameters: number, gradient, filters, TADrop."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..methods import METHODS, MethodSchema, Parameter, TadropDensity
from .text import KeyPath, Problem, did_you_mean, shorten

Value = bool | int | float | str | TadropDensity | tuple[float, ...]
"""What a rule gives: one value, or a gradient over the layers as a tuple of numbers."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A value for the tensors whose name contains `filter`; None: for every tensor."""

    value: Value
    filter: str | None = None


Setting = tuple[Rule, ...]
"""The first rule that matches a tensor's name gives its value."""


IGNORED = Parameter("int8_mask", "flag", per_model=True)
"""mergekit's switch for a smaller mask: accepted everywhere, changes nothing here."""

OURS: Collection[str] = {name: None for method in METHODS.values() for name in method.schema.parameters}
"""Parameters that any of our methods takes."""


def read_parameters(
    raw: Any, path: KeyPath, method: MethodSchema, problems: list[Problem], *, of_model: bool
) -> dict[str, Setting]:
    """Read one `parameters` mapping of a recipe.

    Args:
        raw: what the recipe holds there; None is the same as nothing.
        path: where it stands, for messages.
        method: what the recipe's method takes.
        problems: everything that is wrong is appended here.
        of_model: the mapping belongs to one model.

    Returns:
        The settings that are right, without those that have no effect.
    """
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        problems.append(Problem(path, f"expected a mapping of parameters, got {shorten(raw)}"))
        return {}
    settings: dict[str, Setting] = {}
    for name, value in raw.items():
        here = (*path, name)
        parameter = IGNORED if name == IGNORED.name else method.parameters.get(name)
        if parameter is None:
            problems.append(Problem(here, _not_taken(name, method)))
        elif of_model and not parameter.per_model:
            text = f"{name} is the same for all models; write it under the recipe's own `parameters`"
            problems.append(Problem(here, text))
        else:
            setting = read_setting(parameter, value, here, problems)
            if setting and parameter is not IGNORED:
                settings[name] = setting
    return settings


def _not_taken(name: Any, method: MethodSchema) -> str:
    taken = ", ".join(method.parameters)
    if name in OURS:
        return f"{method.name} takes no {name}; it takes {taken or 'no parameters'}"
    near = did_you_mean(name, method.parameters)
    return f"unknown parameter; {method.name} takes {taken or 'none'}{near}"


def read_setting(parameter: Parameter, raw: Any, path: KeyPath, problems: list[Problem]) -> Setting:
    """Read a value, a gradient, one {filter, value}, or a list of these; () when anything is wrong."""
    entries: list[tuple[KeyPath, Any]]
    if isinstance(raw, dict) and not ("tadrop" in raw and "value" not in raw):
        entries = [(path, raw)]
    elif isinstance(raw, list) and any(isinstance(item, dict) for item in raw):
        entries = [((*path, i), item) for i, item in enumerate(raw)]
    else:
        value = _read_value(parameter, raw, path, problems)
        return () if value is None else (Rule(value),)
    before = len(problems)
    rules = [_read_rule(parameter, entry, place, problems) for place, entry in entries]
    for i, rule in enumerate(rules[:-1]):
        if rule is not None and rule.filter is None:
            text = "never used: the entry before it applies to every tensor; put the entry without a filter last"
            problems.append(Problem(entries[i + 1][0], text))
            break
    if not parameter.by_tensor and any(rule is not None and rule.filter for rule in rules):
        problems.append(Problem(path, f"{parameter.name} is the same for all tensors and takes no filters"))
    return () if len(problems) > before else tuple(rule for rule in rules if rule is not None)


def _read_rule(parameter: Parameter, raw: Any, path: KeyPath, problems: list[Problem]) -> Rule | None:
    if not isinstance(raw, dict):
        problems.append(Problem(path, f"expected {{filter: TEXT, value: ...}}, got {shorten(raw)}"))
        return None
    for key in raw:
        if key not in ("filter", "value"):
            text = f"unknown key; expected filter and value{did_you_mean(key, ('filter', 'value'))}"
            problems.append(Problem((*path, key), text))
            return None
    chosen = raw.get("filter")
    if chosen is not None and (not isinstance(chosen, str) or not chosen):
        text = f"expected text that tensor names contain, got {shorten(chosen)}"
        problems.append(Problem((*path, "filter"), text))
        return None
    if "value" not in raw:
        problems.append(Problem(path, "the value is missing; expected {filter: TEXT, value: ...}"))
        return None
    value = _read_value(parameter, raw["value"], (*path, "value"), problems)
    return None if value is None else Rule(value, None if chosen == "*" else chosen)


def _read_value(parameter: Parameter, raw: Any, path: KeyPath, problems: list[Problem]) -> Value | None:
    if isinstance(raw, dict) and "tadrop" in raw and parameter.kind == "density":
        return _read_tadrop(raw, path, problems)
    if isinstance(raw, list) and parameter.kind in ("number", "density"):
        return _read_gradient(parameter, raw, path, problems)
    value = _read_scalar(parameter, raw)
    if value is None:
        near = did_you_mean(raw, parameter.choices) if isinstance(raw, str) else ""
        problems.append(Problem(path, f"expected {parameter.expected}, got {shorten(raw)}{near}"))
    return value


def _read_gradient(parameter: Parameter, raw: list[Any], path: KeyPath, problems: list[Problem]) -> Value | None:
    """Numbers at equal distances from the first layer to the last."""
    expected = replace(parameter, kind="number").expected
    if not raw:
        problems.append(Problem(path, f"the list is empty; expected {expected} for at least one layer"))
        return None
    numbers: list[float] = []
    for i, item in enumerate(raw):
        number = read_number(item, parameter.lowest, parameter.highest)
        if number is None:
            problems.append(Problem((*path, i), f"expected {expected}, got {shorten(item)}"))
            return None
        numbers.append(number)
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def _read_scalar(parameter: Parameter, raw: Any) -> Value | None:
    match parameter.kind:
        case "flag":
            return read_flag(raw)
        case "choice":
            return raw if isinstance(raw, str) and raw in parameter.choices else None
        case "integer":
            raw = int(raw) if isinstance(raw, str) and re.fullmatch(r"\d{1,12}", raw) else raw
            whole = isinstance(raw, int) and not isinstance(raw, bool)
            return raw if whole and parameter.lowest <= raw <= parameter.highest else None
        case _:
            return read_number(raw, parameter.lowest, parameter.highest)


def read_flag(raw: Any) -> bool | None:
    """true and false, also in quotes, and 1 and 0, as mergekit takes them; its own tools write `normalize: 1.0`."""
    if isinstance(raw, bool):
        return raw
    text = str(raw).lower()
    return True if text in ("true", "1", "1.0") else False if text in ("false", "0", "0.0") else None


def read_number(raw: Any, lowest: float, highest: float) -> float | None:
    """The number as a float, or None when it is no number, not finite, or outside the range; quotes change nothing."""
    if isinstance(raw, str) and _NUMBER.fullmatch(raw):
        raw = float(raw)
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not lowest <= raw <= highest:
        return None  # comparisons with NaN are false, so NaN ends here too
    return float(raw) + 0.0  # -0.0 and 0 are one recipe


_NUMBER = re.compile(r"\s*[-+]?(\d{1,30}\.?\d{0,30}|\.\d{1,30})([eE][-+]?\d{1,3})?\s*")


def _read_tadrop(raw: dict[str, Any], path: KeyPath, problems: list[Problem]) -> TadropDensity | None:
    before = len(problems)
    problems += [Problem((*path, key), "unknown key beside tadrop") for key in raw if key != "tadrop"]
    path = (*path, "tadrop")
    options = raw["tadrop"] if raw["tadrop"] is not None else {}
    if not isinstance(options, dict):
        problems.append(Problem(path, f"expected {{}} or {{mean: 0.25}}, got {shorten(options)}"))
        return None
    for key, value in options.items():
        parameter = TADROP.get(key)
        if parameter is None:
            text = f"unknown key; expected {', '.join(TADROP)}{did_you_mean(key, TADROP)}"
            problems.append(Problem((*path, key), text))
        elif _read_scalar(parameter, value) is None:
            text = f"expected {parameter.expected}, got {shorten(value)}"
            problems.append(Problem((*path, key), text))
    if "mean" not in options:
        alone = (key for key in ("spread", "mean_of") if key in options)
        problems += [Problem((*path, key), f"{key} has an effect only with mean, which is missing") for key in alone]
    if len(problems) > before:
        return None
    return TadropDensity(**{key: _read_scalar(TADROP[key], value) for key, value in options.items()})  # type: ignore[arg-type]


TADROP: Mapping[str, Parameter] = {
    "mean": Parameter("mean", "number", 0.01, 1),  # sparsity ends at 0.99
    "spread": Parameter("spread", "number", 0, 1),
    "statistic": Parameter("statistic", "choice", choices=("participation", "quantile", "kurtosis")),
    "mean_of": Parameter("mean_of", "choice", choices=("all", "changed")),
}
"""The keys of `density: {tadrop: {...}}`."""
